"""Segments of users from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_evaluation import DATA, SPLIT, TableScorer, random_table

from adarec_fast.config import ConfigError
from adarec_fast.data import DataError
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.ranking.ranks import ranking_metrics
from adarec_fast.ranking.segments import by_column, read_segments

IDS = DATA.users.ids


def table(path: Path, rows: list[tuple[object, object]], header: str = "user,country") -> Path:
    path.write_text("\n".join([header, *(f"{a},{b}" for a, b in rows)]) + "\n")
    return path


def test_a_column_tells_users_apart(tmp_path: Path) -> None:
    rows = [(user, "fr" if place % 3 else "at") for place, user in enumerate(IDS[:50])]
    path = table(tmp_path / "users.csv", [*reversed(rows), ("stranger", "pl"), (IDS[50], "")])
    found = by_column(SPLIT, path, "country")
    assert (found.name, found.labels) == ("country", ("at", "fr", "pl", "(not told)"))
    expected = [1 if place % 3 else 0 for place in range(50)] + [3] * 10
    assert found.index.tolist() == expected
    result = evaluate(TableScorer(random_table()), SPLIT, segments=[found])
    groups = result.segments["country"]
    assert {name: group["users"] for name, group in groups.items()} == {
        "at": 17, "fr": 33, "(not told)": 10,
    }  # fmt: skip
    chosen = result.ranks[torch.tensor(expected) == 0]
    assert groups["at"].items() >= ranking_metrics(chosen, (5, 10, 20)).items()
    assert [row["group"] for row in result.records()][2:] == ["at", "fr", "(not told)"]


def test_options_by_name(tmp_path: Path) -> None:
    path = table(tmp_path / "users.csv", [(user, "a") for user in IDS])
    found = read_segments(["history", "popularity", f"{path}:country"], SPLIT, "valid")
    assert [one.name for one in found] == ["history", "popularity", "country"]


@pytest.mark.parametrize(
    ("rows", "option", "error", "message"),
    [
        ([("u", "a")], "age", ConfigError, "--segments age: must be history, popularity"),
        ([("u", "a")], "no.csv:age", ConfigError, "there is no file no.csv"),
        ([("u", "a")], "FILE:age", DataError, "there is no column 'age'"),
        ([("u", "a")], "FILE:country", DataError, "none of its 1 users, such as 'u', is one of"),
        ([(IDS[3], "a"), (IDS[3], "b")], "FILE:country", DataError,
         f"the user '{IDS[3]}' has several values of country"),
        ([(IDS[i % 9], f"c{i}") for i in range(51)], "FILE:country", DataError,
         "country has 51 different values.*at most 50"),
    ],
)  # fmt: skip
def test_bad_segments(
    rows: list[tuple[object, object]], option: str, error: type[Exception], message: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = table(tmp_path / "users.csv", rows)
    with pytest.raises(error, match=message):
        read_segments([option.replace("FILE", str(path))], SPLIT, "test")
    if error is DataError:
        return
    with pytest.raises(ConfigError, match="history is named twice"):
        read_segments(["history", "history"], SPLIT, "test")

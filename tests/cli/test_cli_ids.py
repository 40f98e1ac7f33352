"""Files of ids on the command line, and the items that are similar to others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from helpers_cli import MODEL, TRAIN, adarec

from adarec_fast import InteractionData, Recommender, TrainConfig, load
from adarec_fast.training import load_run, train

ITEMS = 40


@pytest.fixture(scope="module")
def data() -> InteractionData:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(1, ITEMS + 1, (30, 6), generator=generator).tolist()
    histories = {f"u{user}": [f"sku-{n}" for n in row] for user, row in enumerate(drawn)}
    return load({**histories, "short": ["sku-1", "gone"]})


@pytest.fixture(scope="module")
def run(data: InteractionData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(MODEL, TrainConfig.create(**TRAIN), data, folder)
    return folder


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return Recommender(load_run(run).model)


def _listed(folder: Path, *ids: str) -> Path:
    path = folder / "ids.txt"
    path.write_text("\n".join(ids) + "\n", encoding="utf-8")
    return path


def test_users_items_to_choose_from_and_items_to_leave_out(
    run: Path, data: InteractionData, recommender: Recommender, tmp_path: Path
) -> None:
    users = tmp_path / "users.gz"
    users.write_bytes(gzip.compress(b"u3\r\n\n  u11 \nshort\n"))
    allowed = [item for item in data.items.ids if item.endswith(("1", "2", "3"))]
    allow, exclude = tmp_path / "allow", tmp_path / "exclude"
    allow.write_text("\n".join(allowed))
    exclude.write_text("sku-1\n")
    files = ("--allow-file", allow, "--exclude-file", exclude, "--k", "3")
    shown = adarec("recommend", run, "--users-file", users, *files, "--format", "json")
    assert shown.exit_code == 0, shown.output
    assert "user 'short' is in the data, with 2 items, and was dropped" in shown.stderr
    found = json.loads(shown.stdout)
    wanted = recommender.recommend_users(
        data, ["short", "u3", "u11"], 3, allow=allowed, exclude=["sku-1"]
    )
    assert [answer["user"] for answer in found] == wanted.asked
    assert [[row["item"] for row in answer["items"]] for answer in found] == wanted.items
    assert {item for row in wanted.items for item in row} <= set(allowed) - {"sku-1"}
    # The same to a file, where the list is of everybody.
    pytest.importorskip("polars")
    table = tmp_path / "all.csv"
    shown = adarec(
        "recommend", run, "--all-users", *files, "--format", "csv", "--out", table
    )
    assert shown.exit_code == 0, shown.output
    lines = [line.split(",") for line in table.read_text().splitlines()[1:]]
    assert [line[1] for line in lines if line[0] == "u3"] == wanted.items[1]


def test_similar_items(run: Path, recommender: Recommender, tmp_path: Path) -> None:
    exclude = _listed(tmp_path, "sku-2")
    shown = adarec("similar", run, "sku-1", "sku-4", "--k", "3", "--format", "json",
                   "--exclude-file", exclude)  # fmt: skip
    assert shown.exit_code == 0, shown.output
    wanted = recommender.similar_items(["sku-1", "sku-4"], 3, exclude=["sku-2"])
    found = json.loads(shown.stdout)
    assert [answer["item"] for answer in found] == ["sku-1", "sku-4"]
    assert [[row["item"] for row in answer["items"]] for answer in found] == wanted.items
    table = adarec("similar", run, "sku-1", "--k", "2", "--exclude-file", exclude)
    assert "similar to sku-1" in table.stdout
    assert wanted.items[0][1] in table.stdout
    lines = adarec("similar", run, "sku-1", "--k", "2", "--format", "csv").stdout.splitlines()
    assert lines[0] == "similar_to,item,score,rank"
    assert lines[1].startswith("sku-1,sku-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recommend", "--users-file", "FILE"), "--users-file FILE:2: unknown id 'nobody'"),
        (("recommend", "--user", "u1", "--allow-file", "FILE"), "--allow-file FILE:1: unknown id"),
        (("recommend", "--user", "u1", "--allow-file", "FILE"), "--unknown-items ignore leaves"),
        (("recommend", "--user", "u1", "--allow-file", "FILE", "--unknown-items", "ignore"),
         "--allow-file: 2 of 2 ids are not in the catalogue, so none is left"),
        (("recommend", "--users-file", "NONE"), "--users-file: NONE: there is no such file"),
        (("recommend", "--users-file", "EMPTY"), "--users-file: EMPTY: the file is empty"),
        (("recommend", "--users-file", "FILE", "--all-users"), "--users-file and --all-users name"),
        (("recommend",), "needs --users-file FILE, --user ID, --history"),
        (("similar", "sku-99"), "ITEM: unknown id 'sku-99'"),
        (("similar", "sku-1", "--k", "99"), "k=99 is more than the catalogue holds; at most"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_files_are_named(
    run: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    listed = _listed(tmp_path, "u1", "nobody")
    (tmp_path / "empty").write_text("\n")
    places = {"FILE": listed, "NONE": tmp_path / "none", "EMPTY": tmp_path / "empty"}
    command, *rest = (places.get(word, word) for word in arguments)
    shown = adarec(command, run, *rest)
    assert shown.exit_code == 2
    for name, path in places.items():
        if f"{name}:" in message:
            message = message.replace(f"{name}:", f"{path}:")
    assert message in shown.output


def test_unknown_items_of_a_file_that_are_ignored_are_told(run: Path, tmp_path: Path) -> None:
    listed = _listed(tmp_path, "sku-7", "nothing", "sku-9")
    shown = adarec("recommend", run, "--history", "sku-1", "--allow-file", listed,
                   "--unknown-items", "ignore", "--format", "json")  # fmt: skip
    assert "--allow-file: 1 of 3 ids are not in the catalogue, left out, such as nothing" in (
        shown.stderr
    )
    (answer,) = json.loads(shown.stdout)
    assert sorted(row["item"] for row in answer["items"]) == ["sku-7", "sku-9"]

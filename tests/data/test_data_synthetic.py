"""Synthetic data hold what was planted; writers and readers agree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from adarec_fast.data import (
    DataError,
    InteractionData,
    Split,
    load,
    synthetic,
    write_csv,
    write_sequences,
)


@pytest.fixture(scope="module")
def data() -> InteractionData:
    return synthetic()


def same(a: InteractionData, b: InteractionData) -> bool:
    return (
        torch.equal(a.values, b.values)
        and torch.equal(a.offsets, b.offsets)
        and a.items == b.items
        and a.users == b.users
    )


def histories(data: InteractionData) -> list[list[int]]:
    return [data.sequence(u).tolist() for u in range(data.num_users)]


def test_it_is_deterministic(data: InteractionData) -> None:
    assert same(data, synthetic())
    assert not same(data, synthetic(seed=1))


def test_shape_and_names(data: InteractionData) -> None:
    assert (data.num_users, data.num_items) == (2000, 500)
    assert data.name == "synthetic"
    assert data.users.decode([17]) == ["u00017"]
    assert data.items.ids == sorted(data.items.ids)
    labels = data.labels
    assert labels is not None
    for index, name in enumerate(data.items.ids, start=1):
        theme, subtheme, _ = str(name).split("-")
        assert theme == f"t{int(labels.item_theme[index])}"
        assert subtheme == f"s{int(labels.item_subtheme[index]) % 4}"
    assert int(labels.item_theme[0]) == int(labels.item_subtheme[0]) == -1
    assert torch.equal(labels.item_subtheme[1:] // 4, labels.item_theme[1:])
    assert torch.equal(labels.user_subtheme // 4, labels.user_theme)
    assert set(labels.user_subtheme.tolist()) == set(range(32))


def test_lengths_follow_amazon_beauty(data: InteractionData) -> None:
    lengths = data.lengths.double()
    assert float(lengths.mean()) == pytest.approx(8.9, abs=0.6)
    assert float(lengths.median()) == 6
    assert int(lengths.min()) == 5
    assert int(lengths.max()) <= 204
    share = float((lengths == 5).double().mean())
    assert share == pytest.approx(0.32, abs=0.04)


def test_no_history_repeats_an_item(data: InteractionData) -> None:
    assert all(len(set(history)) == len(history) for history in histories(data))
    # Not even where histories take up half of the catalogue.
    tiny = synthetic(num_users=300, num_items=10, num_themes=2, subthemes_per_theme=2)
    assert all(len(set(history)) == len(history) == 5 for history in histories(tiny))


def test_intents_show_in_the_histories(data: InteractionData) -> None:
    labels = data.labels
    assert labels is not None
    users = torch.repeat_interleave(torch.arange(data.num_users), data.lengths)
    in_theme = labels.item_theme[data.values] == labels.user_theme[users]
    in_subtheme = labels.item_subtheme[data.values] == labels.user_subtheme[users]
    # By chance they would be 1/8 and 1/32.
    assert 0.7 < float(in_theme.double().mean()) < 0.95
    assert 0.45 < float(in_subtheme.double().mean()) < 0.75


def test_popularity_is_skewed(data: InteractionData) -> None:
    counts = torch.bincount(data.values, minlength=data.num_items + 1)[1:]
    ranked = counts.sort(descending=True).values
    assert int(ranked[:100].sum()) > 0.4 * data.num_interactions
    top = data.items.decode(counts.topk(32).indices + 1)
    assert Counter(name[-4:] for name in top)["i000"] >= 16


def test_sequences_carry_more_than_popularity(data: InteractionData) -> None:
    split = Split(data)
    values, offsets = split.inputs("train")
    popularity = torch.bincount(values, minlength=data.num_items + 1).double()
    follows = torch.zeros(data.num_items + 1, data.num_items + 1, dtype=torch.float64)
    inside = torch.ones(values.numel(), dtype=torch.bool)
    inside[offsets[1:-1] - 1] = False
    inside[-1] = False
    at = torch.nonzero(inside).flatten()
    follows.index_put_(
        (values[at], values[at + 1]), torch.ones(at.numel(), dtype=torch.float64), accumulate=True
    )
    seen, seen_offsets = split.seen("test")
    owner = torch.repeat_interleave(torch.arange(data.num_users), seen_offsets.diff())
    targets = split.targets("test")

    def hit_rate(scores: torch.Tensor) -> float:
        scores = scores.clone()
        scores[owner, seen] = -1
        scores[:, 0] = -1
        at_target = scores.gather(1, targets[:, None])
        return float(((scores > at_target).sum(1) < 10).double().mean())

    by_popularity = hit_rate(popularity.expand(data.num_users, -1))
    last = seen[seen_offsets[1:] - 1]
    by_markov = hit_rate(follows[last] + 1e-6 * popularity)
    labels = data.labels
    assert labels is not None
    in_subtheme = labels.item_subtheme[None] == labels.user_subtheme[:, None]
    by_intent = hit_rate(popularity * (0.01 + in_subtheme))
    assert by_popularity < 0.1
    assert by_markov > 3 * by_popularity
    assert by_intent > 3 * by_popularity


def test_untouched_items_stay_in_the_catalogue() -> None:
    data = synthetic(num_users=3, num_items=400)
    assert data.num_items == 400
    assert int(torch.bincount(data.values, minlength=401)[1:].bool().sum()) < 400
    assert data.items.decode([400]) == [data.items.ids[-1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_users": 0}, "num_users=0 must be"),
        ({"num_themes": 0}, "num_themes=0 must be"),
        ({"num_items": 31}, "num_items=31 must be at least 32"),
        ({"num_items": 9, "num_themes": 1}, "num_items=9 must be at least 10"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"num_users": 2.0}, r"num_users=2\.0 must be"),
    ],
)
def test_bad_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        synthetic(**arguments)


def test_written_sequences_read_back(tmp_path: Path) -> None:
    data = synthetic(num_users=40, num_items=50, num_themes=2, subthemes_per_theme=2)
    path = tmp_path / "synth.txt"
    write_sequences(data, path)
    again = load(path)
    assert again.report is not None
    assert again.report.format == "sequences"
    assert again.users.ids == list(range(1, 41))
    assert [again.items.decode(again.sequence(u)) for u in range(40)] == histories(data)
    assert [p.name for p in tmp_path.iterdir()] == ["synth.txt"]


def test_written_csv_reads_back(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    data = load({'quoted, "name"': ["a", "b,c", "a"], "u2": ["b,c", "a", "d"]})
    path = tmp_path / "data.csv"
    write_csv(data, path)
    assert path.read_text().startswith("user_id,item_id,timestamp\n")
    assert same(load(path), data)


def test_written_files_have_usual_permissions(tmp_path: Path) -> None:
    write_csv(load([[1, 2, 3]]), tmp_path / "ours.csv")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_writers_say_what_is_wrong(tmp_path: Path) -> None:
    data = load([[1, 2, 3]])
    for write in (write_csv, write_sequences):
        with pytest.raises(DataError, match="cannot be written: No such file or directory"):
            write(data, tmp_path / "absent" / "file")
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="cannot be written"):
            write(data, tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]  # no temporary left
    empty = data.replace(offsets=torch.tensor([0, 0, 3]), users=load([[1]] * 2, min_length=1).users)
    with pytest.raises(DataError, match="user 0 has no item to write"):
        write_sequences(empty, tmp_path / "x")


def test_importing_the_package_pulls_in_no_extra() -> None:
    code = (
        "import sys, adarec_fast.data; "
        "print([m for m in ('polars', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"

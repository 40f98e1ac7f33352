"""Published facts of the paper's data sets, and RecBole's MovieLens file.

Set ADAREC_FAST_DATA to a folder that holds Beauty.txt and Toys_and_Games.txt
(``adarec-fast data get`` fetches them).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from adarec_fast.data import Split, TrainingBatches, inspect, load

FACTS = {
    # users, items, interactions, mean, median, longest, training prefixes, sparse share
    "Beauty": (22_363, 12_101, 198_502, 8.9, 6, 204, 131_413, 0.509),
    "Toys_and_Games": (19_412, 11_924, 167_597, 8.6, 6, 550, 109_361, 0.536),
}


def real_file(name: str) -> Path:
    folder = os.environ.get("ADAREC_FAST_DATA")
    if not folder:
        pytest.skip("ADAREC_FAST_DATA names no folder with the paper's data sets")
    path = Path(folder) / f"{name}.txt"
    if not path.exists():
        pytest.skip(f"there is no {name}.txt in ADAREC_FAST_DATA")
    return path


@pytest.mark.parametrize("name", FACTS)
def test_facts(name: str) -> None:
    path = real_file(name)
    begin = time.process_time()
    data = load(path)
    seconds = time.process_time() - begin
    assert seconds < 1
    users, items, interactions, mean, median, longest, prefixes, sparse = FACTS[name]
    summary = inspect(data)
    assert (summary["users"], summary["items"], summary["interactions"]) == (
        users,
        items,
        interactions,
    )
    assert round(summary["length"]["mean"], 1) == mean
    assert summary["length"]["median"] == median
    assert summary["length"]["max"] == longest
    assert summary["training_prefixes"] == prefixes
    assert round(summary["sparse_share"], 3) == sparse
    assert summary["repeated_test_targets"] == 0
    # The files number items from 1 without gaps, so indices are the ids.
    assert data.items.ids == list(range(1, items + 1))
    assert data.users.ids == list(range(1, users + 1))
    batches = TrainingBatches(*Split(data).inputs("train"), batch_size=256, max_length=50, seed=0)
    assert batches.num_examples == prefixes
    assert sum(batch.users.numel() for batch in batches.epoch(0)) == prefixes


def test_a_blank_line_at_the_end_changes_nothing(tmp_path: Path) -> None:
    path = real_file("Beauty")
    copy = tmp_path / "Beauty.txt"
    copy.write_bytes(path.read_bytes() + b"\n")
    assert load(copy).values.equal(load(path).values)


@pytest.mark.network
def test_movielens_of_recbole(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries", "0",
               "--timeout", "15", "recbole==1.2.1", "--dest", str(tmp_path)]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("the package registry does not answer")
    if done.returncode:
        pytest.skip(f"recbole cannot be fetched: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(tmp_path.glob("recbole-*.whl"))) as wheel:
        member = next(n for n in wheel.namelist() if n.endswith("ml-100k/ml-100k.inter"))
        path = tmp_path / "ml-100k.inter"
        path.write_bytes(wheel.read(member))
    data = load(path)
    assert (data.num_users, data.num_items, data.num_interactions) == (943, 1682, 100_000)
    assert data.report is not None
    assert data.report.format == "inter"
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    expected: dict[int, list[tuple[float, int]]] = {}
    for user, item, _, when in rows:
        expected.setdefault(int(user), []).append((float(when), int(item)))
    assert data.users.ids == list(expected)
    for index, history in enumerate(expected.values()):
        history.sort(key=lambda pair: pair[0])
        assert data.items.decode(data.sequence(index)) == [item for _, item in history]

"""``python -m bench.peers``: what can be tried without the libraries that it compares with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from adarec_fast.data import InteractionData, Split, synthetic, write_sequences  # noqa: E402
from bench.peers.cli import main, row, worker  # noqa: E402
from bench.peers.ours import Ours, PlainSASRec  # noqa: E402
from bench.peers.settings import Clock, Settings, ndcg_and_hit_rate, training_part  # noqa: E402
from bench.peers.worker import run  # noqa: E402

SETTINGS = Settings(hidden_size=16, layers=1, heads=2, dropout=0.1, batch_size=32)


@pytest.fixture(scope="module")
def data() -> InteractionData:
    return synthetic(120, 40, seed=0)


@pytest.mark.parametrize("compiled", [None, False])
def test_a_system_learns_and_its_vectors_rank(
    data: InteractionData, compiled: bool | None
) -> None:
    split = Split(data)
    peer = (Ours("sasrec", split, SETTINGS) if compiled is None
            else PlainSASRec(split, SETTINGS, compiled))  # fmt: skip
    before = ndcg_and_hit_rate(peer, split, 5)
    clock = Clock(0)
    peer.train(clock, None, 12)
    assert len(clock.wall) == len(clock.cpu) == 12 * peer.steps_per_epoch
    assert peer.steps_per_epoch == 4
    assert ndcg_and_hit_rate(peer, split, 5)["NDCG@5"] > 1.2 * before["NDCG@5"]


def test_so_many_steps_are_counted_after_those_that_are_not(data: InteractionData) -> None:
    clock = Clock(2)
    Ours("adarec", Split(data), SETTINGS).train(clock, 7, 1)  # into the second epoch
    assert len(clock.wall) == 5


def test_ranks_are_of_unseen_items(data: InteractionData) -> None:
    split = Split(data)

    class Told:
        """Scores: the seen items first, then the target."""

        def vectors(self, histories: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
            users = torch.zeros(len(histories), data.num_items)
            for place, history in zip(users, histories, strict=True):
                place[torch.tensor(history) - 1] = 2.0
            users[torch.arange(len(histories)), split.targets("valid") - 1] += 1.0
            return users, torch.eye(data.num_items)

    assert ndcg_and_hit_rate(Told(), split, 1)["HR@1"] == 1.0  # type: ignore[arg-type]
    values, offsets = split.inputs("train")
    parts = training_part(split)
    assert [item for part in parts for item in part] == values.tolist()
    assert [len(part) for part in parts] == offsets.diff().tolist()


def test_a_worker_tells_what_it_took(data: InteractionData, tmp_path: Path) -> None:
    path = tmp_path / "events.txt"
    write_sequences(data, path)
    found = run("sasrec", str(path), 2, 1, 1, torch.get_num_threads())
    assert len(found["cpu_seconds"]) == 2
    assert found["peak_bytes"] >= found["base_bytes"] > 0
    line = row([{**found, "allocator_tuned": False}] * 2)
    assert line["step_cpu_seconds"]["steps"] == 4
    assert line["epoch_cpu_seconds"] == pytest.approx(
        line["step_cpu_seconds"]["median"] * found["steps_per_epoch"]
    )
    json.dumps(line)
    with pytest.raises(RuntimeError, match=r"(?s)packed SASRec: .*nowhere"):
        worker("packed SASRec", tmp_path / "nowhere.txt", False, ["--steps", "1"])


def test_no_rounds_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.peers", "--data", "none.csv", "--rounds", "0"])
    with pytest.raises(SystemExit):
        main()
    assert "--rounds 0 must be at least 1" in capsys.readouterr().err

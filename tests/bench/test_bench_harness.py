"""How the benchmarks time and check: interleaved rounds, replays, memory, wrong variants."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from adarec_fast import ragged  # noqa: E402
from adarec_fast.reference.depth_controller import (  # noqa: E402
    depth_controller as reference_controller,
)
from bench.baselines import library_gru  # noqa: E402
from bench.cell import Cell, Group, Session  # noqa: E402
from bench.harness import (  # noqa: E402
    EAGER,
    PACKED,
    Prepared,
    Subject,
    Unavailable,
    compare,
    interleaved,
    replay,
    replay_clock,
)
from bench.machine import peak_memory  # noqa: E402
from bench.test_bench_depth_controller import DepthController  # noqa: E402
from bench.test_bench_hda_trajectory import HDATrajectory  # noqa: E402
from bench.test_bench_score_topk import ScoreTopK  # noqa: E402
from bench.workloads import MAX_LENGTH  # noqa: E402


class _Toy(Subject):
    name, workload, size, direction, device = "toy", "train", 1, "forward", "cpu"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def prepare(self, variant: str) -> Prepared:
        if variant == "missing":
            raise Unavailable("not here")
        if variant == "broken":
            raise RuntimeError("does not run")
        wrong = "off by 1" if variant == "wrong" else None
        return Prepared(lambda: self.calls.append(variant), {"ours": variant == "a"}, wrong)


class _Sized(_Toy):
    def flops(self) -> int:
        return 1

    def bytes(self) -> int:
        return 1


class _Silent:
    """pytest-benchmark's fixture where benchmarks are disabled."""

    disabled = True

    def __init__(self) -> None:
        self.extra_info: dict[str, object] = {}

    def __call__(self, function: Callable[[], object]) -> None:
        function()


def test_rounds_are_interleaved_and_wrong_results_are_told() -> None:
    toy = _Toy()
    names = ["a", "b", "missing", "broken", "wrong"]
    found = compare(toy, names, seconds=0.0, least_rounds=3)
    assert [len(found[name].rounds) for name in found] == [3, 3, 0, 0, 3]
    assert found["missing"].unavailable == "not here"
    assert isinstance(found["broken"].error, RuntimeError)
    assert [found[name].complaint for name in ("a", "wrong")] == [None, "off by 1"]
    order = [key for key, _ in itertools.groupby(toy.calls)]
    assert order == ["a", "b", "wrong"] * 4  # one call each for its time, then the rounds


def test_what_comes_before_a_call_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A round of some calls, not of the thousands of so short a one that would fill 5 ms.
    monkeypatch.setattr("bench.harness._SHORTEST_ROUND", 5e-6)
    order: list[str] = []

    def before() -> None:
        order.append("before")
        time.sleep(0.02)

    prepared = Prepared(lambda: order.append("run"), before=before)
    rounds = interleaved({"a": prepared}, "cpu", 0.0, 3)
    assert len(rounds["a"]) == 3
    assert max(rounds["a"]) < 0.02
    assert order[::2] == ["before"] * (len(order) // 2)
    assert order[1::2] == ["run"] * (len(order) // 2)


def test_a_failed_check_is_recorded_with_its_time_and_fails_its_test() -> None:
    group = Group(_Toy, "train", 1, "forward", "cpu", 0.0, 3, ["wrong"])  # type: ignore[arg-type]
    group.subject = _Sized()
    group.outcomes = compare(group.subject, ["wrong"], seconds=0.0, least_rounds=3)
    session = Session("cpu", peaks={"gflops": 1.0, "gbps": 1.0})
    with pytest.raises(AssertionError, match="off by 1"):
        Cell(group, "wrong", session).run(_Silent())  # type: ignore[arg-type]
    (row,) = session.rows
    assert row["failed_check"] == "off by 1"
    assert row["seconds"]["rounds"] == 3


def test_replayed_rounds_take_as_long_as_measured() -> None:
    run = replay([0.25, 1.5])
    start = replay_clock()
    run()
    assert replay_clock() - start == pytest.approx(0.25)
    run()
    assert replay_clock() - start == pytest.approx(1.75)


def test_peak_memory_sees_what_is_freed_again() -> None:
    found = peak_memory(lambda: torch.ones(64 << 20, dtype=torch.uint8).max(), "cpu")
    if found is None:
        pytest.skip("this system does not tell a process its peak")
    assert 60 << 20 < found < 200 << 20


@pytest.mark.parametrize("case", [HDATrajectory, ScoreTopK])
def test_a_wrong_variant_is_caught(case: type[HDATrajectory] | type[ScoreTopK]) -> None:
    class Wrong(case):  # type: ignore[misc, valid-type]
        def packed(self, *arguments: object) -> object:
            first, second = super().packed(*arguments)
            return first * 1.001, second

    made = Wrong(case.workloads[0] if case is HDATrajectory else "serve-1", 16, "forward", "cpu")
    assert f"{case.name}: output 0: off by" in str(made.prepare(PACKED).complaint)


def test_the_librarys_gru_is_the_references() -> None:
    made = DepthController("train", 8, "forward+backward", "cpu")
    batch = made.batch.part(0, 9)
    t = {name: value.double().requires_grad_() for name, value in made.tensors.items()}
    padded = ragged.to_padded(t["embeddings"][: batch.tokens], batch.offsets, MAX_LENGTH)
    weights = [t[name] for name in ("w_ih", "w_hh", "b_hh", "w_out", "b_out")]
    found = []
    for function in (reference_controller, library_gru.depth_controller):
        logits, _ = function(padded, made.valid(batch), t["sequence_bias"][:9], *weights)
        gradients = torch.autograd.grad(logits.square().sum(), [*t.values()], retain_graph=True)
        found.append((logits, *gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_padded_baseline_in_chunks_has_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    made = HDATrajectory("train", 8, "forward+backward", "cpu")
    monkeypatch.setattr("bench.op_case.MEMORY_LIMIT", made.padded_floats() * 4 // 3)
    prepared = made.prepare(EAGER)
    assert prepared.complaint is None
    assert prepared.info["chunks"] == 4
    monkeypatch.setattr(HDATrajectory, "chunkable", False)
    with pytest.raises(Unavailable, match="GiB"):
        made.prepare(EAGER)

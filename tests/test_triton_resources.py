"""What the table of the kernels' resources complains about, without compiling anything."""

from __future__ import annotations

import os
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("there is nothing to compile when interpreted", allow_module_level=True)

pytest.importorskip("triton")

import triton

from adarec_fast.kernels import _heuristics, _launch, _mlp
from adarec_fast.kernels._launch import recording
from adarec_fast.ops._library import implementation
from bench import triton_resources
from bench.triton_examples import EXAMPLES, _precision, fingerprint, launches

KEY = "hda_trajectory/forward_kernel[NOISE]/64/tf32/sm_86"
ROW = {
    "registers": 200, "spill_instructions": 0, "stack_bytes": 0, "shared_bytes": 50_000,
    "warps": 8, "blocks_per_multiprocessor": 1, "occupancy_percent": 17, "source": "0",
}  # fmt: skip


def found(key: str = KEY, version: str | None = None, **changes: Any) -> list[str]:
    table = {"versions": {"triton": version or triton.__version__}, "kernels": {KEY: ROW}}
    return triton_resources.complaints({key: {**ROW, **changes}}, table)


def test_the_same_and_better_are_fine() -> None:
    assert not found()
    assert not found(shared_bytes=40_000, registers=255, blocks_per_multiprocessor=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("spill_instructions", 2), ("stack_bytes", 8), ("shared_bytes", 50_001),
     ("blocks_per_multiprocessor", 0)],
)  # fmt: skip
def test_worse_is_not(name: str, value: int) -> None:
    assert any(str(value) in line for line in found(**{name: value}))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"spill_instructions": 1}, "spills"), ({"stack_bytes": 8}, "spills"),
     ({"shared_bytes": 99 * 1024 + 1}, "shared memory")],
)  # fmt: skip
def test_limits_of_sm_86_hold_whatever_the_table_says(
    changes: dict[str, int], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROW", {**ROW, **changes})
    assert len(found()) == 1
    assert complaint in found()[0]


def test_another_triton_is_not_compared() -> None:
    assert not found(version="1.0", shared_bytes=60_000)
    assert found(version="1.0", shared_bytes=200_000)


def test_a_missing_row_is_told() -> None:
    other = KEY.replace("sm_86", "sm_80")
    assert found(other) == [f"{other} is not in the table; write it with --stale"]


def test_fingerprints_change_with_tiles_and_with_what_a_kernel_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def now() -> dict[str, str]:
        return {
            name: fingerprint(launch)
            for name, launch in launches("mlp_expert", 64, "tf32", 86, False).items()
        }

    before = now()
    assert before == now()
    assert len(set(before.values())) == len(before) == 3
    key = ("mlp_forward", 64, "tf32")
    monkeypatch.setitem(_heuristics._TABLE, key, _heuristics.Tile(16, 16, 4))
    assert {name.split("[")[0] for name, old in before.items() if now()[name] != old} == {
        "forward_kernel"
    }
    monkeypatch.undo()
    # All three call it, two of them through another function.
    monkeypatch.setattr(_mlp.hidden_before, "_src", _mlp.hidden_before.src + "\n    # changed")
    assert all(now()[name] != old for name, old in before.items())


@pytest.mark.parametrize(
    ("architecture", "precision", "size", "alone"),
    [(86, "tf32", 128, True), (89, "tf32", 128, True), (80, "tf32", 128, False),
     (90, "tf32", 128, False), (120, "tf32", 128, False), (86, "half", 128, False),
     (80, "tf32", 64, True), (90, "ieee", 64, True)],
)  # fmt: skip
def test_the_fused_trajectory_is_one_kernel_where_it_does_not_spill(
    architecture: int, precision: str, size: int, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_launch.MULTIPROCESSORS, 120, 170)
    example = next(EXAMPLES["fused_trajectory"](size))
    with recording(architecture) as started, _precision(precision):
        implementation("fused_trajectory", "triton").fwd(*example.forward)
    names = [launch.kernel.__name__ for launch in started]
    assert (names == ["_trajectory_kernel"]) == alone
    assert ("_trajectory_kernel" in names) == alone

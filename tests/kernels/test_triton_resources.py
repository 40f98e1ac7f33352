"""The table of the kernels' resources and what it complains about, without compiling anything."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("there is nothing to compile when interpreted", allow_module_level=True)

pytest.importorskip("triton")

import torch
import triton

from adarec_fast.kernels import _heuristics, _launch, _mlp
from adarec_fast.kernels._launch import recording
from adarec_fast.ops._library import implementation
from bench import triton_resources, triton_table
from bench.triton_examples import EXAMPLES, _precision, fingerprint, launches
from bench.triton_resources import expected

KEY = "hda_trajectory/forward_kernel[NOISE]/64/tf32/sm_86"
ROW = {
    "registers": 200, "spill_instructions": 0, "stack_bytes": 0, "shared_bytes": 50_000,
    "warps": 8, "blocks_per_multiprocessor": 1, "occupancy_percent": 17, "source": "0",
}  # fmt: skip


def found(name: str = KEY, known: bool = True, **changes: Any) -> list[str]:
    return triton_table.complaints({name: {**ROW, **changes}}, {KEY: ROW} if known else None)


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


def test_an_unknown_triton_is_not_compared() -> None:
    assert not found(known=False, shared_bytes=60_000)
    assert found(known=False, shared_bytes=200_000)


def test_a_missing_row_is_told() -> None:
    other = KEY.replace("sm_86", "sm_80")
    assert found(other) == [f"{other} is not in the table; write it with --stale"]


def test_every_triton_of_the_table_fits_sm_86() -> None:
    """Of today's kernels and with compilers that are not installed: nothing spills."""
    table = triton_table.read()
    sources = {str(key): fingerprint(launch) for key, launch in expected(architectures=(86,))}
    assert not triton_table.looked_up(sources, table, table)


def test_rows_are_looked_up_without_compiling() -> None:
    def said(**changes: Any) -> list[str]:
        table = {"3.1": {KEY: ROW}, "3.2": {KEY: {**ROW, **changes}}}
        return triton_table.looked_up({KEY: "0"}, table, table)

    assert not said()
    assert [line.startswith("triton 3.2") and "spills" in line for line in said(stack_bytes=8)]
    (stale,) = said(source="1")
    assert "python -m bench.triton_resources --stale where triton 3.2 is installed" in stale
    assert KEY in triton_table.looked_up({KEY: "0"}, {"3.1": {}}, ["3.1"])[0]


def test_a_triton_writes_rows_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    assert triton_table.read(path) == {}
    amd = {k: v for k, v in ROW.items() if not k.startswith(("blocks", "occupancy"))}
    triton_table.replace("3.1", "2.0", {"b": ROW, "a": amd}, path)
    triton_table.replace("3.2", "2.1", {"c": ROW}, path)
    triton_table.replace("3.2", "2.2", {"d": ROW}, path)
    assert triton_table.read(path) == {"3.1": {"a": amd, "b": ROW}, "3.2": {"d": ROW}}
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["versions"] == {"3.1": {"torch": "2.0"}, "3.2": {"torch": "2.2"}}
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


def test_only_new_sources_are_compiled_and_all_is_saved_on_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[int] = []

    def compile_launch(launch: _launch.Launch, architecture: int) -> dict[str, int]:
        compiled.append(architecture)
        return {"warps": len(compiled)}

    monkeypatch.setattr(triton_resources, "compile_launch", compile_launch)
    monkeypatch.setattr(triton_resources, "SECONDS", -1.0)
    # There is no product in dropout's kernel, so their precision does not matter.
    wanted = list(expected(["dropout"], [86, 89], [64]))
    saved: list[int] = []
    rows = triton_resources.measure(wanted, {}, lambda rows: saved.append(len(rows)))
    assert compiled == [86, 89]
    assert saved == [1, 2, 3, 4, 5]
    assert list(rows) == [str(key) for key, _ in wanted]
    assert {row["warps"] for name, row in rows.items() if name.endswith("sm_89")} == {2}
    known = {name: row for name, row in rows.items() if name.endswith("64/tf32/sm_86")}
    triton_resources.measure(wanted, known, lambda rows: None)
    assert compiled == [86, 89, 89]


def test_an_unknown_triton_is_said_to_be_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(triton_resources, "read", lambda: {"1.0": {KEY: {**ROW, "source": "1"}}})
    (stale,) = triton_resources.check({KEY: ROW})
    assert stale.startswith("triton 1.0: 1 rows are missing or of other source code")
    assert triton.__version__ in capsys.readouterr().out


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
    assert len(set(before.values())) == len(before) == 4
    key = ("mlp_forward", 64, "tf32")
    monkeypatch.setitem(_heuristics._TABLE, key, _heuristics.Tile(16, 16, 4))
    assert {name.split("[")[0] for name, old in before.items() if now()[name] != old} == {
        "forward_kernel"
    }
    monkeypatch.undo()
    # All but the reduction call it, two of them through another function.
    monkeypatch.setattr(_mlp.hidden_before, "_src", _mlp.hidden_before.src + "\n    # changed")
    same = [name.split("[")[0] for name, old in before.items() if now()[name] == old]
    assert same == ["sum_kernel"]


@pytest.mark.parametrize(
    ("architecture", "precision", "size", "alone"),
    [(86, "tf32", 128, False), (89, "tf32", 128, False), (80, "tf32", 128, False),
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


@pytest.mark.parametrize("rows", [256, 8192])
def test_logits_of_a_million_items_are_never_in_memory(rows: int) -> None:
    """All that a pass makes, beside its gradients, is far less than them."""
    items, size = 1_000_000, 64
    hidden, weight = torch.empty(rows, size), torch.empty(items + 1, size)
    targets = torch.ones(rows, dtype=torch.int64)
    code = implementation("linear_cross_entropy", "triton")
    with recording(90) as started:
        _, d_hidden, state = code.fwd(hidden, weight, targets, True)
        code.bwd(torch.ones(()), d_hidden, state, hidden, weight, targets)
    made = {
        value.data_ptr(): value.numel() * value.element_size()
        for launch in started for value in launch.arguments.values()
        if isinstance(value, torch.Tensor) and value.data_ptr() not in
        (hidden.data_ptr(), weight.data_ptr(), targets.data_ptr())
    }  # fmt: skip
    gradient = weight.numel() * weight.element_size()
    assert gradient in made.values()
    assert sum(made.values()) - gradient < 64 * 2**20 < rows * items * 4 / 15
    first, last = started[0], started[-1]
    covered = first.grid[1] * first.arguments["tiles"] * first.arguments["COLUMNS"]
    assert covered >= items
    assert last.grid[0] * last.arguments["COLUMNS"] > items

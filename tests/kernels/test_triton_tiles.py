"""Results do not depend on tile shapes; run by test_triton_interpreter.py."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import Backend, Batch, OpCase, evaluate, random_batch
from helpers_accuracy import check_against_float64

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "these kernels run interpreted; test_triton_interpreter.py starts this file with "
        "TRITON_INTERPRET=1",
        allow_module_level=True,
    )

pytest.importorskip("triton")

import test_choose_depth
import test_depth_controller
import test_dropout
import test_embedding
import test_encoder_layer
import test_hda_trajectory
import test_length_bias
import test_level_biases
import test_level_infonce
import test_level_pool
import test_linear_cross_entropy
import test_local_path
import test_memory_topk
import test_mlp_expert
import test_mlp_expert_pooled
import test_moe_aggregate
import test_objective
import test_score_topk
from helpers_suite import EXTREMES, OpSuite

from adarec_fast.kernels import _heuristics, linear_cross_entropy
from adarec_fast.kernels._launch import operands, pairs_a_program, recording
from adarec_fast.ops import linear_cross_entropy as ops_cross_entropy
from adarec_fast.ops import score_topk

SUITES: tuple[type[OpSuite], ...] = tuple(
    value
    for module in (
        test_choose_depth, test_depth_controller, test_dropout, test_encoder_layer,
        test_hda_trajectory, test_embedding, test_length_bias, test_level_biases,
        test_level_infonce, test_level_pool, test_linear_cross_entropy, test_local_path,
        test_mlp_expert, test_mlp_expert_pooled, test_moe_aggregate, test_objective,
        test_score_topk, test_memory_topk,
    )
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, OpSuite) and value is not OpSuite
)
CASES = [
    pytest.param(suite.op, build, id=f"{suite.op}-{name}")
    for suite in SUITES
    for name, build in suite.variants.items()
]
# What a model's step runs too (test_triton_step.py), or another of these beside more.
REPEATED = (
    "encoder_layer-plain", "encoder_layer-last", "hda_trajectory-none", "memory_topk-best",
    "memory_topk-nothing", "mlp_expert-plain", "mlp_expert-last", "mlp_expert-dropout",
    "mlp_expert_pooled-plain", "mlp_expert_pooled-dropout", "linear_cross_entropy-plain",
)


def first_of_each(cases: list[Any]) -> list[Any]:
    """The same, of which all but an op's first variant are long sweeps."""
    seen: set[str] = set()
    marked = []
    for case in cases:
        op = case.values[0]
        marks = [pytest.mark.slow] if op in seen else []
        marked.append(pytest.param(*case.values, id=case.id, marks=marks))
        seen.add(op)
    return marked


def _backend(op: str) -> Backend:
    return Backend(op, "triton", "cpu")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("op", "build"),
    [
        pytest.param(*case.values, id=case.id, marks=[pytest.mark.slow] * (case.id in REPEATED))
        for case in CASES
    ],
)
def test_equals_the_float64_reference(op: str, build: object) -> None:
    ragged = random_batch(4, size=16, max_depth=5, max_length=9, capacity=3, seed=1)
    for batch in (ragged, EXTREMES["one-token"], EXTREMES["empty-with-capacity"]):
        check_against_float64(build(batch), _backend(op), torch.float32)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("op", "build"), first_of_each(CASES))
def test_bfloat16_and_autocast(op: str, build: object) -> None:
    batch = random_batch(3, size=32, capacity=1)
    check_against_float64(build(batch), _backend(op), torch.bfloat16)
    check_against_float64(build(batch), _backend(op), torch.float32, autocast=True)


PRODUCTS = (
    "depth_controller", "encoder_layer", "hda_trajectory", "level_infonce", "mlp_expert",
    "moe_aggregate",
)
# Forms that no kernel has yet.
IN_PACKED = ("bounded", "residual")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("op", "build"), first_of_each([c for c in CASES if c.values[0] in PRODUCTS])
)
def test_tf32(op: str, build: object, request: pytest.FixtureRequest) -> None:
    backend = _backend(op)
    if backend.device == "cpu" and any(form in request.node.callspec.id for form in IN_PACKED):
        pytest.skip("packed PyTorch computes this form, and rounds nothing on a CPU")
    batch = random_batch(4, size=16, max_depth=5, capacity=3, seed=1)
    check_against_float64(build(batch), backend, torch.float32, tf32=True)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("size", [20, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("op", "build"), first_of_each(CASES))
def test_other_sizes(op: str, build: object, size: int) -> None:
    check_against_float64(
        build(random_batch(2, size=size, max_length=3)), _backend(op), torch.float32
    )


BATCHES = {name: replace(batch, size=13) for name, batch in EXTREMES.items()}
BATCHES["wide"] = random_batch(3, size=256, max_length=3)
IN_BRIEF = ("one-sequence", "full-length", "depth-0", "empty-with-capacity", "wide")
STREAMING = (
    "depth_controller", "length_bias", "level_infonce", "linear_cross_entropy", "score_topk"
)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(batch, id=name, marks=[pytest.mark.slow] * (name not in IN_BRIEF))
        for name, batch in BATCHES.items()
    ],
)
@pytest.mark.parametrize(
    ("op", "build"), first_of_each([c for c in CASES if c.values[0] in STREAMING])
)
def test_extreme_batches(op: str, build: object, batch: Batch) -> None:
    check_against_float64(build(batch), _backend(op), torch.float32)


@pytest.mark.parametrize("k", [1, pytest.param(130, marks=pytest.mark.slow)])
def test_ranking_in_rounds_and_parts(k: int) -> None:
    g = torch.Generator().manual_seed(0)
    users = torch.randint(-2, 3, (19, 5), generator=g).float()
    items = torch.randint(-1, 2, (131, 5), generator=g).float()
    items[[7, 129]] = float("nan")
    offsets = torch.arange(20) * 3
    seen = torch.randint(0, 131, (57,), generator=g)
    wanted = score_topk(users, items, seen, offsets, k, backend="reference")
    scores, best = score_topk(users, items, seen, offsets, k, backend="triton")
    assert torch.equal(best, wanted[1])
    torch.testing.assert_close(scores, wanted[0], rtol=0, atol=0, equal_nan=True)


LISTS = {
    "borders": [[128, 129, 1, 300, 257, 256], [], [300], [1], [129] * 5],
    "many": [list(range(300, 0, -1)), [], list(range(1, 301)) * 2, [5]],
    "all-alike": [[200] * 150, [200, 199] * 40, [200]],
    "nothing": [[], [], []],
}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "lists",
    [
        pytest.param(lists, id=name, marks=[pytest.mark.slow] * (name == "many"))
        for name, lists in LISTS.items()
    ],
)
def test_seen_items_of_any_number_in_any_order(lists: list[list[int]]) -> None:
    g = torch.Generator().manual_seed(1)
    users = torch.randint(-2, 3, (len(lists), 5), generator=g).float()
    items = torch.randint(-1, 2, (301, 5), generator=g).float()
    offsets = torch.tensor([0, *map(len, lists)]).cumsum(0)
    # What is behind the last list belongs to nobody.
    seen = torch.tensor([*(item for one in lists for item in one), 7, 8])
    # All of a catalogue take the interpreter half a minute: once.
    asked = [(9, float("-inf")), (40, 0.0), (40, 9.0)]
    for k, score in [*asked, (300, 9.0)] if len(lists) == len(LISTS["borders"]) else asked:
        arguments = (users, items, seen, offsets, k)
        wanted = score_topk(
            *arguments[:2], seen[: offsets[-1]], *arguments[3:], seen_score=score,
            backend="reference",
        )
        found = score_topk(*arguments, seen_score=score, backend="triton")
        for got, want in zip(found, wanted, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize(
    "op",
    [
        "depth_controller", "encoder_layer", "hda_trajectory", "length_bias", "level_infonce",
        "linear_cross_entropy", "mlp_expert", "moe_aggregate",
    ],
)
def test_tile_shapes_change_nothing_but_rounding(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = next(s for s in SUITES if s.op == op)
    case: OpCase = list(suite.variants.values())[:2][-1](random_batch(8, size=16, max_depth=3))
    default = evaluate(case, "triton", torch.float32)
    small = {key: _heuristics.Tile(16, 16, 4) for key in _heuristics._TABLE}
    monkeypatch.setattr(_heuristics, "_TABLE", small)
    other = evaluate(case, "triton", torch.float32)
    for one, two in zip(default.outputs, other.outputs, strict=True):
        torch.testing.assert_close(one, two)
    for name, one in default.gradients.items():
        torch.testing.assert_close(one, other.gradients[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("op", "build"),
    first_of_each([c for c in CASES if c.values[0] in ("hda_trajectory", "mlp_expert")]),
)
def test_levels_side_by_side_or_one_after_the_other(
    op: str, build: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = build(random_batch(4, size=16, max_depth=7, max_length=5, capacity=3, seed=2))
    found = []
    for pairs in (1, 2, 4):
        module = importlib.import_module(f"adarec_fast.kernels.{op}")
        monkeypatch.setattr(module, "pairs_a_program", lambda *_, n=pairs, **__: n)
        check_against_float64(case, _backend(op), torch.float32)
        found.append(evaluate(case, "triton", torch.float32))
    # A level is computed by one program, whoever has the others.
    assert all(torch.equal(one.outputs[0], found[0].outputs[0]) for one in found)


def test_levels_are_shared_out_where_tiles_do_not_fill_the_device() -> None:
    with recording(90):
        cpu = torch.device("cpu")
        assert pairs_a_program(1792, 8, cpu) == 4  # 57,344 tokens
        assert pairs_a_program(56, 8, cpu) == 2  # 1,792: 112 programs for 132 multiprocessors
        assert pairs_a_program(80, 8, cpu) == 1  # rounds of 1.25 pairs instead of one of 4.25
        assert pairs_a_program(80, 8, cpu, extra=0.6) == 4
        assert pairs_a_program(8, 9, cpu) == 1
        assert pairs_a_program(0, 8, cpu) == 4
        assert pairs_a_program(5, 1, cpu) == 1


def test_parts_of_the_catalogue_and_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits whose sums are merged, slices that are added; the interpreter has 2 processors."""
    monkeypatch.setattr(linear_cross_entropy, "SPLIT", 1)
    monkeypatch.setattr(linear_cross_entropy, "SLICE", 1)
    for rows, items in ((3, 900), (200, 150), (150, 10)):
        case = test_linear_cross_entropy.build(random_batch(rows, size=20), items=items)
        check_against_float64(case, _backend("linear_cross_entropy"), torch.float32)


@pytest.mark.slow
def test_float16_holds_the_slopes_of_many_items() -> None:
    """Each of 20,000 items has a probability of 5e-5, which float16 has no normal number for."""
    case = test_linear_cross_entropy.build(random_batch(16, size=16), items=20_000)
    tensors = {
        name: value.half() if value.is_floating_point() else value
        for name, value in case.arguments.items() if value is not None
    }  # fmt: skip
    tensors["weight"] *= 0.1
    found = []
    for dtype, backend in ((torch.float16, "triton"), (torch.float64, "reference")):
        leaves = [tensors[name].to(dtype).requires_grad_() for name in ("hidden", "weight")]
        loss = ops_cross_entropy(*leaves, tensors["targets"], backend=backend)
        # As a gradient scaler does: the gradients themselves are float16.
        found.append([loss / 256, *torch.autograd.grad(loss * 2.0**14, leaves)])
    for got, want in zip(*found, strict=True):
        off = (got.double() - want).abs().max()
        assert off < 2e-3 * want.abs().max()
    others = torch.ones(20_001, dtype=torch.bool)
    others[tensors["targets"]] = False
    got, want = (each[2][others].double() for each in found)
    assert (got - want).norm() < 2e-3 * want.norm()


@pytest.mark.parametrize("processors", [82, 132])
def test_parts_cover_a_walk_and_fill_the_device(processors: int) -> None:
    for tiles in (0, 1, 2, 7, 190, 15_626):
        for programs in (0, 1, 4, 128, 938):
            parts, each = linear_cross_entropy._parts(tiles, 2, programs, processors)
            assert parts >= 1
            assert (parts - 1) * each < max(1, tiles) <= max(1, parts * each)
            if programs:
                assert parts * programs >= min(processors, tiles // 2 * programs)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "last_only", [pytest.param(False, marks=pytest.mark.slow), True], ids=["all", "last"]
)
def test_sequences_longer_than_a_tile(last_only: bool) -> None:
    batch = Batch((1, 70, 3, 40), (1, 2, 0, 2), size=20, capacity=3, max_length=70)
    case = test_encoder_layer.build(batch, dropout=(0.3, 0.2), last_only=last_only)
    case.options["max_length"] = batch.max_length
    check_against_float64(case, _backend("encoder_layer"), torch.float32)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("heads", "size", "last_only"),
    [
        (4, 20, False), (1, 16, True), (3, 24, True),
        pytest.param(1, 20, False, marks=pytest.mark.slow),
        pytest.param(4, 20, True, marks=pytest.mark.slow),
    ],
)
def test_other_numbers_of_heads(heads: int, size: int, last_only: bool) -> None:
    batch = random_batch(3, size=size, capacity=2, seed=3)
    case = test_encoder_layer.build(batch, dropout=(0.2, 0.0), last_only=last_only)
    case.options["heads"] = heads
    check_against_float64(case, _backend("encoder_layer"), torch.float32)


def test_sizes_beyond_the_chip_are_refused() -> None:
    suite = next(s for s in SUITES if s.op == "level_pool")
    case = next(iter(suite.variants.values()))(random_batch(1, size=300))
    with pytest.raises(ValueError, match="D=300"):
        evaluate(case, "triton", torch.float32)


def test_float64_is_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        operands(torch.zeros(1, dtype=torch.float64))

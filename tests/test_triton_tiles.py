"""Results do not depend on tile shapes; run by test_triton_interpreter.py."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from helpers import Backend, Batch, OpCase, check_against_float64, evaluate, random_batch

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
import test_encoder_layer
import test_hda_trajectory
import test_length_bias
import test_level_infonce
import test_level_pool
import test_mlp_expert
import test_moe_aggregate
import test_score_topk
from helpers_suite import EXTREMES, OpSuite

from adarec_fast.kernels import _heuristics
from adarec_fast.kernels._launch import operands
from adarec_fast.ops import score_topk

SUITES: tuple[type[OpSuite], ...] = tuple(
    value
    for module in (
        test_choose_depth, test_depth_controller, test_dropout, test_encoder_layer,
        test_hda_trajectory, test_length_bias, test_level_infonce, test_level_pool,
        test_mlp_expert, test_moe_aggregate, test_score_topk,
    )
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, OpSuite) and value is not OpSuite
)
CASES = [
    pytest.param(suite.op, build, id=f"{suite.op}-{name}")
    for suite in SUITES
    for name, build in suite.variants.items()
]


def _backend(op: str) -> Backend:
    return Backend(op, "triton", "cpu")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("op", "build"), CASES)
def test_equals_the_float64_reference(op: str, build: object) -> None:
    ragged = random_batch(4, size=16, max_depth=5, max_length=9, capacity=3, seed=1)
    for batch in (ragged, EXTREMES["one-token"], EXTREMES["empty-with-capacity"]):
        check_against_float64(build(batch), _backend(op), torch.float32)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("op", "build"), CASES)
def test_bfloat16_and_autocast(op: str, build: object) -> None:
    batch = random_batch(3, size=32, capacity=1)
    check_against_float64(build(batch), _backend(op), torch.bfloat16)
    check_against_float64(build(batch), _backend(op), torch.float32, autocast=True)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("size", [20, 128])
@pytest.mark.parametrize(("op", "build"), CASES[::2])
def test_other_sizes(op: str, build: object, size: int) -> None:
    check_against_float64(
        build(random_batch(2, size=size, max_length=3)), _backend(op), torch.float32
    )


BATCHES = {name: replace(batch, size=13) for name, batch in EXTREMES.items()}
BATCHES["wide"] = random_batch(3, size=256, max_length=3)
STREAMING = ("depth_controller", "length_bias", "level_infonce", "score_topk")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize(("op", "build"), [c for c in CASES if c.values[0] in STREAMING])
def test_extreme_batches(op: str, build: object, batch: Batch) -> None:
    check_against_float64(build(batch), _backend(op), torch.float32)


def test_ranking_in_rounds_and_parts() -> None:
    g = torch.Generator().manual_seed(0)
    users = torch.randint(-2, 3, (19, 5), generator=g).float()
    items = torch.randint(-1, 2, (131, 5), generator=g).float()
    items[[7, 129]] = float("nan")
    offsets = torch.arange(20) * 3
    seen = torch.randint(0, 131, (57,), generator=g)
    for k in (1, 130):
        wanted = score_topk(users, items, seen, offsets, k, backend="reference")
        scores, best = score_topk(users, items, seen, offsets, k, backend="triton")
        assert torch.equal(best, wanted[1])
        torch.testing.assert_close(scores, wanted[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "op",
    [
        "depth_controller", "encoder_layer", "hda_trajectory", "length_bias", "level_infonce",
        "mlp_expert", "moe_aggregate",
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
@pytest.mark.parametrize("last_only", [False, True], ids=["all", "last"])
def test_sequences_longer_than_a_tile(last_only: bool) -> None:
    batch = Batch((1, 70, 3, 40), (1, 2, 0, 2), size=20, capacity=3, max_length=70)
    case = test_encoder_layer.build(batch, dropout=(0.3, 0.2), last_only=last_only)
    case.options["max_length"] = batch.max_length
    check_against_float64(case, _backend("encoder_layer"), torch.float32)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("heads", "size", "last_only"),
    [(1, 20, False), (4, 20, False), (1, 16, True), (3, 24, True), (4, 20, True)],
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

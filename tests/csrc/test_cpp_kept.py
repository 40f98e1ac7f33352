"""What a forward pass keeps for the backward pass: the same bits as computing it again."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import test_depth_controller
import test_embedding
import test_encoder_layer
import test_hda_trajectory
import test_level_infonce
import test_mlp_expert
import test_mlp_expert_pooled
import test_moe_aggregate
import torch
from helpers import Batch, OpCase, evaluate, random_batch

from adarec_fast import ops
from adarec_fast.ops import _library, extension

pytestmark = pytest.mark.skipif(
    extension.unavailable("cpp") is not None, reason="the C++ extension is not there"
)

LAYER = partial(test_encoder_layer.build, dropout=(0.3, 0.5))
SUITES = (
    test_mlp_expert.TestMLPExpert,
    test_mlp_expert_pooled.TestMLPExpertPooled,
    test_hda_trajectory.TestHdaTrajectory,
    test_depth_controller.TestDepthController,
    test_embedding.TestEmbedding,
    test_level_infonce.TestLevelInfoNCE,
    test_moe_aggregate.TestMoEAggregate,
)
BUILDERS: dict[str, Any] = {
    "layer": LAYER,
    "layer-plain": test_encoder_layer.build,
    "layer-last": partial(LAYER, last_only=True),
    "layer-whole": partial(LAYER, causal=False),
    **{f"{s.op}-{name}": build for s in SUITES for name, build in s.variants.items()},
}


def _cases(build: Any) -> list[OpCase]:
    """Sizes that are whole vectors or not, lengths beyond a tile, depths beyond four levels."""
    cases: list[OpCase] = [
        build(random_batch(60, size=16, max_depth=6, capacity=3)),
        build(Batch((70, 1, 5, 66), (2, 0, 1, 2), size=24, capacity=1, max_length=70)),
    ]
    for case in cases:
        if "max_length" in case.options:
            case.options["max_length"] = 70
    return cases


@pytest.mark.parametrize("name", BUILDERS)
def test_kept_or_computed_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in _cases(BUILDERS[name]):
        kept = evaluate(case, "cpp", torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr(_library, "KEPT_BYTES", 0)
            again = evaluate(case, "cpp", torch.float32)
        for key, value in kept.named().items():
            assert torch.equal(value, again.named()[key]), key


def _expert(x: torch.Tensor, **more: Any) -> torch.Tensor:
    size, hidden = x.shape[-1], 2 * x.shape[-1]
    generator = torch.Generator().manual_seed(0)
    shapes = ((hidden, size), (hidden,), (size, hidden), (size,), (size,), (size,))
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    offsets = torch.tensor([0, 2, x.shape[1]])
    return ops.mlp_expert(
        x, offsets, None, *weights, eps=1e-5, hidden_dropout=0.5, seed=torch.tensor([3]),
        max_length=8, backend="cpp", **more,
    )


def test_a_second_backward_pass_finds_what_the_first_one_found() -> None:
    x = torch.randn(3, 6, 8, requires_grad=True)
    loss = _expert(x).square().sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_budget_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 6, 8, requires_grad=True)
    saved = len(_expert(x).grad_fn.saved_tensors)  # type: ignore[union-attr]
    floats = 3 * 6 * (16 + 8 + 1 + 1)
    assert _library.keeps("cpp", floats)
    assert not _library.keeps("packed", floats)
    monkeypatch.setattr(_library, "KEPT_BYTES", 4 * floats - 1)
    assert len(_expert(x).grad_fn.saved_tensors) == saved - 1  # type: ignore[union-attr]


def test_what_is_not_the_forward_pass_s_is_refused() -> None:
    op = torch.ops.adarec_fast
    x, seed = torch.randn(2, 3, 8), torch.tensor([1, 0, 0])
    weights = (torch.randn(16, 8), torch.zeros(16), torch.randn(8, 16), *torch.randn(3, 8))
    inputs = (x, torch.tensor([0, 3]), None, *weights, 1e-5, 0.5, seed, 0, False, False, "cpp")
    y, kept = op.mlp_expert_keep(*inputs)
    op.mlp_expert_resume(torch.ones_like(y), kept, *inputs)
    with pytest.raises(ValueError, match=r"kept has shape \[6, 25\]; it must be \[6, 26\]"):
        op.mlp_expert_resume(torch.ones_like(y), kept[:, 1:], *inputs)
    with pytest.raises(_library.BackendError, match="'packed' has no mlp_expert_keep"):
        op.mlp_expert_keep(*inputs[:-1], "packed")
    torch.library.opcheck(
        op.mlp_expert_keep.default, inputs, test_utils=("test_schema", "test_faketensor")
    )

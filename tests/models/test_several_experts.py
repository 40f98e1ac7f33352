"""HP-MoE with more than two experts: what two are a case of, groups of levels, both paths."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from adarec_fast import ADARec, ADARecConfig, ConfigError, TrainConfig, ragged
from adarec_fast.data import Batch, Split, synthetic
from adarec_fast.models.adarec import several
from adarec_fast.packed.several_experts import several_experts as packed
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.reference.level_infonce import level_infonce
from adarec_fast.reference.moe_aggregate import moe_aggregate
from adarec_fast.reference.several_experts import gated, level_group, several_experts, shares
from adarec_fast.training import load_run, train

SMALL: dict[str, Any] = {
    "num_items": 40, "hidden_size": 8, "num_layers": 1, "max_length": 8, "max_depth": 4,
    "num_experts": 3, "backend": "packed",
}  # fmt: skip
VALUES = torch.tensor([3, 4, 9, 1, 2, 7, 5, 39, 40])
OFFSETS = torch.tensor([0, 2, 3, 9])
LEVELS, ROWS, SIZE = 4, 5, 3
DEPTH = torch.tensor([0, 3, 1, -1, 2])
REACHED = ragged.reached_levels(DEPTH, LEVELS)


def drawn(experts: int, seed: int = 0) -> list[Tensor]:
    """Inputs of Eq. 7 to 11: outputs, pooled, mass and the weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (experts, LEVELS, ROWS, SIZE), (LEVELS, ROWS, SIZE), (LEVELS, ROWS), (SIZE, SIZE),
        (LEVELS, SIZE), (experts - 1, SIZE), (experts - 1,), ((experts - 1) * SIZE,) * 2,
        ((experts - 1) * SIZE,),
    )  # fmt: skip
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    found[2] = found[2].abs() + 0.5
    return found


def batch(supervision: str = "prefix") -> Batch:
    targets = VALUES.flip(0) if supervision == "all" else torch.tensor([5, 6, 5])
    return Batch(VALUES, OFFSETS, targets, torch.arange(3))


def test_two_are_the_papers() -> None:
    outputs, pooled, mass, w1, bias, w2, b2, gate_w, gate_b = drawn(2)
    expected = moe_aggregate(
        outputs[0], outputs[1], pooled, REACHED, mass, w1, bias, w2[0], b2, gate_w, gate_b
    )
    user, gates, z = several_experts(
        outputs, pooled, REACHED, mass, w1, bias, w2, b2, gate_w, gate_b
    )
    for found, own in zip((user, gates[0], z[0], z[1]), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-13, atol=1e-15)
    levels = torch.randn(LEVELS, ROWS, SIZE, dtype=torch.float64)
    depth, targets = DEPTH.clamp(min=0), torch.tensor([1, 2, 3, 1, 2])
    for backend in ("reference", "packed"):
        torch.testing.assert_close(
            several.contrast(levels[None], depth, targets, 0.5, backend=backend),
            level_infonce(levels, depth, targets, 0.5), rtol=1e-13, atol=0.0,
        )  # fmt: skip
    model = ADARec(**{**SMALL, "num_experts": 2})
    assert not [name for name in model.state_dict() if "middle" in name]
    assert model.router.router_w2.shape == (8,)


def test_gates_are_shares() -> None:
    inputs = drawn(4)
    _, gates, _ = several_experts(*inputs[:2], REACHED, *inputs[2:])
    torch.testing.assert_close(gates.sum(0), REACHED.double(), rtol=1e-14, atol=1e-15)
    assert bool((gates[:, REACHED] > 0).all())
    # One expert's average alone where the others' gates vanish, a dimension at a time.
    z = torch.randn(4, ROWS, SIZE, dtype=torch.float64)
    bias = torch.zeros(3, SIZE, dtype=torch.float64)
    bias[1] = 1e3
    alone = gated(z, torch.zeros(9, 9, dtype=torch.float64), bias.flatten())
    assert torch.equal(alone, z[1])
    assert shares(torch.zeros(2, 1)).flatten().tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.usefixtures("poisoned")
def test_both_paths_are_differentiable_and_alike() -> None:
    inputs = drawn(3)
    # Beyond a depth there may be anything.
    inputs[0][:, ~REACHED], inputs[1][~REACHED] = torch.nan, torch.nan
    kept = [torch.where(REACHED[..., None], inputs[1], 0.0)]
    found = []
    for dense in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        if dense:
            content = torch.where(REACHED[..., None], leaves[1], torch.zeros_like(kept[0]))
            user, gates, z = several_experts(leaves[0], content, REACHED, *leaves[2:])
        else:
            user, gates, z = packed(leaves[0], leaves[1], DEPTH, *leaves[2:])
        user.square().sum().backward()
        found.append([user.detach(), gates.detach(), z.detach(), *(one.grad for one in leaves)])
    assert found[0][0][3].tolist() == [0.0] * SIZE  # capacity
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    chosen = [one.nan_to_num().requires_grad_() for one in inputs]
    assert gradcheck(lambda *given: packed(*given[:2], DEPTH, *given[2:])[0], chosen)
    assert gradcheck(
        lambda *given: several_experts(*given[:2], REACHED, *given[2:])[0], chosen
    )


def test_levels_are_divided_among_the_experts() -> None:
    depth = torch.arange(9)
    for experts in (2, 3, 4):
        edges = [level_group(depth, expert, experts) for expert in range(experts)]
        assert edges[0][0].tolist() == [0] * 9
        assert torch.equal(edges[-1][1], depth)
        for (_, end), (first, _) in pairwise(edges):
            assert torch.equal(end, first)
    assert [one.tolist() for one in level_group(depth, 1, 2)] == [(depth // 2).tolist(),
                                                                 depth.tolist()]  # fmt: skip
    # T_u = 6, three experts: pairs k = 2, 3 and k = 4, 5; of T_u = 1 the coarsest alone has one.
    assert [int(edge) for edge in level_group(torch.tensor(6), 1, 3)] == [2, 4]
    assert [int(edge) for edge in level_group(torch.tensor(6), 2, 3)] == [4, 6]
    assert [int(edge) for edge in level_group(torch.tensor(1), 1, 3)] == [0, 0]


@pytest.mark.parametrize("backend", ["reference", "packed"])
def test_an_expert_is_contrasted_over_its_own_levels(backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 7, 3, SIZE, generator=generator, dtype=torch.float64).requires_grad_()
    depth, targets = torch.tensor([6, 6, 3]), torch.tensor([1, 2, 3])
    several.contrast(z, depth, targets, 0.5, backend=backend).backward()
    touched = z.grad.abs().sum(-1) > 0
    # A pair at k touches k and k + 1, and others' levels k + 1 as negatives.
    assert touched[0, :, 0].nonzero().flatten().tolist() == [2, 3, 4]
    assert touched[1, :, 0].nonzero().flatten().tolist() == [3, 4, 5, 6]
    assert touched[1, :, 2].nonzero().flatten().tolist() == [2, 3]
    # The mean runs over all pairs: two and two of the first users, one and one of the third.
    means = [
        level_infonce(one, depth, targets, 0.5, number, 3) for number, one in enumerate(z, 1)
    ]
    whole = several.contrast(z, depth, targets, 0.5, backend=backend)
    torch.testing.assert_close(whole, (5 * means[0] + 5 * means[1]) / 10)
    assert gradcheck(
        lambda given: several.contrast(given, depth, targets, 0.5, backend=backend), z
    )


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("supervision", "options"),
    [("prefix", {}), ("all", {"coarse_expert": "transformer", "depth_gradient": "full"})],
)
def test_a_model_of_three(supervision: str, options: dict[str, Any]) -> None:
    found = []
    for backend in ("reference", "packed", "auto"):
        model = ADARec(**{**SMALL, "supervision": supervision, **options, "backend": backend})
        output = model.train().loss(batch(supervision))
        output.total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        further = output.further_gates
        assert further.shape == (2, 5)
        together = output.gate + further.sum(0)
        torch.testing.assert_close(together[~together.isnan()], torch.ones(5)[~together.isnan()])
        gradients = {name: one.grad for name, one in model.named_parameters()}
        found.append({**gradients, "total": output.total.detach()})
    for other in found[1:]:
        for name, expected in found[0].items():
            torch.testing.assert_close(
                other[name], expected, rtol=2e-3, atol=2e-6,
                msg=lambda text, name=name: f"{name}: {text}",
            )  # fmt: skip
    first, second = model.middle_experts[0], model.coarse_expert
    one, two = (next(iter(expert.state_dict().values())) for expert in (first, second))
    assert not torch.equal(one, two)


def test_dropout_of_each_expert_is_its_own() -> None:
    """Two experts of equal weights give other vectors while they are trained, and equal ones after.
    """
    model = ADARec(**{**SMALL, "depth": "fixed"})
    model.middle_experts[0].load_state_dict(model.coarse_expert.state_dict())
    for training in (True, False):
        model.train(training)
        parsed = model._loss(batch())[0]
        middle, coarse = parsed.contrast
        assert torch.equal(middle, coarse) is not training


def test_gates_of_all_are_given_and_exported() -> None:
    model = ADARec(**SMALL).eval()
    out = model((VALUES, OFFSETS), return_gates=True)
    assert out.expert_gates.shape == (3, 5, 3)
    assert torch.equal(out.expert_gates[0], out.gates)
    reached = torch.arange(5)[:, None] <= out.depth
    torch.testing.assert_close(out.expert_gates.sum(0), reached.float())
    assert model((VALUES, OFFSETS)).expert_gates is None
    assert ADARec(**{**SMALL, "num_experts": 2})((VALUES, OFFSETS), return_gates=True)[5] is None
    padded = torch.tensor([[3, 4, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0], [1, 2, 7, 5, 39, 40]])
    torch.testing.assert_close(model.user_graph()(padded), out.user, rtol=1e-4, atol=1e-6)
    assert model.plan() is None
    assert "more than two experts" in model.why_not_captured()


def test_trained_saved_and_evaluated(tmp_path: Path) -> None:
    data = synthetic(num_users=40, num_items=40)
    config = ADARecConfig.create(**{**SMALL, "supervision": "all"})
    settings = TrainConfig(epochs=1, batch_size=16, device="cpu", log="none")
    train(config, settings, data, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.model_config.num_experts == 3
    (line,) = run.history
    for k in range(5):
        row = [line[name][k] for name in ("gate", "gate_1", "gate_2")]
        assert row == [None] * 3 or sum(row) == pytest.approx(1.0, abs=1e-6)
    result = evaluate(run.model, Split(data))
    assert result.diagnostics["gate"][0] + result.diagnostics["gate_1"][0] + (
        result.diagnostics["gate_2"][0]
    ) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 1}, "num_experts=1"),
        ({"num_experts": 6}, "more than the 5 levels of max_depth=4"),
        ({"moe": False}, "needs moe=True"),
        ({"backend": "cpp"}, "its kernels have two experts"),
        ({"fused_trajectory": True}, "num_experts=2; got"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ADARecConfig.create(**{**SMALL, **options})

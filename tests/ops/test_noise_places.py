"""A share of a batch draws what the whole batch would have drawn at its place."""

from __future__ import annotations

import pytest
import torch
from helpers import Backend, available
from torch import Tensor

from adarec_fast import ops, rng

D, LEVELS, HEADS = 20, 5, 2
LENGTHS = torch.tensor([3, 1, 6, 2, 4])
OFFSETS = torch.cat([torch.zeros(1, dtype=torch.int64), LENGTHS.cumsum(0)])
DEPTH = torch.tensor([4, 0, 2, 3, 1])
CUT = 2  # sequences before the share
SEED = rng.as_seed(-77)


def _weights(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator) / 4 for shape in shapes]


def _draw(op: str, levels: Tensor, offsets: Tensor, depth: Tensor, seed: Tensor, backend: str,
          ) -> tuple[Tensor, Tensor]:
    """The op's result ``[K, N, D]`` and the gradient of its input."""
    x = levels.clone().requires_grad_()
    common = {"seed": seed, "max_length": 8, "backend": backend}
    if op == "dropout":
        y = ops.dropout(x[0], p=0.4, seed=seed, stream=2, backend=backend)[None]
    elif op == "local_path":
        (taps,) = _weights((3, D))
        y = ops.local_path(
            x[0], offsets, taps, torch.ones(D), torch.zeros(D), eps=1e-5, p=0.4, **common
        )[None]
    elif op == "hda_trajectory":
        w1, bias, w2, b2 = _weights((40, D), (LEVELS - 1, 40), (D, 40), (D,))
        alpha = torch.linspace(1, 0.1, LEVELS)
        y, _ = ops.hda_trajectory(x[0], offsets, depth, alpha, w1, bias, w2, b2, **common)
    elif op == "mlp_expert":
        w1, b1, w2, b2 = _weights((40, D), (40,), (D, 40), (D,))
        y = ops.mlp_expert(
            x, offsets, depth, w1, b1, w2, b2, torch.ones(D), torch.zeros(D), eps=1e-5,
            hidden_dropout=0.4, **common,
        )
    else:
        shapes = [(3 * D, D), (3 * D,), (D, D), (D,), (D,), (D,), (32, D), (32,), (D, 32), (D,),
                  (D,), (D,)]
        y = ops.encoder_layer(
            x, offsets, depth, ops.LayerWeights(*_weights(*shapes)), heads=HEADS, eps=1e-5,
            attention_dropout=0.4, hidden_dropout=0.4, **common,
        )
    token_depth = torch.repeat_interleave(depth, offsets.diff())
    reached = torch.arange(y.shape[0])[:, None] <= token_depth
    y = torch.where(reached[..., None], y, 0.0)
    (y * torch.linspace(-1, 1, D)).sum().backward()
    assert x.grad is not None
    # Ops write nothing beyond a depth.
    reached = torch.arange(x.shape[0])[:, None] <= token_depth
    return y.detach(), torch.where(reached[..., None], x.grad, 0.0)


def _check(op: str, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randn(LEVELS, int(OFFSETS[-1]), D, generator=generator)
    before = int(OFFSETS[CUT])
    whole = _draw(op, levels, OFFSETS, DEPTH, SEED, backend)
    place = torch.tensor([before, CUT])
    share = _draw(
        op, levels[:, before:], OFFSETS[CUT:] - before, DEPTH[CUT:],
        rng.at_place(SEED, place), backend,
    )
    for ours, theirs in zip(share, whole, strict=True):
        torch.testing.assert_close(ours, theirs[:, before:], rtol=1e-5, atol=1e-6)
    elsewhere = _draw(op, levels[:, before:], OFFSETS[CUT:] - before, DEPTH[CUT:], SEED, backend)
    assert not torch.allclose(elsewhere[0], share[0])


@pytest.mark.parametrize("backend", ["reference", "packed", "cpp", "triton"])
@pytest.mark.parametrize(
    "op", ["dropout", "local_path", "hda_trajectory", "mlp_expert", "encoder_layer"]
)
def test_a_share_draws_what_the_whole_batch_draws(op: str, backend: str) -> None:
    device = "cpu"
    available(Backend(op, backend, device))
    _check(op, backend)


def test_depth_noise_of_a_share() -> None:
    whole = rng.gumbel(SEED, 5, LEVELS, torch.float64)
    seed = rng.at_place(SEED, torch.tensor([10, CUT]))
    assert torch.equal(rng.gumbel(seed, 3, LEVELS, torch.float64), whole[CUT:])


def test_a_seed_has_one_number_or_three() -> None:
    with pytest.raises(ValueError, match="seed has shape"):
        ops.dropout(torch.ones(2, 4), p=0.5, seed=torch.tensor([1, 2]), stream=0)

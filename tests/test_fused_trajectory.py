"""`fused_trajectory`: from E to h with no level in memory, and a backward pass in parts."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from helpers import Batch, OpCase, evaluate, random_batch
from helpers_suite import OpSuite
from test_encoder_layer import layer_weights
from torch import Tensor

from adarec_fast import rng
from adarec_fast.ops import LayerWeights, Trajectory, fused_trajectory
from adarec_fast.packed import fused_trajectory as packed

DENOISER = ("w1", "level_bias", "w2", "b2")
COARSE = ("w1", "b1", "w2", "b2", "ln_w", "ln_b")
ROUTER = ("router_w1", "router_level_bias", "router_w2", "router_b2", "gate_w", "gate_b")


def trajectory(**arguments: Any) -> Trajectory:
    """The op with its parameters by name."""
    fine = LayerWeights(*(arguments.pop(name) for name in LayerWeights._fields))
    coarse = [arguments.pop(f"coarse_{name}") for name in COARSE]
    router = [arguments.pop(name) for name in ROUTER]
    denoiser = [arguments.pop(name) for name in DENOISER]
    return fused_trajectory(
        denoiser=denoiser, fine=fine, coarse=coarse, router=router, **arguments
    )


def parameters(size: int, levels: int, g: torch.Generator) -> dict[str, Tensor]:
    """Random weights of all parts by name."""

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g) / columns**0.5

    def vector(*shape: int, around: float = 0.0) -> Tensor:
        return around + torch.randn(shape, generator=g) / 4

    return {
        "w1": matrix(2 * size, size),
        "level_bias": vector(levels - 1, 2 * size),
        "w2": matrix(size, 2 * size),
        "b2": vector(size),
        **layer_weights(size, g),
        "coarse_w1": matrix(2 * size, size),
        "coarse_b1": vector(2 * size),
        "coarse_w2": matrix(size, 2 * size),
        "coarse_b2": vector(size),
        "coarse_ln_w": vector(size, around=1.0),
        "coarse_ln_b": vector(size),
        "router_w1": matrix(size, size),
        "router_level_bias": vector(levels, size),
        "router_w2": matrix(1, size)[0],
        "router_b2": vector(1),
        "gate_w": matrix(size, size),
        "gate_b": vector(size),
    }


def build(
    batch: Batch,
    *,
    last_only: bool = True,
    noise: str = "none",
    dropout: tuple[float, float] = (0.0, 0.0),
    content: bool = True,
    contrast: bool = False,
    heads: int = 2,
) -> OpCase:
    """A case; ``noise`` is "none", "seed" or "explicit", ``dropout`` attention's and hidden."""
    g = batch.generator()
    size, levels, tokens = batch.size, batch.levels, batch.num_tokens
    computed, reached, real = batch.computed(), batch.reached(), batch.real()
    rows = reached if last_only else computed
    weights = parameters(size, levels, g)
    explicit = torch.randn(levels - 1, tokens, size, generator=g)
    learnt = [name for name in weights if content or name != "router_w1"]
    seed = rng.as_seed(batch.seed + 3)
    return OpCase(
        function=trajectory,
        arguments={
            "embeddings": torch.randn(tokens, size, generator=g),
            "offsets": batch.offsets(),
            "depth": batch.depth(),
            "level_mass": torch.rand(rows.shape, generator=g) + 0.5,
            "alpha_bar": torch.linspace(1.0, 0.3, levels),
            **weights,
            "noise_seed": seed if noise == "seed" else None,
            "noise": explicit if noise == "explicit" else None,
            "seed": seed if any(dropout) else None,
        },
        differentiable=("embeddings", "level_mass", *learnt),
        options={
            "heads": heads,
            "eps": 1e-5,
            "attention_dropout": dropout[0],
            "hidden_dropout": dropout[1],
            "content": content,
            "contrast": contrast,
            "last_only": last_only,
            "max_length": batch.max_length,
        },
        readable={"embeddings": real, "noise": computed[1:], "level_mass": rows},
        written=(None, real, None, None, None, reached if contrast else None),
        axes={
            "embeddings": ("token", 0),
            "depth": ("sequence", 0),
            "noise": ("token", 1),
            "level_mass": ("sequence" if last_only else "token", 1),
        },
        output_axes=(
            *(("sequence" if last_only else "token", dim) for dim in (0,)),
            ("token", 0),
            *(("sequence" if last_only else "token", dim) for dim in (1, 0, 0)),
            ("sequence", 1) if contrast else None,
        ),
        fixed=("alpha_bar",),
        scale=4 * size**0.5,
    )


VARIANTS = {
    "last": build,
    "training": partial(
        build, noise="seed", dropout=(0.3, 0.4), contrast=True
    ),
    "all": partial(build, last_only=False, noise="explicit", contrast=True),
    "level-only": partial(build, last_only=False, dropout=(0.2, 0.0), content=False),
}


class TestFusedTrajectory(OpSuite):
    op = "fused_trajectory"
    variants: ClassVar = VARIANTS
    noisy = ("training", "level-only")
    sizes = (20, 64)
    many = 200

    @pytest.fixture(autouse=True)
    def _many_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Parts of few tokens, so that every test sees several."""
        monkeypatch.setitem(packed.PART_TOKENS, "cpu", 7)


@pytest.mark.parametrize("build", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("length", [1, 11, 12, 1000])
def test_parts_change_nothing_but_rounding(
    build: Any, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not the noise and the dropout, which follow a token's place in the batch."""
    case = build(random_batch(9, max_depth=3, capacity=15, seed=4))
    monkeypatch.setitem(packed.PART_TOKENS, "cpu", 1 << 20)
    whole = evaluate(case, "packed", torch.float64)
    monkeypatch.setitem(packed.PART_TOKENS, "cpu", length)
    parts = evaluate(case, "packed", torch.float64)
    for name, value in whole.named().items():
        torch.testing.assert_close(parts.named()[name], value, rtol=1e-9, atol=1e-11, msg=name)

"""`encoder_layer`: a causal Transformer layer over levels x jagged sequences."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import Backend, Batch, OpCase, backends_for
from helpers_accuracy import check_against_float64
from helpers_suite import OpSuite
from torch import Tensor

from adarec_fast import rng
from adarec_fast.ops import LayerWeights, encoder_layer

HEADS = 2


def layer(x: Tensor, offsets: Tensor, depth: Tensor | None, **rest: Any) -> Tensor:
    """The op with its parameters by name."""
    weights = LayerWeights(*(rest.pop(name) for name in LayerWeights._fields))
    return encoder_layer(x, offsets, depth, weights, **rest)


def layer_weights(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random parameters of a layer with an inner size of 4 D, by name."""

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    def vector(length: int, around: float = 0.0) -> Tensor:
        return around + torch.randn(length, generator=generator) / 4

    return {
        "qkv_w": matrix(3 * size, size),
        "qkv_b": vector(3 * size),
        "out_w": matrix(size, size),
        "out_b": vector(size),
        "ln1_w": vector(size, 1.0),
        "ln1_b": vector(size),
        "ff1_w": matrix(4 * size, size),
        "ff1_b": vector(4 * size),
        "ff2_w": matrix(size, 4 * size),
        "ff2_b": vector(size),
        "ln2_w": vector(size, 1.0),
        "ln2_b": vector(size),
    }


def build(
    batch: Batch,
    *,
    depth: bool = True,
    dropout: tuple[float, float] = (0.0, 0.0),
    last_only: bool = False,
) -> OpCase:
    """A case; ``dropout`` is that of the attention and that of the hidden states."""
    g = batch.generator()
    computed, reached = batch.computed(), batch.reached()
    if not depth:
        computed, reached = batch.real().expand_as(computed), torch.ones_like(reached)
    weights = layer_weights(batch.size, g)
    return OpCase(
        function=layer,
        arguments={
            "x": torch.randn(batch.levels, batch.num_tokens, batch.size, generator=g),
            "offsets": batch.offsets(),
            "depth": batch.depth() if depth else None,
            **weights,
            "seed": rng.as_seed(batch.seed) if any(dropout) else None,
        },
        differentiable=("x", *weights),
        options={
            "heads": HEADS,
            "eps": 1e-5,
            "attention_dropout": dropout[0],
            "hidden_dropout": dropout[1],
            "stream": rng.STREAM_FINE_EXPERT,
            "last_only": last_only,
            "max_length": 12,
        },
        readable={"x": computed},
        written=(reached if last_only else computed,),
        axes={"x": ("token", 1), "depth": ("sequence", 0)},
        output_axes=(("sequence" if last_only else "token", 1),),
    )


@pytest.mark.parametrize("backend", backends_for("encoder_layer"), indirect=True)
def test_real_histories(backend: Backend, real_data: Path) -> None:
    """The lengths of real users: most of them short, a few up to the limit."""
    users = (real_data / "Beauty.txt").read_text(encoding="utf-8").splitlines()[:200]
    lengths = [min(len(user.split()) - 1, 50) for user in users]
    depths = [user % 3 for user in range(len(lengths))]
    case = build(Batch(tuple(lengths), tuple(depths), max_length=50), last_only=True)
    case.options["max_length"] = 50
    check_against_float64(case, backend, torch.float32)


class TestEncoderLayer(OpSuite):
    op = "encoder_layer"
    variants: ClassVar = {
        "plain": build,
        "last": partial(build, last_only=True),
        "no-depth": partial(build, depth=False),
        "dropout": partial(build, dropout=(0.3, 0.5)),
        "last-dropout": partial(build, dropout=(0.5, 0.2), last_only=True),
    }
    # With no depth, nothing else has a sequence axis.
    free = ("offsets",)
    noisy = ("dropout", "last-dropout")

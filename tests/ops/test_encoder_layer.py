"""`encoder_layer`: a Transformer layer, causal or not, over levels x jagged sequences."""

from __future__ import annotations

import sys
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
from adarec_fast.ops import BackendError, LayerWeights, encoder_layer

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
    causal: bool = True,
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
            "causal": causal,
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


BOTH_WAYS = pytest.mark.parametrize(
    "backend",
    [Backend("encoder_layer", name, "cpu") for name in ("reference", "packed", "cpp")],
    indirect=True, ids=str,
)  # fmt: skip


@BOTH_WAYS
@pytest.mark.parametrize("last_only", [False, True])
def test_whole_sequences(backend: Backend, last_only: bool) -> None:
    batch = Batch((1, 7, 12, 2), (2, 0, 1, 2), size=20, capacity=2)
    case = build(batch, dropout=(0.3, 0.5), causal=False, last_only=last_only)
    check_against_float64(case, backend, torch.float32)


def test_triton_says_that_it_is_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    case = build(Batch((2, 1), (0, 0), size=16, max_depth=0), causal=False)
    monkeypatch.setattr(sys.modules[encoder_layer.__module__], "choose", lambda *_: "triton")
    with pytest.raises(BackendError, match="causal=False; 'auto' takes packed"):
        case.call(case.tensors(torch.float32), "triton")
    (y,) = case.call(case.tensors(torch.float32), "auto")
    assert y.shape == (1, 3, 16)


@BOTH_WAYS
def test_what_a_token_sees(backend: Backend) -> None:
    """Its whole sequence, or itself and those before it; alone, and read out last, it is one."""
    batch = Batch((1, 5, 3), (0, 0, 0), size=16, max_depth=0)
    found = {}
    for causal in (True, False):
        case = build(batch, causal=causal)
        tensors = case.tensors(torch.float32)
        (before,) = case.call(tensors, backend.name)
        tensors["x"] = tensors["x"].detach().clone()
        tensors["x"][:, 5] += 1.0  # the last of the second sequence
        (after,) = case.call(tensors, backend.name)
        changed = (before != after).any(-1)[0].nonzero()[:, 0].tolist()
        assert changed == ([5] if causal else [1, 2, 3, 4, 5])
        found[causal] = before
    torch.testing.assert_close(found[True][:, 0], found[False][:, 0])
    torch.testing.assert_close(found[True][:, [5, 8]], found[False][:, [5, 8]])


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
    noisy = fullest = ("dropout", "last-dropout")

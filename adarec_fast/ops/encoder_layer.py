"""``encoder_layer``: a Transformer layer, causal or not, over levels x jagged sequences."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ragged, rng
from ..reference.encoder_layer import encoder_layer as reference
from ._autocast import Autocast
from ._library import (
    BackendError,
    check_index,
    check_seed,
    check_shape,
    choose,
    define,
    keeps,
    require,
    run,
)


class LayerWeights(NamedTuple):
    """A layer's parameters, matrices ``[out, in]``: D in and out, 3D for qkv, F for the inner."""

    qkv_w: Tensor
    qkv_b: Tensor
    out_w: Tensor
    out_b: Tensor
    ln1_w: Tensor
    ln1_b: Tensor
    ff1_w: Tensor
    ff1_b: Tensor
    ff2_w: Tensor
    ff2_b: Tensor
    ln2_w: Tensor
    ln2_b: Tensor


_WEIGHTS = LayerWeights._fields
_INPUTS = (
    "Tensor x, Tensor offsets, Tensor? depth, "
    + ", ".join(f"Tensor {name}" for name in _WEIGHTS)
    + ", int heads, float eps, float attention_dropout, float hidden_dropout, Tensor? seed, "
    "int stream, bool last_only, int max_length, bool causal"
)


def _fake_forward(x: Tensor, offsets: Tensor, *rest: Any) -> Tensor:
    last_only = rest[-4]
    levels, tokens, size = x.shape
    return x.new_empty(levels, offsets.shape[0] - 1 if last_only else tokens, size)


def _fake_backward(grad_y: Tensor, x: Tensor, offsets: Tensor, depth: Tensor | None,
                   *rest: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in (x, *rest[: len(_WEIGHTS)]))


def _kept_shape(x: Tensor, offsets: Tensor, inner: int, last_only: bool) -> tuple[int, int]:
    """Of what the C++ forward leaves: see ``csrc/cpu/encoder_layer_plan.cpp``."""
    levels, tokens, size = x.shape
    wide = (size + 15) // 16 * 16
    columns = (inner + 15) // 16 * 16 + (2 if last_only else 6) * wide + 2 + wide // 16
    return levels * (offsets.shape[0] - 1 if last_only else tokens), columns


def _fake_kept(x: Tensor, offsets: Tensor, *rest: Any) -> Tensor:
    inner = rest[1 + _WEIGHTS.index("ff1_w")].shape[0]
    return x.new_empty(_kept_shape(x, offsets, inner, rest[-4]), dtype=torch.float32)


define(
    "encoder_layer",
    f"({_INPUTS}) -> Tensor",
    f"(Tensor grad_y, {_INPUTS}) -> (" + ", ".join(["Tensor"] * (1 + len(_WEIGHTS))) + ")",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    fake_kept=_fake_kept,
)


def _chosen(backend: str, x: Tensor, causal: bool, last_only: bool) -> str:
    """Who runs a layer: the Triton attention of all positions is causal alone."""
    chosen = choose("encoder_layer", backend, x.device.type, x.dtype)
    if causal or last_only or chosen != "triton":
        return chosen
    if backend == "triton":
        raise BackendError(
            "backend 'triton' cannot run encoder_layer with causal=False; 'auto' takes packed"
        )
    return "packed"


class _EncoderLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *inputs: Any) -> Tensor:
        ctx.backend, ctx.autocast = backend, Autocast.current(inputs[0])
        x, offsets, depth, *weights = inputs[:15]
        seed, ctx.scalars = inputs[19], (*inputs[15:19], *inputs[20:])
        rows, columns = _kept_shape(x, offsets, weights[6].shape[0], inputs[21])
        ctx.kept = keeps(backend, rows * columns)
        if not ctx.kept:
            ctx.save_for_backward(x, offsets, depth, *weights, seed)
            return torch.ops.adarec_fast.encoder_layer_fwd(*inputs, backend)
        y, kept = torch.ops.adarec_fast.encoder_layer_keep(*inputs, backend)
        ctx.save_for_backward(kept, x, offsets, depth, *weights, seed)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *tensors, seed = ctx.saved_tensors
        with ctx.autocast.restored():
            run = torch.ops.adarec_fast.encoder_layer_bwd
            if ctx.kept:
                run = torch.ops.adarec_fast.encoder_layer_resume
            d_x, *d_weights = run(
                grad_y.contiguous(), *tensors, *ctx.scalars[:4], seed, *ctx.scalars[4:], ctx.backend
            )
        return None, d_x, None, None, *d_weights, *([None] * 9)


def encoder_layer(
    x: Tensor,
    offsets: Tensor,
    depth: Tensor | None,
    weights: LayerWeights,
    *,
    heads: int,
    eps: float,
    attention_dropout: float = 0.0,
    hidden_dropout: float = 0.0,
    seed: Tensor | None = None,
    stream: int = rng.STREAM_BACKBONE,
    last_only: bool = False,
    max_length: int,
    causal: bool = True,
    backend: str = "auto",
) -> Tensor:
    """LN(x' + FF(x')), x' = LN(x + Attention(x)) for every level of every sequence.

    Args:
        x: ``[K, N, D]`` float; level k of a sequence is a sequence of its own.
        offsets: int64 ``[B+1]``.
        depth: int64 ``[B]``: levels k <= depth are computed; None: all K.
        weights: the parameters.
        heads: divides D.
        eps: LayerNorm's.
        attention_dropout, hidden_dropout: probabilities, applied only if ``seed`` is given, with
            masks of the noise contract (level coordinate k, streams ``stream`` + site).
        seed: int64 ``[1]`` or ``[3]`` (:mod:`adarec_fast.rng`), or None.
        stream: first of the layer's streams.
        last_only: compute the last position of each sequence only.
        max_length: no sequence is longer.
        causal: whether a token sees those before it and itself alone, or its whole sequence.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        ``[K, N, D]``, or ``[K, B, D]`` if ``last_only``; levels beyond a depth are not written.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("x", x, None, None, None)
    levels, tokens, size = x.shape
    check_index("offsets", offsets)
    if depth is not None:
        check_index("depth", depth, offsets.shape[0] - 1)
    require(
        heads >= 1 and size % heads == 0,
        lambda: f"heads={heads} does not divide the size D={size}",
    )
    inner = weights.ff1_w.shape[0]
    shapes = {
        "qkv_w": (3 * size, size), "qkv_b": (3 * size,), "out_w": (size, size), "ff1_b": (inner,),
        "ff1_w": (inner, size), "ff2_w": (size, inner),
    }
    for name, weight in zip(LayerWeights._fields, weights, strict=True):
        check_shape(name, weight, *shapes.get(name, (size,)))
    if seed is not None:
        seed = check_seed(seed)
    if attention_dropout == 0.0 and hidden_dropout == 0.0:
        seed = None
    chosen = _chosen(backend, x, causal, last_only)
    if chosen != "reference":
        return run(
            _EncoderLayer, "encoder_layer", chosen, x, offsets, depth, *weights, heads, eps,
            attention_dropout, hidden_dropout, seed, stream, last_only, max_length, causal,
        )
    x = ragged.mask_levels(x, offsets, depth)
    keep_attention = keep_projection = keep_feedforward = None
    if seed is not None and attention_dropout > 0:
        token = offsets[:-1, None] + torch.arange(max_length, device=x.device)
        token = token + rng.first_token(seed)
        index = rng.attention_index(token, heads, torch.arange(max_length, device=x.device))
        keep_attention = rng.keep_levels(
            seed, index.transpose(1, 2), stream + rng.SITE_ATTENTION, levels, attention_dropout
        )
    if seed is not None and hidden_dropout > 0:
        index = rng.element_index(tokens, size, seed)
        keep_projection, keep_feedforward = (
            ragged.to_padded(
                rng.keep_levels(seed, index, stream + site, levels, hidden_dropout),
                offsets, max_length, dim=1,
            )
            for site in (rng.SITE_PROJECTION, rng.SITE_FEEDFORWARD)
        )
    y = reference(
        ragged.to_padded(x, offsets, max_length, dim=1),
        ragged.padding_mask(offsets, max_length),
        *weights, heads, eps, attention_dropout, hidden_dropout,
        keep_attention, keep_projection, keep_feedforward, causal,
    )
    y = ragged.from_padded(y, offsets, tokens, dim=1)
    return y[:, ragged.last_tokens(offsets)] if last_only else y

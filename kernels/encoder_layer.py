"""``encoder_layer`` in Triton: a causal Transformer layer over levels x jagged sequences.

Forward is three kernels: queries, keys and values (``_linear``), attention (``_attention``), and
all that follows it (``_sublayers``). Backward runs the first two again and then goes through all
three from the end, each with its own gradient kernels; those of the weights come last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._attention import Attended, attention
from ._attention_backward import attention_backward
from ._launch import Operands, operands
from ._layout import Layout, layout
from ._linear import linear, linear_backward, linear_weights
from ._mlp import weight_gradients
from ._sublayers import sublayers
from ._sublayers_backward import sublayers_backward

WEIGHTS = (
    "qkv_w", "qkv_b", "out_w", "out_b", "ln1_w", "ln1_b", "ff1_w", "ff1_b", "ff2_w", "ff2_b",
    "ln2_w", "ln2_b",
)


class _Call(NamedTuple):
    """The schema's arguments, contiguous, with the parameters by name."""

    x: Tensor
    offsets: Tensor
    layout: Layout
    weights: dict[str, Tensor]
    ops: Operands
    attention: dict[str, Any]
    sublayers: dict[str, Any]
    last_only: bool


def _call(
    x: Tensor, offsets: Tensor, depth: Tensor | None, *parameters_and_options: Any
) -> _Call:
    parameters = parameters_and_options[: len(WEIGHTS)]
    heads, eps, attention_dropout, hidden_dropout, seed, stream, last_only, _ = (
        parameters_and_options[len(WEIGHTS) :]
    )
    common = {"seed": seed, "stream": stream, "last_only": last_only}
    x = x.contiguous()
    return _Call(
        x, offsets, layout(x, offsets, depth, last_only),
        {name: w.contiguous() for name, w in zip(WEIGHTS, parameters, strict=True)}, operands(x),
        {"heads": heads, "dropout": attention_dropout, **common},
        {"eps": eps, "dropout": hidden_dropout, **common}, last_only,
    )


def _queries_keys_values(call: _Call) -> tuple[Tensor, Tensor]:
    """q ``[K, R, D]`` and kv ``[K, N, 2D]``; one tensor holds both where their rows agree."""
    x, offsets, where, ops, size = call.x, call.offsets, call.layout, call.ops, call.x.shape[2]
    w, bias = call.weights["qkv_w"], call.weights["qkv_b"]
    if call.last_only:
        return (
            linear(x, w[:size], bias[:size], offsets, where.row_reach, ops, last_only=True),
            linear(x, w[size:], bias[size:], offsets, where.token_reach, ops),
        )
    qkv = linear(x, w, bias, offsets, where.token_reach, ops)
    return qkv[..., :size], qkv[..., size:]


def fwd(*inputs: Any) -> Tensor:
    """``encoder_layer_fwd`` of the op's schema: ``[K, N, D]``, or ``[K, B, D]`` if last_only."""
    call = _call(*inputs)
    q, kv = _queries_keys_values(call)
    context = attention(
        q, kv, call.offsets, call.layout, call.ops, save=False, **call.attention
    ).context
    return sublayers(
        call.x, context, call.offsets, call.layout.row_reach, call.weights, call.ops,
        **call.sublayers,
    )


def bwd(grad_y: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """``encoder_layer_bwd``: gradients of x and the twelve parameters."""
    call = _call(*inputs)
    x, offsets, where, weights, ops = call.x, call.offsets, call.layout, call.weights, call.ops
    q, kv = _queries_keys_values(call)
    attended = attention(q, kv, offsets, where, ops, save=True, **call.attention)
    g = sublayers_backward(
        grad_y.contiguous(), x, attended.context, offsets, where.row_reach, weights, ops,
        **call.sublayers,
    )
    ff = weight_gradients(
        g.h, g.d_ff, where.row_reach, offsets, weights["ff1_w"], weights["ff1_b"],
        weights["ff2_w"], ops, gelu=True,
    )
    out_w, out_b = linear_weights(attended.context, g.d_projected, offsets, where.row_reach, ops)
    d_x, qkv_w, qkv_b = _attention_inputs(call, q, kv, attended, g.d_context, g.residual)
    found = {
        "qkv_w": qkv_w, "qkv_b": qkv_b, "out_w": out_w, "out_b": out_b, "ln1_w": g.ln1_w,
        "ln1_b": g.ln1_b, "ff1_w": ff.w1, "ff1_b": ff.bias.sum(0), "ff2_w": ff.w2,
        "ff2_b": ff.b2, "ln2_w": g.ln2_w, "ln2_b": g.ln2_b,
    }
    return d_x, *(found[name].to(weights[name].dtype) for name in WEIGHTS)


def _attention_inputs(
    call: _Call, q: Tensor, kv: Tensor, attended: Attended, d_context: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, qkv_w and qkv_b."""
    x, offsets, where, ops, size = call.x, call.offsets, call.layout, call.ops, call.x.shape[2]
    w = call.weights["qkv_w"]
    d_x = torch.empty_like(x)

    def differentiate(d_q: Tensor, d_kv: Tensor) -> None:
        attention_backward(
            d_context, attended, q, kv, d_q, d_kv, offsets, where, ops, **call.attention
        )

    if not call.last_only:
        d_qkv = x.new_empty(*x.shape[:2], 3 * size, dtype=ops.torch_dtype)
        differentiate(d_qkv[..., :size], d_qkv[..., size:])
        linear_backward(d_qkv, residual, w, d_x, offsets, where.token_reach, ops)
        return d_x, *linear_weights(x, d_qkv, offsets, where.token_reach, ops)
    d_q, d_kv = torch.empty_like(q), torch.empty_like(kv)
    differentiate(d_q, d_kv)
    linear_backward(d_kv, None, w[size:], d_x, offsets, where.token_reach, ops)
    linear_backward(
        d_q, residual, w[:size], d_x, offsets, where.row_reach, ops, last_only=True, add=True
    )
    of_q = linear_weights(x, d_q, offsets, where.row_reach, ops, last_only=True)
    of_kv = linear_weights(x, d_kv, offsets, where.token_reach, ops)
    return d_x, torch.cat([of_q[0], of_kv[0]]), torch.cat([of_q[1], of_kv[1]])

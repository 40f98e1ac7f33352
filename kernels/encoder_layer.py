"""``encoder_layer`` in Triton: a causal Transformer layer over levels x jagged sequences.

Forward is three kernels: queries, keys and values (``_linear``), attention (``_attention``), and
all that follows it (``_sublayers``). Where only last positions are read out, one kernel
(``_readout``) stands for the first two. Backward runs the attention again and then goes through all
from the end, each with its own gradient kernels; those of the weights come last. One kernel for the
whole layer does not fit: that of ``fused_trajectory``, without dropout, takes all 255 registers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ._attention import attention
from ._attention_backward import attention_backward
from ._launch import Operands, operands
from ._linear import linear, linear_backward
from ._linear_weights import Linear, linear_weights
from ._mlp import weight_gradients
from ._readout import readout
from ._readout_backward import readout_backward
from ._reduce import Partials
from ._sublayers import sublayers
from ._sublayers_backward import Gradients, sublayers_backward

WEIGHTS = (
    "qkv_w", "qkv_b", "out_w", "out_b", "ln1_w", "ln1_b", "ff1_w", "ff1_b", "ff2_w", "ff2_b",
    "ln2_w", "ln2_b",
)


class _Call(NamedTuple):
    """The schema's arguments, contiguous, with the parameters by name."""

    x: Tensor
    offsets: Tensor
    depth: Tensor | None
    weights: dict[str, Tensor]
    ops: Operands
    attention: dict[str, Any]
    sublayers: dict[str, Any]
    last_only: bool


def _call(
    x: Tensor, offsets: Tensor, depth: Tensor | None, *parameters_and_options: Any
) -> _Call:
    parameters = parameters_and_options[: len(WEIGHTS)]
    heads, eps, attention_dropout, hidden_dropout, seed, stream, last_only, _, causal = (
        parameters_and_options[len(WEIGHTS) :]
    )
    # Read out last, a token sees its whole sequence either way.
    assert causal or last_only, "the attention of all positions is causal"
    common = {"seed": seed, "stream": stream}
    return _Call(
        x.contiguous(), offsets, depth,
        {name: w.contiguous() for name, w in zip(WEIGHTS, parameters, strict=True)}, operands(x),
        {"heads": heads, "dropout": attention_dropout, **common},
        {"eps": eps, "dropout": hidden_dropout, "last_only": last_only, **common}, last_only,
    )


def fwd(*inputs: Any) -> Tensor:
    """``encoder_layer_fwd`` of the op's schema: ``[K, N, D]``, or ``[K, B, D]`` if last_only."""
    call = _call(*inputs)
    x, offsets, depth, weights, ops = call[:5]
    if call.last_only:
        context, reach, _ = readout(
            x, weights, offsets, depth, ops, save=False, **call.attention
        )
    else:
        qkv, where = linear(x, weights["qkv_w"], weights["qkv_b"], offsets, depth, ops)
        reach = where.reach
        context = attention(qkv, offsets, where, ops, save=False, **call.attention).context
    return sublayers(x, context, offsets, reach, weights, ops, **call.sublayers)


def bwd(grad_y: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """``encoder_layer_bwd``: gradients of x and the twelve parameters."""
    call = _call(*inputs)
    x, offsets, depth, weights, ops = call[:5]
    parts = Partials()

    def after_attention(context: Tensor, reach: Tensor) -> Gradients:
        return sublayers_backward(
            grad_y.contiguous(), x, context, offsets, reach, weights, ops, parts, **call.sublayers
        )

    if call.last_only:
        context, reach, saved = readout(
            x, weights, offsets, depth, ops, save=True, **call.attention
        )
        assert saved is not None
        g = after_attention(context, reach)
        d_x, layers = readout_backward(
            g.d_context, g.residual, context, saved, x, weights, offsets, reach, ops, parts,
            **call.attention,
        )
    else:
        qkv, where = linear(x, weights["qkv_w"], weights["qkv_b"], offsets, depth, ops)
        reach = where.reach
        attended = attention(qkv, offsets, where, ops, save=True, **call.attention)
        context = attended.context
        g = after_attention(context, reach)
        d_qkv = attention_backward(
            g.d_context, attended, qkv, offsets, where, ops, **call.attention
        )
        d_x = linear_backward(d_qkv, g.residual, weights["qkv_w"], reach, ops)
        layers = [Linear(x, d_qkv, weights["qkv_w"], weights["qkv_b"])]
    layers.append(Linear(context, g.d_projected, weights["out_w"], weights["out_b"]))
    weight_gradients(
        g.h, g.d_ff, reach, offsets, weights["ff1_w"], weights["ff1_b"], weights["ff2_w"],
        weights["ff2_b"], ops, parts, gelu=True,
    )
    linear_weights(layers, offsets, reach, ops, parts)
    return d_x, *parts.sum(*weights.values())

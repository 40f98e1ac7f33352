"""``embedding``: items and positions of packed histories, LayerNorm and dropout, in one op."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import rng
from ..reference.embedding import embedding as reference
from ._library import check_index, check_seed, check_shape, choose, define, keeps, require
from ._ownership import ours_to_change
from .dropout import dropout

_INPUTS = (
    "Tensor item_ids, Tensor offsets, Tensor table, Tensor positions, Tensor norm_weight, "
    "Tensor norm_bias, float eps, float p, Tensor? seed"
)


class Embedded(NamedTuple):
    """What the backbone reads, and the table for who else needs it.

    Attributes:
        x: ``[N, D]``; 0 or undefined at capacity.
        table: ``[V+1, D]``, the same memory as the argument. A loss that takes this one hands its
            gradient to the op's backward, which adds the items' to it: one pass over the catalogue
            instead of three, where autograd would fill a second gradient with zeros and add both.
    """

    x: Tensor
    table: Tensor


def _fake_forward(item_ids: Tensor, offsets: Tensor, table: Tensor, *_: Any) -> Tensor:
    return table.new_empty(item_ids.shape[0], table.shape[1])


def _fake_backward(
    grad: Tensor, d_table: Tensor, item_ids: Tensor, offsets: Tensor, table: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in rest[:3])


def _kept_shape(item_ids: Tensor, table: Tensor) -> tuple[int, int]:
    """Of what the C++ forward leaves: ``embedding_kept`` in ``csrc/cpu/embedding.cpp``."""
    return item_ids.shape[0], (table.shape[1] + 31) // 32


def _fake_kept(item_ids: Tensor, offsets: Tensor, table: Tensor, *_: Any) -> Tensor:
    return table.new_empty(_kept_shape(item_ids, table), dtype=torch.float32)


define(
    "embedding",
    f"({_INPUTS}) -> Tensor",
    f"(Tensor grad, Tensor(a!) d_table, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    note="the model calls it where a kernel runs it, and its parts elsewhere",
    waits=False,
    fake_kept=_fake_kept,
)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.backend, ctx.options = backend, inputs[6:8]
        ctx.set_materialize_grads(False)  # zeros for the table's would be a pass over all items
        rows, words = _kept_shape(inputs[0], inputs[2])
        # Without dropout there is nothing to keep.
        drawn = inputs[8] is not None and any(ctx.needs_input_grad)
        ctx.kept = drawn and keeps(backend, rows * words)
        if ctx.kept:
            x, *kept = torch.ops.adarec_fast.embedding_keep(*inputs, backend)
        else:
            x, kept = torch.ops.adarec_fast.embedding_fwd(*inputs, backend), []
        ctx.save_for_backward(*kept, *inputs[:6], inputs[8])
        return x, inputs[2].view_as(inputs[2])

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor | None, d_table: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, d_table, *(None,) * 6
        *tensors, seed = ctx.saved_tensors
        if d_table is None:
            d_table = torch.zeros_like(tensors[3 if ctx.kept else 2])
        elif not ours_to_change(d_table):
            d_table = d_table.clone(memory_format=torch.contiguous_format)
        run = torch.ops.adarec_fast.embedding_bwd
        if ctx.kept:
            run = torch.ops.adarec_fast.embedding_resume
        others = run(
            grad.contiguous(), d_table, *tensors, *ctx.options, seed, ctx.backend
        )
        return None, None, None, d_table, *others, None, None, None


def embedding(
    item_ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    positions: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    eps: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    backend: str = "auto",
) -> Embedded:
    """dropout(LayerNorm(item + position)) of every token, positions counted from the end.

    The last item of a history has position 0. Dropout draws from the noise contract's stream
    ``STREAM_EMBEDDING``. The table's gradient is summed by item in the order of tokens, without
    atomics; row 0, padding, has none.

    Args:
        item_ids: int64 ``[N]``, 0..V; those behind the last token are rows of ``table``, too.
        offsets: int64 ``[B+1]``; no sequence is longer than L.
        table: ``[V+1, D]`` float, the item embeddings; row 0 is padding.
        positions: ``[L, D]``.
        norm_weight, norm_bias: ``[D]``, LayerNorm's.
        eps: LayerNorm's.
        p: dropout's probability, 0 <= p < 1.
        seed: int64 ``[1]`` or ``[3]`` (:mod:`adarec_fast.rng`), or None for no dropout.
        backend: see :mod:`adarec_fast.ops`.

    Raises:
        ValueError: a shape, a dtype or p that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_index("item_ids", item_ids)
    check_index("offsets", offsets)
    check_shape("table", table, None, None)
    size = table.shape[1]
    check_shape("positions", positions, None, size)
    check_shape("norm_weight", norm_weight, size)
    check_shape("norm_bias", norm_bias, size)
    require(0.0 <= p < 1.0, lambda: f"p={p} must lie in [0, 1)")
    seed = None if seed is None else check_seed(seed)
    seed = None if p == 0.0 else seed
    chosen = choose("embedding", backend, table.device.type, table.dtype)
    if chosen != "reference":
        found: tuple[Tensor, Tensor] = _Embedding.apply(
            chosen, item_ids, offsets, table, positions, norm_weight, norm_bias, eps, p, seed
        )
        return Embedded(*found)
    embedded = F.embedding(item_ids, table, padding_idx=0)
    x = reference(embedded, offsets, positions, norm_weight, norm_bias, eps)
    x = dropout(x, p=p, seed=seed, stream=rng.STREAM_EMBEDDING, backend="reference")
    return Embedded(x, table)

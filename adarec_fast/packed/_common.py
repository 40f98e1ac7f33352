"""Shared by the packed ops: which (level, token) pairs exist, and backward by recomputation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .. import ragged


def existing_pairs(depth: Tensor | None, levels: int, rows: int, end: int | None = None) -> Tensor:
    """Flat indices ``level * rows + row`` of what exists, level-major, int64 ``[P]``.

    Args:
        depth: int64 ``[rows]``, -1 for capacity rows, or None where every level exists.
        levels: K.
        rows: R.
        end: with ``depth`` None: rows from here on are capacity.
    """
    if depth is None:
        mask = (torch.arange(rows) < (rows if end is None else end)).expand(levels, -1)
    else:
        mask = ragged.reached_levels(depth, levels)
    return mask.flatten().nonzero()[:, 0]


def token_depth(depth: Tensor, offsets: Tensor, num_tokens: int) -> Tensor:
    """int64 ``[N]``: the depth of each token's sequence, -1 for capacity rows."""
    return torch.cat([depth, depth.new_full((1,), -1)])[ragged.sequence_ids(offsets, num_tokens)]


def token_pairs(offsets: Tensor, depth: Tensor | None, levels: int, num_tokens: int) -> Tensor:
    """:func:`existing_pairs` of all tokens."""
    if depth is None:
        return existing_pairs(None, levels, num_tokens, int(offsets[-1])).to(offsets.device)
    return existing_pairs(token_depth(depth, offsets, num_tokens), levels, num_tokens)


def last_token_pairs(
    offsets: Tensor, depth: Tensor | None, levels: int, num_tokens: int
) -> tuple[Tensor, Tensor]:
    """Pairs of last tokens: their places in ``[levels * N]`` and in ``[levels * B]``."""
    batch = offsets.shape[0] - 1
    pairs = existing_pairs(depth, levels, batch).to(offsets.device)
    level, sequence = pairs // max(batch, 1), pairs % max(batch, 1)
    return level * num_tokens + ragged.last_tokens(offsets)[sequence], pairs


def scatter_rows(rows: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    """A zero tensor ``[*shape, D]`` with ``rows`` at the flat places ``index``."""
    size = rows.shape[-1]
    total = 1
    for extent in shape:
        total *= extent
    return rows.new_zeros(total, size).index_copy(0, index, rows).view(*shape, size)


def _autograd_reachable() -> AbstractContextManager[object]:
    """Let autograd record inside an op.

    A dispatch mode (opcheck, a FLOP counter, a profiler) calls ops below autograd, where
    ``enable_grad`` alone records nothing.
    """
    excluded = torch._C._dispatch_tls_local_exclude_set().remove(
        torch._C.DispatchKey.AutogradFunctionality
    )
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def recompute(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    differentiable: Sequence[int],
    grads: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Run ``function(*inputs)`` again with autograd and pull ``grads`` back to some inputs.

    Args:
        function: returns as many differentiable tensors, first, as there are ``grads``.
        inputs: its arguments.
        differentiable: positions of the inputs whose gradients are wanted.
        grads: gradients of the first outputs.
    """
    copies = list(inputs)
    for position in differentiable:
        copies[position] = inputs[position].detach().requires_grad_()
    with torch.enable_grad(), _autograd_reachable():
        outputs = function(*copies)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = torch.autograd.grad(
        outputs[: len(grads)],
        [copies[position] for position in differentiable],
        grads,
        allow_unused=True,
    )
    return tuple(
        torch.zeros_like(inputs[position]) if grad is None else _laid_out(grad, inputs[position])
        for position, grad in zip(differentiable, found, strict=True)
    )


def _laid_out(grad: Tensor, like: Tensor) -> Tensor:
    """``grad`` with the strides that the ops' fakes promise, those of ``empty_like``."""
    return grad if grad.stride() == like.stride() else torch.empty_like(like).copy_(grad)

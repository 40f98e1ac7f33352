"""``objective``: Eq. 12 of its parts, and the means that a training log shows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.objective import objective as reference
from ._library import check_index, check_shape, choose, define, require

_WEIGHTS = "float deno_weight, float cont_weight, float expl_weight"


class Objective(NamedTuple):
    """L_tot, and, detached, what it consists of.

    Attributes:
        total: L_tot of Eq. 12, a scalar.
        rec, deno, cont, expl: its parts before their weights, scalars.
        entropy: of the noise-free depth softmax, mean over users, in nats.
        gate: ``[K]``, mean g_k over the rows that reach level k; nan where none does.
    """

    total: Tensor
    rec: Tensor
    deno: Tensor
    cont: Tensor
    expl: Tensor
    entropy: Tensor
    gate: Tensor


def _fake_forward(rec: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    wide = torch.promote_types(rec.dtype, torch.float32)
    levels = rest[7]
    return (
        rec.new_empty(()), rec.new_empty(5), rec.new_empty(levels), rec.new_empty((), dtype=wide)
    )  # fmt: skip


def _fake_backward(
    grad: Tensor, count: Tensor, offsets: Tensor, logits: Tensor | None, tokens: int, *_: Any
) -> tuple[Tensor, ...]:
    d_logits = grad.new_empty(0) if logits is None else torch.empty_like(logits)
    return grad.new_empty(()), grad.new_empty(tokens), d_logits


define(
    "objective",
    "(Tensor rec, Tensor? cont, Tensor? error, Tensor offsets, Tensor computed, Tensor? logits, "
    f"Tensor? gates, Tensor row_depth, int levels, int size, {_WEIGHTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    f"(Tensor grad, Tensor count, Tensor offsets, Tensor? logits, SymInt tokens, {_WEIGHTS}) "
    "-> (Tensor, Tensor, Tensor)",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    note="the model calls it where a kernel runs it, and its parts elsewhere",
    waits=False,
)


class _Objective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: str, rec: Tensor, cont: Tensor | None, error: Tensor | None,
        offsets: Tensor, computed: Tensor, logits: Tensor | None, *rest: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        total, parts, gate, count = torch.ops.adarec_fast.objective_fwd(
            rec, cont, error, offsets, computed, logits, *rest, backend
        )
        ctx.given = cont is not None, error is not None, logits is not None
        ctx.options = 0 if error is None else error.shape[0], *rest[4:], backend
        ctx.save_for_backward(count, offsets, logits)
        ctx.mark_non_differentiable(parts, gate)
        ctx.set_materialize_grads(False)
        return total, parts, gate

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None:
            return (None,) * 14
        found = torch.ops.adarec_fast.objective_bwd(grad, *ctx.saved_tensors, *ctx.options)
        d_cont, d_error, d_logits = (
            tensor if given else None for tensor, given in zip(found, ctx.given, strict=True)
        )
        return None, grad, d_cont, d_error, None, None, d_logits, *(None,) * 7


def objective(
    rec: Tensor,
    cont: Tensor | None,
    error: Tensor | None,
    offsets: Tensor,
    computed: Tensor,
    logits: Tensor | None,
    gates: Tensor | None,
    row_depth: Tensor,
    *,
    levels: int,
    size: int,
    weights: Sequence[float],
    backend: str = "auto",
) -> Objective:
    """L_tot = L_rec + l_deno L_deno + l_cont L_cont + l_expl L_expl (Eq. 12).

    L_deno and L_expl are computed here; see :mod:`adarec_fast.reference.objective`.

    Args:
        rec: L_rec, a scalar, float32 or wider.
        cont: L_cont, a scalar, or None for 0.
        error: ``[N]``, each token's denoising error, summed over its levels and dimensions; not
            read at capacity; or None for L_deno = 0.
        offsets: int64 ``[B+1]``.
        computed: int64 ``[B]``, levels computed.
        logits: ``[B, K]``, of the depth, or None for L_expl = 0.
        gates: ``[K, R]``, g_k; not read beyond a row's depth; or None.
        row_depth: int64 ``[R]``, -1 for a row that does not exist.
        levels: K.
        size: D, by which the error is divided, too.
        weights: l_deno, l_cont and l_expl.
        backend: see :mod:`adarec_fast.ops`.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("rec", rec)
    check_index("offsets", offsets)
    check_index("computed", computed, offsets.shape[0] - 1)
    check_index("row_depth", row_depth)
    require(len(weights) == 3, lambda: f"weights={weights!r} must be three: deno, cont, expl")
    if cont is not None:
        check_shape("cont", cont)
    if error is not None:
        check_shape("error", error, None)
    if logits is not None:
        check_shape("logits", logits, offsets.shape[0] - 1, levels)
    if gates is not None:
        check_shape("gates", gates, levels, row_depth.shape[0])
    chosen = choose("objective", backend, rec.device.type, rec.dtype)
    if chosen == "reference":
        return Objective(*reference(
            rec, cont, error, offsets, computed, logits, gates, row_depth, levels, size, weights
        ))  # fmt: skip
    if torch.compiler.is_compiling():
        # It takes no tensor twice, and read at last positions both depths are the same one.
        row_depth = row_depth.view_as(row_depth)
    tensors = (
        None if tensor is None else tensor.contiguous()
        for tensor in (rec, cont, error, offsets, computed, logits, gates, row_depth)
    )
    total, parts, gate = _Objective.apply(chosen, *tensors, levels, size, *map(float, weights))
    found: tuple[Tensor, ...] = (total, *parts.unbind(), gate)
    return Objective(*found)

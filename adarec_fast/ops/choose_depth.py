"""``choose_depth``: a depth for every sequence, and the mass of every level (Eq. 3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ragged, rng
from ..reference.choose_depth import choose_depth as reference
from ._library import check_index, check_seed, check_shape, choose, define, require, run


class Depths(NamedTuple):
    """What Eq. 3 decides, for B sequences and for the R rows that h is wanted at.

    Attributes:
        depth: int64 ``[B]``, T_u.
        computed: int64 ``[B]``, the deepest level that is computed: the depth, or T.
        row_depth: int64 ``[R]``, ``computed`` of each row's sequence; -1 at capacity.
        mass: ``[T+1, R]``, m_k: 1 up to the depth and 0 beyond in value; 0 at capacity.
    """

    depth: Tensor
    computed: Tensor
    row_depth: Tensor
    mass: Tensor


def _fake_forward(
    logits: Tensor, seed: Tensor | None, offsets: Tensor | None, temperature: float,
    all_levels: bool, rows: int, backend: str,
) -> tuple[Tensor, ...]:
    batch, choices = logits.shape
    whole = torch.int64
    wide = torch.promote_types(logits.dtype, torch.float32)
    by_token = offsets is not None
    return (
        logits.new_empty(batch, dtype=whole),
        logits.new_empty(batch if all_levels else 0, dtype=whole),
        logits.new_empty(rows if by_token else 0, dtype=whole),
        logits.new_empty(choices, rows if by_token else batch),
        logits.new_empty(0 if seed is None else batch, choices, dtype=wide),
    )


def _fake_backward(
    grad_mass: Tensor, soft: Tensor, offsets: Tensor | None, temperature: float, backend: str
) -> Tensor:
    return soft.new_empty(soft.shape, dtype=grad_mass.dtype)


define(
    "choose_depth",
    "(Tensor logits, Tensor? seed, Tensor? offsets, float temperature, bool all_levels, "
    "SymInt rows) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "(Tensor grad_mass, Tensor soft, Tensor? offsets, float temperature) -> Tensor",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    waits=False,
)


class _ChooseDepth(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *inputs: Any) -> tuple[Tensor, ...]:
        depth, computed, row_depth, mass, soft = torch.ops.adarec_fast.choose_depth_fwd(
            *inputs, backend
        )
        _, seed, offsets, temperature, *_ = inputs
        ctx.arguments = (temperature, backend)
        ctx.save_for_backward(soft, offsets)
        constant = (depth, computed, row_depth, soft)
        ctx.mark_non_differentiable(*constant, *((mass,) if seed is None else ()))
        ctx.set_materialize_grads(False)
        return depth, computed, row_depth, mass, soft

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        nothing = (None,) * 7
        grad_mass = grads[3]
        if grad_mass is None:
            return nothing
        d_logits = torch.ops.adarec_fast.choose_depth_bwd(
            grad_mass.contiguous(), *ctx.saved_tensors, *ctx.arguments
        )
        return None, d_logits, *nothing[2:]


def choose_depth(
    logits: Tensor,
    *,
    seed: Tensor | None,
    temperature: float,
    offsets: Tensor | None = None,
    num_tokens: int | None = None,
    all_levels: bool = False,
    backend: str = "auto",
) -> Depths:
    """The depth of every sequence and the mass of its levels, spread to its tokens if asked for.

    With a seed the depth is a sample of Eq. 3: with Gumbel noise g of the contract (element
    sequence * (T+1) + i of ``rng.STREAM_GUMBEL``, level 0) and p = softmax((logits + g) /
    temperature), T_u is p's first argmax, y its one-hot in value and p in gradient, and
    m_k = sum over i >= k of y_i. Without a seed T_u is the logits' first argmax, and m_k has no
    gradient. Half-precision logits are sampled in float32.

    Args:
        logits: ``[B, T+1]`` float, Eq. 2.
        seed: int64 ``[1]`` or ``[3]`` (:mod:`adarec_fast.rng`), or None.
        temperature: tau_gs > 0.
        offsets: int64 ``[B+1]``, to have a row for each of ``num_tokens`` tokens; None: a row is a
            sequence.
        num_tokens: N, with ``offsets``.
        all_levels: every level is computed, whatever the depth: ``computed`` is T.
        backend: see :mod:`adarec_fast.ops`.

    Raises:
        ValueError: a shape, dtype or temperature that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("logits", logits, None, None)
    batch, choices = logits.shape
    require(temperature > 0.0, lambda: f"temperature={temperature} must be greater than 0")
    if seed is not None:
        seed = check_seed(seed)
    if offsets is not None:
        check_index("offsets", offsets, batch + 1)
    require(
        (offsets is None) == (num_tokens is None),
        lambda: f"num_tokens={num_tokens} belongs to offsets, and offsets to it",
    )
    rows = num_tokens or 0
    chosen = choose("choose_depth", backend, logits.device.type, logits.dtype)
    if chosen != "reference":
        depth, computed, row_depth, mass, _ = run(
            _ChooseDepth, "choose_depth", chosen, logits, seed, offsets, temperature, all_levels,
            rows,
        )
        computed = computed if all_levels else depth
        return Depths(depth, computed, computed if offsets is None else row_depth, mass)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    noise = None if seed is None else rng.gumbel(seed, batch, choices, wide.dtype)
    depth, mass, _ = reference(wide, noise, temperature)
    mass = mass.to(logits.dtype)
    computed = torch.full_like(depth, choices - 1) if all_levels else depth
    if offsets is None:
        return Depths(depth, computed, computed, mass)
    row_depth = ragged.row_of_tokens(computed + 1, offsets, rows) - 1
    return Depths(depth, computed, row_depth, ragged.row_of_tokens(mass, offsets, rows, dim=1))

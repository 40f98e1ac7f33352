"""Eq. 12 and what the log shows beside it: means over tokens, users and read-outs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ragged


def denoising_loss(error: Tensor, offsets: Tensor, depth: Tensor, size: int) -> Tensor:
    """L_deno: the mean of (eps_theta - eps)^2 over valid tokens, dimensions and levels 1..depth.

    Args:
        error: ``[N]``, each token's sum over its levels and dimensions.
        offsets: int64 ``[B+1]``.
        depth: int64 ``[B]``, levels computed.
        size: D.

    Returns:
        A scalar; 0 if no sequence has a level beyond 0.
    """
    real = torch.arange(error.shape[0], device=error.device) < offsets[-1]
    total = torch.where(real, error, torch.zeros_like(error)).sum()
    count = (ragged.lengths(offsets) * depth).sum() * size
    return total / count.clamp(min=1).to(error.dtype)


def depth_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the noise-free softmax of each row, mean over rows; 0 for no rows."""
    logarithms = torch.log_softmax(logits, -1)
    return -(logarithms.exp() * logarithms).sum() / max(logits.shape[0], 1)


def exploration_loss(logits: Tensor) -> Tensor:
    """L_expl: the negative entropy of the noise-free softmax, mean over users.

    The paper's text says "negative entropy", which minimised keeps the controller exploring; its
    formula, -sum p log p, is the entropy, which minimised would do the contrary. The text is
    followed: L_expl = sum p log p.
    """
    return -depth_entropy(logits)


def mean_gates(gates: Tensor, depth: Tensor) -> Tensor:
    """Mean g_k ``[K]`` of ``[K, R]`` over the rows that reach level k; nan where none does."""
    reached = ragged.reached_levels(depth, gates.shape[0])
    return torch.where(reached, gates, torch.zeros_like(gates)).sum(1) / reached.sum(1)


def weighted_sum(
    rec: Tensor, deno: Tensor, cont: Tensor, expl: Tensor, weights: Sequence[float]
) -> Tensor:
    """L_tot = L_rec + l_deno L_deno + l_cont L_cont + l_expl L_expl."""
    return rec + weights[0] * deno + weights[1] * cont + weights[2] * expl


def objective(
    rec: Tensor, cont: Tensor | None, error: Tensor | None, offsets: Tensor, computed: Tensor,
    logits: Tensor | None, gates: Tensor | None, row_depth: Tensor, levels: int, size: int,
    weights: Sequence[float],
) -> tuple[Tensor, ...]:
    """L_tot; its parts L_rec, L_deno, L_cont and L_expl; the depth's entropy; mean gates ``[K]``.

    A part without its tensors is 0. All but L_tot is detached.
    """
    zero = torch.zeros((), dtype=rec.dtype, device=rec.device)
    deno = zero if error is None else denoising_loss(error, offsets, computed, size)
    cont = zero if cont is None else cont
    expl = zero if logits is None else exploration_loss(logits)
    gate = rec.new_full((levels,), float("nan"))
    if gates is not None:
        gate = mean_gates(gates, row_depth).detach()
    parts = [part.detach() for part in (rec, deno, cont, expl)]
    entropy = zero if logits is None else -parts[3]
    return weighted_sum(rec, deno, cont, expl, weights), *parts, entropy, gate

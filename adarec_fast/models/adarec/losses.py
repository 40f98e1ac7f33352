"""The training objective: L_tot = L_rec + l_deno L_deno + l_cont L_cont + l_expl L_expl (Eq. 12).

L_rec is :func:`ops.linear_cross_entropy` (Eq. 13), L_cont :func:`ops.level_infonce` (Eq. 6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ... import ops, ragged
from ...reference.objective import (
    denoising_loss,
    depth_entropy,
    exploration_loss,
    weighted_sum,
)
from ..base import LossOutput
from ..blocks.interests import multi_interest_cross_entropy
from ..blocks.sampled_bce import sampled_bce
from ..prediction import prediction_loss
from ..soft_targets import SoftTargets
from . import several
from .config import ADARecConfig
from .outputs import Parsed

__all__ = ["denoising_loss", "depth_entropy", "exploration_loss", "objective"]

if TYPE_CHECKING:
    from ...distributed.items import ShardedItems
    from ...distributed.share import Share


def objective(
    config: ADARecConfig,
    parsed: Parsed,
    items: nn.Embedding | ShardedItems,
    offsets: Tensor,
    targets: Tensor,
    share: Share | None = None,
    soft: SoftTargets | None = None,
    negatives: Tensor | None = None,
) -> LossOutput:
    """Eq. 12 with each of its parts; ``rec`` is Eq. 13 smoothed as configured.

    Args:
        config: the weights, the smoothing, the temperature, the backend.
        parsed: the pass from the histories to h, or to several vectors of a row, the best of which
            ranks an item.
        items: item embeddings ``[V+1, D]``, or a worker's part of them.
        offsets: int64 ``[B+1]``.
        targets: int64 ``[R]``, an item for each row of ``parsed.user``.
        share: where these sequences lie in a batch that several workers share.
        soft: what ``transition_smoothing`` shares the targets' weight with.
        negatives: int64 ``[R, M]``, for a binary cross entropy in the place of Eq. 13.
    """
    if parsed.user.dim() == 3:
        table = items.weight if parsed.table is None else parsed.table
        rec = multi_interest_cross_entropy(parsed.user, table, targets)
    elif negatives is None:
        rec = prediction_loss(config, parsed.user, items, parsed.table, targets, soft, share)
    else:
        table = items.weight if parsed.table is None else parsed.table
        rec = sampled_bce(parsed.user, table, targets, negatives)
    cont = None
    if parsed.contrast is not None:
        asked = targets
        if config.supervision == "all":
            asked = targets[ragged.last_tokens(offsets)]
        contrast, depth = parsed.contrast, parsed.depth
        if parsed.computed is not parsed.depth:
            # Eq. 6 writes no gradient beyond T_u, where the levels computed all the same need one.
            reached = ragged.reached_levels(parsed.depth, config.num_levels)[..., None]
            contrast = torch.where(reached, contrast, torch.zeros_like(contrast))
        if share is not None and share.gather_negatives:
            if config.num_experts > 2:
                gathered = [share.negatives(one, depth, asked) for one in contrast]
                contrast, (_, depth, asked) = torch.stack([z for z, *_ in gathered]), gathered[0]
            else:
                contrast, depth, asked = share.negatives(contrast, depth, asked)
        given = contrast, depth, asked, config.contrastive_temperature
        cont = (
            several.contrast(*given, backend=config.backend) if config.num_experts > 2
            else ops.level_infonce(*given, backend=config.backend)
        )  # fmt: skip
    weights = config.lambda_deno, config.lambda_cont, config.lambda_expl
    if share is not None:
        counts = _counts(config, parsed, items, offsets, targets, share)
        return _of_whole_batch(config, parsed, offsets, rec, cont, counts, weights, share)
    found = ops.objective(
        rec, cont, parsed.error, offsets, parsed.computed, parsed.logits,
        None if parsed.aggregate is None else parsed.aggregate.gates.detach(), parsed.row_depth,
        levels=config.num_levels, size=config.hidden_size, weights=weights,
        backend=_backend(config, rec),
    )  # fmt: skip
    parts = {"rec": found.rec, "deno": found.deno, "cont": found.cont, "expl": found.expl}
    return LossOutput(
        found.total, parts, {},
        _shown(parsed, found.gate, found.entropy, found.deno, _further_gates(parsed)),
    )  # fmt: skip


def _backend(config: ADARecConfig, rec: Tensor) -> str:
    """A kernel where there is one for it; else plain PyTorch, which needs no op around it."""
    there = ops.has_kernel("objective", config.backend, rec.device.type, rec.dtype)
    return config.backend if there else "reference"


def _of_whole_batch(
    config: ADARecConfig,
    parsed: Parsed,
    offsets: Tensor,
    rec: Tensor,
    cont: Tensor | None,
    counts: dict[str, Tensor],
    weights: tuple[float, float, float],
    share: Share,
) -> LossOutput:
    """Eq. 12 of a batch that workers share, of which this one has ``parsed``."""
    zero = torch.zeros((), dtype=rec.dtype, device=rec.device)
    deno = expl = entropy = zero
    if parsed.error is not None:
        deno = denoising_loss(parsed.error, offsets, parsed.computed, config.hidden_size)
    if parsed.logits is not None:
        expl = exploration_loss(parsed.logits)
    further = _further_gates(parsed, means=False)
    parts, (gates, reached, *sums) = share.of_whole_batch(
        {"rec": rec, "deno": deno, "cont": zero if cont is None else cont, "expl": expl},
        counts,
        *gate_sums(parsed, config.num_levels),
        *([] if further is None else further),
    )
    if further is not None:
        further = torch.stack(sums) / reached
    rec, deno, cont, expl = parts.values()
    gate = gates / reached
    if parsed.logits is not None:
        entropy = -expl.detach()
    return LossOutput(
        weighted_sum(rec, deno, cont, expl, weights),
        {name: part.detach() for name, part in parts.items()},
        {},
        _shown(parsed, gate, entropy, deno.detach(), further),
        share.examples,
    )


def _shown(
    parsed: Parsed, gate: Tensor, entropy: Tensor, error: Tensor, further: Tensor | None
) -> dict[str, Tensor]:
    """The diagnostics of a step: T_u ``[B]``; mean g_k ``[T+1]`` over the examples that reach level
    k, nan where none does; the entropy of the noise-free depth softmax, in nats; the mean
    (eps_theta - eps)^2, the same number as the part ``deno``; of more than two experts the gates of
    all but the fine one, ``[N-1, T+1]``."""
    found = {
        "depth": parsed.depth, "gate": gate, "depth_entropy": entropy, "denoising_error": error,
    }  # fmt: skip
    return found if further is None else {**found, "further_gates": further}


def _further_gates(parsed: Parsed, *, means: bool = True) -> Tensor | None:
    """``[N-1, T+1]`` of more than two experts: of all but the fine one, the mean or the sum of
    their gates over the rows that reach each level; else None."""
    if parsed.expert_gates is None:
        return None
    gates = parsed.expert_gates[1:]
    reached = ragged.reached_levels(parsed.row_depth, gates.shape[1])
    sums = torch.where(reached, gates, torch.zeros_like(gates)).sum(-1)
    return sums / reached.sum(-1) if means else sums


def _counts(
    config: ADARecConfig,
    parsed: Parsed,
    items: nn.Embedding | ShardedItems,
    offsets: Tensor,
    targets: Tensor,
    share: Share,
) -> dict[str, Tensor]:
    """How many things each part was averaged over; a part of the whole batch is left out."""
    depth = parsed.depth
    counts = {
        "deno": (ragged.lengths(offsets) * parsed.computed).sum(),
        "expl": depth.new_full((), depth.shape[0]),
    }
    if isinstance(items, nn.Embedding):
        counts["rec"] = (targets > 0).sum()
    if not share.gather_negatives:
        counts["cont"] = (depth - depth // config.num_experts).sum()
    return counts


def gate_sums(parsed: Parsed, levels: int) -> tuple[Tensor, Tensor]:
    """Sum of g_k ``[K]`` over the rows that reach level k, and their number ``[K]``."""
    if parsed.aggregate is None:
        nothing = parsed.user.new_zeros(levels)
        return nothing, nothing
    gates = parsed.aggregate.gates.detach()
    reached = ragged.reached_levels(parsed.row_depth, levels)
    return torch.where(reached, gates, torch.zeros_like(gates)).sum(1), reached.sum(1)

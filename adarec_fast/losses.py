"""The training objective: L_tot = L_rec + l_deno L_deno + l_cont L_cont + l_expl L_expl (Eq. 12).

L_rec is :func:`ops.linear_cross_entropy` (Eq. 13), L_cont :func:`ops.level_infonce` (Eq. 6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import ops, ragged
from .config import ADARecConfig
from .outputs import LossOutput, Parsed

if TYPE_CHECKING:
    from .distributed.items import ShardedItems
    from .distributed.share import Share


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


def objective(
    config: ADARecConfig,
    parsed: Parsed,
    items: nn.Embedding | ShardedItems,
    offsets: Tensor,
    targets: Tensor,
    share: Share | None = None,
) -> LossOutput:
    """Eq. 12 with each of its parts.

    Args:
        config: the weights, the temperature, the backend.
        parsed: the pass from the histories to h.
        items: item embeddings ``[V+1, D]``, or a worker's part of them.
        offsets: int64 ``[B+1]``.
        targets: int64 ``[R]``, an item for each row of ``parsed.user``.
        share: where these sequences lie in a batch that several workers share.
    """
    levels = config.num_levels
    if isinstance(items, nn.Embedding):
        table = items.weight if parsed.table is None else parsed.table
        rec = ops.linear_cross_entropy(parsed.user, table, targets, backend=config.backend)
    else:
        assert share is not None
        everywhere = config.supervision == "all"
        rec = share.cross_entropy(items, parsed.user, targets, everywhere=everywhere)
    zero = torch.zeros((), dtype=rec.dtype, device=rec.device)
    deno = cont = expl = entropy = zero
    if parsed.error is not None:
        deno = denoising_loss(parsed.error, offsets, parsed.computed, config.hidden_size)
    if parsed.contrast is not None:
        asked = targets
        if config.supervision == "all":
            asked = targets[ragged.last_tokens(offsets)]
        contrast, depth = parsed.contrast, parsed.depth
        if parsed.computed is not parsed.depth:
            # Eq. 6 writes no gradient beyond T_u, where the levels computed all the same need one.
            reached = ragged.reached_levels(parsed.depth, levels)[..., None]
            contrast = torch.where(reached, contrast, torch.zeros_like(contrast))
        if share is not None and share.gather_negatives:
            contrast, depth, asked = share.negatives(contrast, depth, asked)
        cont = ops.level_infonce(
            contrast, depth, asked, config.contrastive_temperature, backend=config.backend
        )
    if parsed.logits is not None:
        expl = exploration_loss(parsed.logits)
    gate = rec.new_full((levels,), float("nan"))
    if share is not None:
        parts, gate = share.of_whole_batch(
            {"rec": rec, "deno": deno, "cont": cont, "expl": expl},
            _counts(parsed, items, offsets, targets, share),
            *gate_sums(parsed, levels),
        )
        rec, deno, cont, expl = parts.values()
    elif parsed.aggregate is not None:
        gate = mean_gates(parsed.aggregate.gates, parsed.row_depth).detach()
    if parsed.logits is not None:
        entropy = -expl.detach()
    total = (
        rec
        + config.lambda_deno * deno
        + config.lambda_cont * cont
        + config.lambda_expl * expl
    )
    parts = {"rec": rec, "deno": deno, "cont": cont, "expl": expl}
    return LossOutput(
        total,
        {name: part.detach() for name, part in parts.items()},
        parsed.depth,
        gate,
        entropy,
        deno.detach(),
        None if share is None else share.examples,
    )


def _counts(
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
        counts["cont"] = (depth - depth // 2).sum()
    return counts


def mean_gates(gates: Tensor, depth: Tensor) -> Tensor:
    """Mean g_k ``[K]`` of ``[K, R]`` over the rows that reach level k; nan where none does."""
    reached = ragged.reached_levels(depth, gates.shape[0])
    return torch.where(reached, gates, torch.zeros_like(gates)).sum(1) / reached.sum(1)


def gate_sums(parsed: Parsed, levels: int) -> tuple[Tensor, Tensor]:
    """Sum of g_k ``[K]`` over the rows that reach level k, and their number ``[K]``."""
    if parsed.aggregate is None:
        nothing = torch.zeros(levels, device=parsed.user.device)
        return nothing, nothing
    gates = parsed.aggregate.gates.detach()
    reached = ragged.reached_levels(parsed.row_depth, levels)
    return torch.where(reached, gates, torch.zeros_like(gates)).sum(1), reached.sum(1)

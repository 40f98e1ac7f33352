"""The training objective: L_tot = L_rec + l_deno L_deno + l_cont L_cont + l_expl L_expl (Eq. 12).

L_rec is :func:`ops.linear_cross_entropy` (Eq. 13), L_cont :func:`ops.level_infonce` (Eq. 6).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops, ragged
from .config import ADARecConfig
from .outputs import LossOutput, Parsed


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
    config: ADARecConfig, parsed: Parsed, table: Tensor, offsets: Tensor, targets: Tensor
) -> LossOutput:
    """Eq. 12 with each of its parts.

    Args:
        config: the weights, the temperature, the backend.
        parsed: the pass from the histories to h.
        table: item embeddings ``[V+1, D]``.
        offsets: int64 ``[B+1]``.
        targets: int64 ``[R]``, an item for each row of ``parsed.user``.
    """
    levels = config.num_levels
    rec = ops.linear_cross_entropy(parsed.user, table, targets, backend=config.backend)
    zero = torch.zeros((), dtype=rec.dtype, device=rec.device)
    deno = cont = expl = entropy = zero
    if parsed.error is not None:
        deno = denoising_loss(parsed.error, offsets, parsed.computed, config.hidden_size)
    if parsed.contrast is not None:
        asked = targets
        if config.supervision == "all":
            asked = targets[ragged.last_tokens(offsets)]
        contrast = parsed.contrast
        if parsed.computed is not parsed.depth:
            # Eq. 6 writes no gradient beyond T_u, where the levels computed all the same need one.
            reached = ragged.reached_levels(parsed.depth, levels)[..., None]
            contrast = torch.where(reached, contrast, torch.zeros_like(contrast))
        cont = ops.level_infonce(
            contrast, parsed.depth, asked, config.contrastive_temperature, backend=config.backend
        )
    if parsed.logits is not None:
        expl = exploration_loss(parsed.logits)
        entropy = -expl.detach()
    total = (
        rec
        + config.lambda_deno * deno
        + config.lambda_cont * cont
        + config.lambda_expl * expl
    )
    parts = {"rec": rec, "deno": deno, "cont": cont, "expl": expl}
    gate = rec.new_full((levels,), float("nan"))
    if parsed.aggregate is not None:
        gate = mean_gates(parsed.aggregate.gates, parsed.row_depth).detach()
    return LossOutput(
        total,
        {name: part.detach() for name, part in parts.items()},
        parsed.depth,
        gate,
        entropy,
        deno.detach(),
    )


def mean_gates(gates: Tensor, depth: Tensor) -> Tensor:
    """Mean g_k ``[K]`` of ``[K, R]`` over the rows that reach level k; nan where none does."""
    reached = ragged.reached_levels(depth, gates.shape[0])
    return torch.where(reached, gates, torch.zeros_like(gates)).sum(1) / reached.sum(1)

"""Hierarchical diffusion augmentation: the noise schedule and the denoiser (Eq. 4, 5)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops
from .config import Schedule

# DDPM (Ho, Jain and Abbeel 2020, section 4): 1000 steps, betas linear from 1e-4 to 0.02.
_DDPM_STEPS = 1000
_BETA_FIRST, _BETA_LAST = 1e-4, 0.02
# Read up to here: alpha_bar is about 0.079, a level that is nearly, not wholly, noise.
_DEEPEST_STEP = 500
# Wherever a model is built, on the meta device too.
_EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


def alpha_bar_schedule(max_depth: int, schedule: Schedule) -> Tensor:
    """The cumulative schedule alpha_bar_0..alpha_bar_T, float64 ``[T+1]`` on the CPU, the first 1.

    * ``"respaced"``: DDPM's 1000-step linear schedule read at the steps round(500 k / T). The
      paper names that schedule but runs at most 12 steps; read this way the deepest level is
      almost noise (alpha_bar_T = 0.079) for every T.
    * ``"direct"``: T betas spaced evenly from 1e-4 to 0.02, the literal reading. At T = 8 the
      deepest level then keeps 92% of the signal's variance.
    """
    if max_depth < 1:
        raise ValueError(f"max_depth={max_depth} must be at least 1")
    if schedule == "respaced":
        betas = torch.linspace(_BETA_FIRST, _BETA_LAST, _DDPM_STEPS, **_EXACT)
        cumulative = torch.cumprod(1 - betas, 0)
        steps = [round(_DEEPEST_STEP * k / max_depth) for k in range(1, max_depth + 1)]
        rest = cumulative[torch.tensor(steps, device="cpu") - 1]
    elif schedule == "direct":
        betas = torch.linspace(_BETA_FIRST, _BETA_LAST, max_depth, **_EXACT)
        rest = torch.cumprod(1 - betas, 0)
    else:
        raise ValueError(f"schedule={schedule!r} must be 'respaced' or 'direct'")
    return torch.cat([torch.ones(1, **_EXACT), rest])


class Denoiser(nn.Module):
    """F(E_k, k) = W2 SiLU(W1 [E_k; emb(k)] + b1) + b2, hidden size 2D, with Eq. 4 and 5.

    Args:
        size: D.
        max_depth: T.
        schedule: see :func:`alpha_bar_schedule`.
        bounded: eps_theta is sqrt(1 - alpha_bar_k) E_k + sqrt(alpha_bar_k) F, and not F itself.
    """

    alpha_bar: Tensor

    def __init__(self, size: int, max_depth: int, schedule: Schedule, *, bounded: bool) -> None:
        super().__init__()
        self.bounded = bounded
        hidden = 2 * size
        self.w1 = nn.Parameter(torch.empty(hidden, size, dtype=torch.float32))
        self.level_w1 = nn.Parameter(torch.empty(hidden, size, dtype=torch.float32))
        self.b1 = nn.Parameter(torch.empty(hidden, dtype=torch.float32))
        self.w2 = nn.Parameter(torch.empty(size, hidden, dtype=torch.float32))
        self.b2 = nn.Parameter(torch.empty(size, dtype=torch.float32))
        # float32 whatever the model's dtype: Eq. 4 needs 1 - alpha_bar to be accurate.
        table = alpha_bar_schedule(max_depth, schedule).float().to(torch.get_default_device())
        self.register_buffer("alpha_bar", table, persistent=False)

    def forward(
        self,
        embeddings: Tensor,
        offsets: Tensor,
        depth: Tensor,
        level_embedding: Tensor,
        *,
        seed: Tensor | None,
        noise: Tensor | None = None,
        level_bias: Tensor | None = None,
        max_length: int,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        """The hierarchy x0 ``[T+1, N, D]`` and the error ``[N]`` of :func:`ops.hda_trajectory`.

        ``level_embedding`` is ``[T+1, D]``; ``level_bias`` what follows from it, if that is known.
        """
        return ops.hda_trajectory(
            embeddings, offsets, depth, self.alpha_bar, *self.weights(level_embedding, level_bias),
            seed=seed, noise=noise, bounded=self.bounded, max_length=max_length, backend=backend,
        )

    def weights(
        self, level_embedding: Tensor, level_bias: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """w1, the levels' biases, w2 and b2, in the order of the ops."""
        if level_bias is None:
            level_bias = self.level_bias(level_embedding)
        return self.w1, level_bias, self.w2, self.b2

    def level_bias(self, level_embedding: Tensor) -> Tensor:
        """W1's product with emb(1..T) and b1 ``[T, 2D]``."""
        return F.linear(level_embedding[1:], self.level_w1, self.b1).to(self.w1.dtype)

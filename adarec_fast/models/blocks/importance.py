"""Steps of a diffusion drawn more often where its loss is large (Nichol and Dhariwal 2021, as in
DiffRec's public code).

The last 10 losses of each of T steps are kept. Until every step has 10, t is uniform and its loss
counts as it is. From then on

    p_t = 0.999 r_t / sum r + 0.001 / T,    r_t = sqrt(the mean square of the 10)

and a loss at t is divided by p_t T.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KEPT = 10
_UNIFORM = 0.001


class ImportantSteps(nn.Module):
    """Draws steps and remembers their losses, in buffers that are saved; it never waits for the
    device.

    Args:
        steps: T.
    """

    losses: Tensor
    seen: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.register_buffer("losses", torch.zeros(steps, KEPT, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(steps, dtype=torch.int64))

    def chances(self) -> Tensor:
        """p_t, float64 ``[T]``; while a step lacks losses 1 / T."""
        steps = self.seen.shape[0]
        root = self.losses.square().mean(1).sqrt()
        # Losses of nothing but zeros tell no step from another.
        shares = torch.where(root.sum() > 0, root / root.sum().clamp(min=1e-300), 1 / steps)
        mixed = (1 - _UNIFORM) * shares + _UNIFORM / steps
        return torch.where((self.seen >= KEPT).all(), mixed, 1 / steps)

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Steps int64 and p_t T, float64, shaped like numbers uniform in 0..1, float64."""
        chances = self.chances()
        steps = torch.searchsorted(chances.cumsum(0), uniform, right=True)
        steps = steps.clamp(max=chances.shape[0] - 1)
        return steps, chances[steps] * chances.shape[0]

    @torch.no_grad()
    def remember(self, steps: Tensor, losses: Tensor, counted: Tensor | None = None) -> None:
        """Take up losses, in the order given.

        Args:
            steps: int64 ``[R]``.
            losses: ``[R]``, of each before it was divided.
            counted: bool ``[R]``, False at rows that only fill up; None: all are.
        """
        total = self.seen.shape[0]
        kind = steps if counted is None else torch.where(counted, steps, total)
        number = torch.bincount(kind, minlength=total + 1)
        order = kind.argsort(stable=True)
        begins = number.cumsum(0) - number
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.shape[0], device=order.device) - begins[kind[order]]
        # A row and a column more take what is not kept.
        kept = (kind < total) & (rank >= number[kind] - KEPT)
        known = torch.cat([self.seen, self.seen.new_zeros(1)])
        place = torch.where(kept, (known[kind] + rank) % KEPT, KEPT)
        wide = torch.nn.functional.pad(self.losses, (0, 1, 0, 1))
        wide[kind, place] = losses.detach().double()
        self.losses.copy_(wide[:-1, :-1])
        self.seen += number[:-1]

"""Running sums of what a training epoch reports, kept on the device and read now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import ops

if TYPE_CHECKING:
    from ..distributed import Workers
    from ..models.base import LossOutput

# In this order in every tensor below; the first five are summed as losses.
WATCHED = ("rec", "deno", "cont", "expl", "total", "gradient norm")
_SCALARS = (
    "loss_rec", "loss_deno", "loss_cont", "loss_expl", "loss", "gradient_norm",
    "depth_entropy", "denoising_error",
)  # fmt: skip


class EpochStatistics:
    """Sums over the examples of an epoch, in one float64 tensor on the training device.

    ``add`` never waits for the device; ``read`` does. Besides the sums it remembers the first
    step whose losses or gradient norm were not finite, and from then on tells the optimizer to
    leave the weights alone.

    Args:
        num_levels: T + 1.
        device: the training device.
        workers: those who train together; each sums over its own examples, and reading, at which
            all take part, sums over workers.

    Attributes:
        sums: float64 [8 + 3 (T + 1)]: losses by ``WATCHED``, gradient norm, depth entropy and
            denoising error, each weighted by examples; examples of each depth; sums of the
            gate of each level over the examples that reach it; their number.
        examples: number of examples added, by all workers (host).
    """

    def __init__(
        self, num_levels: int, device: torch.device, workers: Workers | None = None
    ) -> None:
        self.num_levels = num_levels
        self._workers = workers
        self.sums = torch.zeros(len(_SCALARS) + 3 * num_levels, dtype=torch.float64, device=device)
        self.examples = 0
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._bad_parts = torch.zeros(len(WATCHED), dtype=torch.bool, device=device)

    def add(self, output: LossOutput, gradient_norm: Tensor, step: int | Tensor) -> Tensor:
        """Add one step's output.

        Args:
            output: what the model's ``loss`` returned.
            gradient_norm: 0-dim, the norm before clipping.
            step: number of this step, for ``diverged``; an int, or int64 0-dim on the device.

        Returns:
            Float32 0-dim: 1 if this or an earlier step was not finite, else 0; what torch's
            fused Adam takes as ``found_inf``.
        """
        values = [
            *(output.parts[name] for name in WATCHED[:4]), output.total, gradient_norm,
            output.depth_entropy, output.denoising_error,
        ]  # fmt: skip
        # A kernel where there is one; else plain PyTorch, which needs no op around it.
        fused = ops.has_kernel("epoch_statistics", "auto", self.sums.device.type)
        found_inf = ops.epoch_statistics(
            self.sums, self._bad_step, self._bad_parts, values, output.depth.detach(), output.gate,
            step, backend="auto" if fused else "reference",
        )  # fmt: skip
        self.examples += output.depth.numel() if output.examples is None else output.examples
        return found_inf

    def diverged(self) -> tuple[int, list[str]] | None:
        """The first step that was not finite and which values; waits for the device."""
        step = int(self._bad_step)
        if step < 0:
            return None
        bad = self._bad_parts.tolist()
        return step, [name for name, flag in zip(WATCHED, bad, strict=True) if flag]

    def read(self) -> dict[str, Any]:
        """Means over all examples so far, by the names of ``metrics.jsonl``.

        Waits for the device. ``gate`` holds None at levels that no example reached.
        """
        sums = self.whole().tolist()
        examples = max(self.examples, 1)
        result: dict[str, Any] = {
            name: value / examples for name, value in zip(_SCALARS, sums, strict=False)
        }
        levels = self.num_levels
        rest = sums[len(_SCALARS) :]
        counts, gates, reached = rest[:levels], rest[levels : 2 * levels], rest[2 * levels :]
        result["mean_depth"] = sum(k * count for k, count in enumerate(counts)) / examples
        result["depth_share"] = [count / examples for count in counts]
        result["gate"] = [
            total / number if number else None for total, number in zip(gates, reached, strict=True)
        ]
        return result

    def whole(self) -> Tensor:
        """``sums`` over all workers."""
        return self.sums if self._workers is None else self._workers.sum(self.sums.clone())

    def restore(self, whole: Tensor, examples: int) -> None:
        """Go on from what :meth:`whole` and ``examples`` were."""
        if self._workers is None or self._workers.first:
            self.sums.copy_(whole)
        self.examples = examples

    def reset(self) -> None:
        """Begin a new epoch."""
        self.sums.zero_()
        self.examples = 0

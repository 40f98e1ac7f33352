"""Running sums of what a training epoch reports, kept on the device and read now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.base import Diagnostics, LossOutput

if TYPE_CHECKING:
    from ..distributed import Workers


class EpochStatistics:
    """Sums over the examples of an epoch, in one float64 tensor on the training device.

    ``add`` never waits for the device; ``read`` does. Besides the sums it remembers the first
    step whose losses or gradient norm were not finite, and from then on tells the optimizer to
    leave the weights alone.

    Args:
        diagnostics: of the model; they know what the sums are of.
        device: the training device.
        workers: those who train together; each sums over its own examples, and reading, at which
            all take part, sums over workers.

    Attributes:
        sums: float64 ``[diagnostics.size]``.
        examples: number of examples added, by all workers (host).
    """

    def __init__(
        self, diagnostics: Diagnostics, device: torch.device, workers: Workers | None = None
    ) -> None:
        self._diagnostics = diagnostics
        self._workers = workers
        self.sums = torch.zeros(diagnostics.size, dtype=torch.float64, device=device)
        self.examples = 0
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._bad_parts = torch.zeros(len(diagnostics.watched), dtype=torch.bool, device=device)

    def add(
        self, output: LossOutput, gradient_norm: Tensor, step: int | Tensor, examples: int
    ) -> Tensor:
        """Add one step's output.

        Args:
            output: what the model's ``loss`` returned.
            gradient_norm: 0-dim, the norm before clipping.
            step: number of this step, for ``diverged``; an int, or int64 0-dim on the device.
            examples: of the batch, or of this worker's share of it.

        Returns:
            Float32 0-dim: 1 if this or an earlier step was not finite, else 0; what torch's
            fused Adam takes as ``found_inf``.
        """
        found_inf = self._diagnostics.add(
            self.sums, self._bad_step, self._bad_parts, output, gradient_norm, examples, step
        )
        self.examples += examples if output.examples is None else output.examples
        return found_inf

    def diverged(self) -> tuple[int, list[str]] | None:
        """The first step that was not finite and which values; waits for the device."""
        step = int(self._bad_step)
        if step < 0:
            return None
        bad = self._bad_parts.tolist()
        watched = self._diagnostics.watched
        return step, [name for name, flag in zip(watched, bad, strict=True) if flag]

    def read(self) -> dict[str, Any]:
        """Means over all examples so far, by the names of ``metrics.jsonl``; waits."""
        return self._diagnostics.means(self.whole().tolist(), max(self.examples, 1))

    def whole(self) -> Tensor:
        """``sums`` over all workers."""
        if self._workers is None:
            return self.sums
        total = self._workers.sum(self.sums.clone())
        self._workers.meet()  # it is read next
        return total

    def restore(self, whole: Tensor, examples: int) -> None:
        """Go on from what :meth:`whole` and ``examples`` were."""
        if self._workers is None or self._workers.first:
            self.sums.copy_(whole)
        self.examples = examples

    def reset(self) -> None:
        """Begin a new epoch."""
        self.sums.zero_()
        self.examples = 0

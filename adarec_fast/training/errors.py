"""What can go wrong while training; every message says what would be right.

A checkpoint that cannot be written, or that is incomplete, altered or of something else, is an
:class:`adarec_fast.models.pretrained.CheckpointError`.
"""

from __future__ import annotations

from collections.abc import Sequence


class TrainingError(RuntimeError):
    """Base of the errors of a run, other than those of its checkpoints."""


class RunFolderError(TrainingError):
    """A run folder is in use by another process, holds another run, or holds none."""


class RunFolderBusy(RunFolderError):
    """A run folder is in use by another process."""


class TrainingDiverged(TrainingError):
    """A loss or the gradient's norm became NaN or infinite.

    The weights were not updated from that step on, and the checkpoints of before it are kept.

    Attributes:
        step: the optimizer step (from 1, over the whole run) that gave the first such value.
        epoch: the epoch of that step, from 1.
        parts: what was not finite: some of ``"rec"``, ``"deno"``, ``"cont"``, ``"expl"``,
            ``"total"`` and ``"gradient norm"``; or ``"the weights"`` or ``"Adam's state"``, where
            this step's update, from finite losses, was too large.
    """

    def __init__(self, step: int, epoch: int, parts: Sequence[str], kept: str) -> None:
        self.step = step
        self.epoch = epoch
        self.parts = tuple(parts)
        names = ", ".join(part if " " in part else f"loss {part!r}" for part in parts)
        super().__init__(
            f"training diverged at step {step} (epoch {epoch}): {names} not finite; "
            f"{kept}; resuming repeats these steps: start another run, with a lower learning_rate "
            "or gradient_clip above 0"
        )


class CompilationFailed(TrainingError):
    """Kernels that do not compile for the device; the message has the first one's trouble."""

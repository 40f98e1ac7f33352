"""What a system of several losses tells of them."""

from __future__ import annotations

from collections.abc import Mapping

from ..base import Diagnostics, Label, SequenceModel

CROSS_ENTROPY = Label("cross entropy", "nats")
SAMPLED = Label("binary cross entropy, sampled negatives", "nats")


class LossDiagnostics(Diagnostics):
    """The parts of a loss by name, in the order of the log, and how pictures call them."""

    def __init__(self, model: SequenceModel, labels: Mapping[str, Label]) -> None:
        super().__init__(model)
        self.parts = tuple(labels)
        self._labels = dict(labels)

    def labels(self) -> dict[str, Label]:
        return dict(self._labels)

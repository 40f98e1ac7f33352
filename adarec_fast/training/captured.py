"""The whole training step as one CUDA graph a shape: no launch costs the host anything.

A graph fixes shapes and addresses, a batch's number of tokens changes. Batches are therefore given
capacity: rows behind the last token up to the next bucket, which no op reads or writes. Everything
else that changes from step to step lives on the device already: depths, noise (its seed advances
there), Adam's step and rate, the running sums, and the verdict whether a step was finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ..config import Supervision, TrainConfig
from ..data import Batch
from ..data.batches import every_position
from ..models.base import SequenceModel
from ..ops import synchronising
from .optimization import Stepper
from .statistics import EpochStatistics

if TYPE_CHECKING:
    from ..distributed.batches import SharedBatches

_LEAST = 64


def capacity(tokens: int) -> int:
    """Tokens of a batch's bucket: the next quarter of a power of two, in steps of 64 at least."""
    step = max(_LEAST, 1 << max(0, (tokens - 1).bit_length() - 3))
    return -(-tokens // step) * step


def in_bucket(batch: Batch, tokens: int, supervision: Supervision) -> Batch:
    """The batch with ``tokens`` rows: 0, which is no item, behind the last token."""
    spare = batch.item_ids.new_zeros(tokens - batch.item_ids.shape[0])
    targets = batch.targets
    if every_position(supervision):
        targets = torch.cat([targets, spare])
    return batch._replace(item_ids=torch.cat([batch.item_ids, spare]), targets=targets)


def why_not(model: SequenceModel, device: torch.device) -> str | None:
    """Why a step of this model cannot be captured on a device, or None if it can."""
    if device.type != "cuda":
        return f"{device.type} has no CUDA graphs"
    if model.item_features is not None:
        return "items with features have not been tried in CUDA graphs"
    why = model.why_not_captured()
    if why is not None:
        return why
    waiting = synchronising(model.config.backend, device.type)
    if waiting:
        return f"no kernel runs {', '.join(waiting)} here, and plain PyTorch waits for the device"
    return None


class _Graph(NamedTuple):
    """A captured step and the batch that it reads."""

    graph: torch.cuda.CUDAGraph
    batch: Batch


class CapturedStepper(Stepper):
    """A :class:`Stepper` that replays a graph for every shape it has met before.

    The first step of a shape runs as it is, which compiles its kernels and allocates Adam's state;
    the second is captured; all later ones are replayed. All of them run on one stream, since
    autograd remembers the stream that a parameter was first used on.
    """

    capturable = True

    def __init__(
        self,
        model: SequenceModel,
        config: TrainConfig,
        device: torch.device,
        total_steps: int | None = None,
    ) -> None:
        super().__init__(model, config, device, total_steps)
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[int, int], _Graph | None] = {}
        self._number = torch.zeros((), dtype=torch.int64, device=device)
        self._statistics: EpochStatistics | None = None

    def step(self, batch: Batch, number: int, statistics: EpochStatistics) -> None:
        """As :meth:`Stepper.step`; the statistics are the same object at every call."""
        if self._statistics is not statistics:
            if self._statistics is not None:
                raise ValueError("statistics is another object than the one captured steps add to")
            self._statistics = statistics
        examples, tokens = batch.offsets.shape[0] - 1, capacity(batch.item_ids.shape[0])
        key = examples, tokens
        caller = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            self._number.fill_(number)
            self._set_rate(number)
            captured = self._graphs.get(key)
            if captured is not None:
                _fill(captured.batch, batch)
                captured.graph.replay()
                statistics.examples += examples  # a number of the host's, which no graph counts
            else:
                padded = in_bucket(batch, tokens, self.model.config.supervision)
                if key not in self._graphs:
                    self._graphs[key] = None
                    self.update(padded, self._number, statistics)
                else:
                    captured = self._graphs[key] = self._capture(padded)
                    captured.graph.replay()
        caller.wait_stream(self._stream)

    def _capture(self, batch: Batch) -> _Graph:
        """Record a step without taking it. ``batch`` becomes the one that the graph reads."""
        assert self._statistics is not None
        graph = torch.cuda.CUDAGraph()
        # Gradients do not outlive a step, so that all graphs can share one pool of memory.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            self.update(batch, self._number, self._statistics)
        return _Graph(graph, batch)


def _fill(static: Batch, batch: Batch) -> None:
    """Put a batch into a graph's, which has the capacity; what the last one left behind is zero."""
    for name, target in static._asdict().items():
        source = getattr(batch, name)
        target[: source.shape[0]].copy_(source)
        target[source.shape[0] :].zero_()


def make_stepper(
    model: SequenceModel,
    config: TrainConfig,
    device: torch.device,
    shared: SharedBatches | None = None,
    total_steps: int | None = None,
) -> Stepper:
    """Captured steps where they are possible; workers that share batches take plain ones."""
    if shared is not None and not model.fitted:
        from .shared_step import DistributedStepper

        return DistributedStepper(model, config, shared, total_steps)
    kind = Stepper if why_not(model, device) else CapturedStepper
    return kind(model, config, device, total_steps)

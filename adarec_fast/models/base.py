"""What a sequential model is to the rest of the package: a map from a history to a vector, and a
table of item vectors.

Training, evaluation, recommendation, serving, export and the command line use
:class:`SequenceModel` and nothing of a model's own. What only some models have (depths, gates)
reaches logs, answers and pictures through :class:`Diagnostics`.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ConfigError, ModelConfig, listed_fields
from ..data import Batch, EvaluationBatch, ItemFeatures, Split, Vocabulary
from ..ops.serving import RequestParts
from ..ragged import brief
from .memory import Memory
from .recommends import Recommends

if TYPE_CHECKING:
    from ..distributed import Workers
    from ..distributed.items import ShardedItems
    from ..distributed.share import Share


class LossOutput(NamedTuple):
    """A batch's losses and what the training log shows of them. All but ``total`` is detached.

    Diagnostics can be read as attributes: ``output.depth`` is ``output.diagnostics["depth"]``.

    Attributes:
        total: what is minimised, a scalar with gradient.
        parts: its parts by name, scalars before their weights in ``total``.
        weights: of a part, how much a batch counts in the mean over an epoch, such as the number
            of things that the part is a mean of: an int, or 0-dim on the device. A part that is
            left out counts by examples.
        diagnostics: further tensors by name, of fixed shapes.
        examples: of a worker's share of a batch: B of the whole batch, whose means all values
            are; the gradient of ``total`` is the share's part of it.

    Example:
        >>> output = model.loss(next(batches.epoch(0)))
        >>> output.total.requires_grad, output.parts["rec"].requires_grad
        (True, False)
    """

    total: Tensor
    parts: dict[str, Tensor]
    weights: Mapping[str, int | Tensor] = {}
    diagnostics: Mapping[str, Tensor] = {}
    examples: int | None = None

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {brief(value)}" for name, value in self.parts.items())
        told = f"; {', '.join(self.diagnostics)}" if self.diagnostics else ""
        return f"LossOutput(total {brief(self.total)} of {parts or 'no parts'}{told})"

    def __getattr__(self, name: str) -> Tensor:
        # torch.compile asks half-made tuples for names such as __dict__.
        if not name.startswith("_") and name in self.diagnostics:
            return self.diagnostics[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


class Represented(NamedTuple):
    """Users as vectors ``[B, D']`` or ``[B, K, D']``, and what a model tells of each, ``[B]``."""

    vectors: Tensor
    diagnostics: Mapping[str, Tensor] = {}


# From checked, packed histories of at most max_length items (values, offsets).
Plan = Callable[[Tensor, Tensor], Represented]


class UserGraph(nn.Module):
    """A model's inference in ATen's own ops alone, for export.

    ``forward``: ``[B, D']`` of int64 ``[B, L]``, 1 <= L <= max_length, padded with 0 on the right.
    """

    def settled(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The model's own vectors ``[B, D']`` of packed histories, to hold the graph's to; and
        bool ``[B]``, False where rounding decides between two quite different vectors."""
        raise NotImplementedError


class Label(NamedTuple):
    """How a picture names a part of the loss, and in which unit it is."""

    title: str
    unit: str


_LABELS = {"rec": Label("cross entropy", "nats")}


class Diagnostics:
    """What a model tells of itself beside vectors; this one tells of its loss alone.

    Attributes:
        parts: of the loss, in the order of the log.
    """

    parts: tuple[str, ...] = ("rec",)

    def __init__(self, model: SequenceModel) -> None:
        self.model: Any = model
        if model.fitted:
            self.parts = ()

    def labels(self) -> dict[str, Label]:
        """The parts of the loss that are not switched off, for pictures."""
        return {name: _LABELS.get(name, Label(name, "")) for name in self.parts}

    # ------------------------------------------------------------------ training

    @property
    def watched(self) -> tuple[str, ...]:
        """What must be finite in every step."""
        return (*self.parts, "total", "gradient norm")

    @property
    def size(self) -> int:
        """float64 numbers that the running sums of an epoch are."""
        return 2 * len(self.parts) + 2

    def add(
        self,
        sums: Tensor,
        bad_step: Tensor,
        bad_parts: Tensor,
        output: LossOutput,
        gradient_norm: Tensor,
        examples: int,
        step: int | Tensor,
    ) -> Tensor:
        """Add a step to the running sums, in place and without waiting for the device.

        Args:
            sums: float64 ``[size]``.
            bad_step: int64 0-dim, the first step with a watched value that is not finite, -1
                before.
            bad_parts: bool ``[W]``, which of that step's watched values were not.
            output: what ``loss`` returned.
            gradient_norm: 0-dim, before clipping.
            examples: of the batch, or of this worker's share of it.
            step: this step's number, or int64 0-dim on the device.

        Returns:
            Float32 0-dim: 1 if this or an earlier step was not finite, else 0.
        """
        values = [*(output.parts[name] for name in self.parts), output.total, gradient_norm]
        watched = torch.stack([value.detach().double() for value in values])
        not_finite = ~torch.isfinite(watched)
        first = (bad_step < 0) & not_finite.any()
        bad_step.copy_(torch.where(first, step, bad_step))
        bad_parts.copy_(torch.where(first, not_finite, bad_parts))
        weights = torch.full((self.size - len(self.parts),), float(examples), device=sums.device,
                             dtype=torch.float64)  # fmt: skip
        for place, name in enumerate(self.parts):
            if name in output.weights:
                weights[place] = output.weights[name]
        sums += torch.cat([watched * weights, weights[: len(self.parts)]])
        return (bad_step >= 0).float()

    def means(self, sums: list[float], examples: int) -> dict[str, Any]:
        """The running sums as a line of the log: ``loss``, its parts, ``gradient_norm``, and what
        else the model tells; a name ``mean_...`` is shown while training runs."""
        parts = len(self.parts)
        weights = sums[parts + 2 :]
        result: dict[str, Any] = {
            f"loss_{name}": value / max(weight, 1e-300)
            for name, value, weight in zip(self.parts, sums, weights, strict=False)
        }
        result["loss"] = sums[parts] / examples
        result["gradient_norm"] = sums[parts + 1] / examples
        return result

    # ------------------------------------------------------------------ evaluation

    def observer(self) -> Observer:
        """What scores users in an evaluation and gathers what the model tells of them."""
        return Observer(self.model)

    def intents(self, values: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """Vectors ``[B, D']`` that planted intents should be found in, by ``NAME/LABEL``, where
        LABEL is ``theme`` or ``subtheme``."""
        return {}


class Observer:
    """Scores users, and gathers what the model tells of them; this one gathers nothing."""

    def __init__(self, model: SequenceModel) -> None:
        self.model: Any = model

    def scores(self, batch: EvaluationBatch) -> Tensor:
        """``[B, V+1]``, as :meth:`SequenceModel.scores`."""
        scores: Tensor = self.model.scores(batch)
        return scores

    def sums(self) -> list[Tensor]:
        """What workers that each saw a part of the users add up in place, before reading."""
        return []

    def read(self) -> dict[str, Any]:
        """JSON-able values by name, over all users seen."""
        return {}

    def notes(self) -> list[str]:
        """The same in words, a line each, to stand under a table of metrics."""
        return []


@functools.cache
def _forked_on_one_thread() -> None:
    """A process that is forked off computes on one thread, as torch's own data loaders do.

    OpenMP's threads do not come along, and a product that counts on them waits for ever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class SequenceModel(Recommends):
    """A sequential model. A kind of model sets ``config_type``, takes its configuration as the
    first argument and fills in :meth:`loss`, :meth:`represent` and :meth:`table`.

    Attributes:
        source: of the model, for lists: its paper.
        config: the validated configuration.
        item_vocabulary: external ids, or None.
        memory: None, or what every ranking adds to the model's scores.
        takes_features: whether items may have features.
        item_features: None, or what is known of the items beside their ids.
    """

    config_type: ClassVar[type[ModelConfig]]
    source: ClassVar[str] = ""
    takes_features: ClassVar[bool] = False
    item_features: ItemFeatures | None = None
    config: ModelConfig
    item_vocabulary: Vocabulary | None = None
    memory: Memory | None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls)
        if own.get("__doc__") and "config_type" in own:  # help(ADARec) lists what it takes
            fields = listed_fields(cls.config_type)
            cls.__doc__ = f"{own['__doc__'].rstrip()}\n\n    Options:\n{fields}\n    "

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _forked_on_one_thread()
        self.config = config
        self.memory = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(itertools.chain(self.parameters(), self.buffers())).device

    def join_features(self, features: ItemFeatures) -> None:
        """Make what is known of the items a part of their vectors, once, before any training.

        Raises:
            ConfigError: this model has no item vectors that features could be part of.
        """
        raise ConfigError(no_features(type(self)))

    # ------------------------------------------------------------------ training

    @property
    def fitted(self) -> bool:
        """Whether :meth:`prepare` is all its training: it has no parameter, and no loss."""
        return next(self.parameters(), None) is None

    def prepare(self, split: Split) -> None:
        """Called once before training, on the CPU: counts, similarity tables, first stages."""

    def begin_training(self, split: Split) -> None:
        """Called whenever training begins or goes on, on the CPU: what follows from the data and
        is not kept with the model."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before an epoch, from 0: a pure function of (seed, epoch, weights)."""

    @property
    def first_stage(self) -> int:
        """Epochs of a first stage; patience ends a run neither in it nor sooner behind it than it
        could end one that begins there."""
        return 0

    def loss(self, batch: Batch, share: Share | None = None) -> LossOutput:
        """The losses of a training batch, without waiting for the device.

        Args:
            batch: packed histories of at most ``max_length`` items, on the model's device, with
                targets ``[B]`` under ``supervision="prefix"`` or ``[N]`` under ``"all"``. Rows
                behind the last token are capacity: item 0, target 0.
            share: where ``batch`` lies in a batch that several workers share; the losses are then
                the whole batch's, and the gradients of all workers add up to its own.
        """
        raise NotImplementedError

    def why_not_captured(self) -> str | None:
        """Why a step on CUDA cannot become a graph, or None: it never waits for the device."""
        return f"{type(self).__name__} does not say that its steps never wait for the device"

    @property
    def leaves_some_unused(self) -> bool:
        """Whether a step may leave a parameter without a gradient, which workers must look for."""
        return True

    # ------------------------------------------------------------------ vectors

    def represent(self, values: Tensor, offsets: Tensor) -> Tensor:
        """Users ``[B, D']``, or ``[B, K, D']``, in the module's mode.

        The score of item i is the largest of the K products with ``table()[i]``.

        Args:
            values: int64 ``[N]``, item ids 1..num_items, checked.
            offsets: int64 ``[B+1]``; histories of 1..max_length items.
        """
        raise NotImplementedError

    def table(self) -> Tensor:
        """Items ``[V+1, D']``, row 0 padding; a bias is a column of it."""
        raise NotImplementedError

    def score(self, vectors: Tensor) -> Tensor:
        """Logits ``[B, V+1]`` of users as of :meth:`represent`, without the memory; column 0,
        padding, is -inf."""
        scores = F.linear(vectors, self.table())
        scores[..., 0] = float("-inf")
        return scores.amax(1) if scores.dim() == 3 else scores

    def scores(self, batch: EvaluationBatch) -> Tensor:
        """``[B, V+1]`` of a batch of users, without the memory. A model that scores otherwise than
        by products overrides this; what needs vectors (an index of items, captured serving) then
        refuses it.
        """
        return self.score(self.represent(batch.item_ids, batch.offsets))

    @property
    def by_products(self) -> bool:
        """Whether scores are products of :meth:`represent` and :meth:`table`."""
        return type(self).scores is SequenceModel.scores

    # ------------------------------------------------------------------ use

    def diagnostics(self) -> Diagnostics:
        """What the model tells of itself."""
        return Diagnostics(self)

    def explain(self, values: Tensor, offsets: Tensor) -> Represented:
        """:meth:`represent`, with what the model tells of each user."""
        return Represented(self.represent(values, offsets))

    def plan(self) -> Plan | None:
        """:meth:`explain` in evaluation mode with every argument bound once, for serving; it never
        waits for the device where the ops do not. None: there is none for this configuration."""
        return None

    def request_parts(self) -> RequestParts | None:
        """What a whole request is computed from by one call into the C++ extension, where that
        gives what :meth:`plan` does with scores by products; None: its ops are called one by one.
        """
        return None

    def user_graph(self) -> UserGraph:
        """The inference graph for export, of the model in evaluation mode.

        Raises:
            ConfigError: there is none for this model or configuration.
        """
        raise ConfigError(
            f"{type(self).__name__} has no graph that could be exported: its class fills in no "
            "user_graph(); adarec-fast serve serves it"
        )

    # ------------------------------------------------------------------ a split item table

    @property
    def sharded(self) -> ShardedItems | None:
        """The item table where it is split over workers; ``table()`` is then this worker's part."""
        return None

    def split_items(self, workers: Workers) -> None:
        """Leave each worker its part of the item table.

        Raises:
            ConfigError: the model has none that can be split.
        """
        raise ConfigError(
            f"shard_items=True: {type(self).__name__} has no item table that can be split; leave "
            "it off (--no-shard-items)"
        )


def no_features(kind: type[SequenceModel]) -> str:
    """Why a model does not take features of items, and what to do."""
    return (
        f"model {kind.config_type.system}: its items have no vectors that features could be part "
        "of; leave the features out (--items), or choose adarec, sasrec or a model on their encoder"
    )


def initialise(module: nn.Module, generator: torch.Generator, scale: float = 0.02) -> None:
    """Normal(0, scale) matrices, zero biases, unit LayerNorms, as SASRec's public code does.

    Taps of a local path stay zero: nothing is drawn for them, and all else is drawn as without.
    """
    # By kind: a LayerNorm that is itself the module has no name that would tell.
    gains = {id(part.weight) for part in module.modules() if isinstance(part, nn.LayerNorm)}
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if name.endswith("taps"):
                parameter.zero_()
            elif parameter.dim() >= 2 or name.endswith("router_w2"):
                parameter.normal_(0.0, scale, generator=generator)
            elif id(parameter) in gains:
                parameter.fill_(1.0)
            else:
                parameter.zero_()

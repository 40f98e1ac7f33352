"""What a model needs whose loss may be a sampled one, and that may have losses beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from ... import ragged, rng
from ...config import ConfigError, ModelConfig
from ...data import Batch, Split
from ..embedded import EmbeddingModel
from ..encoders.encode import encode
from ..encoders.foreign import ForeignBackbone
from ..encoders.sasrec import SASRecEncoder
from .auxiliary import Auxiliary, Step
from .negatives import Excluded, NegativeSampler

if TYPE_CHECKING:
    from ...distributed import Workers
    from ...distributed.share import Share


C = TypeVar("C", bound=ModelConfig)


class SystemModel(EmbeddingModel):
    """An :class:`EmbeddingModel` around an encoder.

    ``loss="original"`` of its configuration, where it has that field, draws a negative for each
    target, and :meth:`_make_auxiliary` may give losses beside the one that ranks.

    Attributes:
        backbone: the encoder.
        samples: whether the loss that ranks draws negatives.
        negatives: while a model with ``loss="original"`` is trained.
        auxiliary: the losses beside the one that ranks, or None.
    """

    backbone: SASRecEncoder | ForeignBackbone

    def __init__(self, config: ModelConfig, size: int) -> None:
        super().__init__(config, size)
        # Once, since torch.compile does not follow a configuration to a field that it lacks.
        self.samples = getattr(config, "loss", "full_ce") == "original"
        self.negatives: NegativeSampler | None = None
        self.auxiliary: Auxiliary | None = None

    def _make_auxiliary(self) -> Auxiliary | None:
        """The losses of a system that is this model and more."""
        return None

    def encoded(
        self, values: Tensor, offsets: Tensor, seed: Tensor | None, places: Tensor | None = None
    ) -> Tensor:
        """E ``[N, D]`` of packed histories.

        Args:
            values: int64 ``[N]``.
            offsets: int64 ``[B+1]``.
            seed: of dropout; None draws none.
            places: int64 ``[N]``, positions of the tokens instead of their counts from the end.

        Example:
            >>> values, offsets = torch.tensor([1, 9, 4]), torch.tensor([0, 2, 3])
            >>> model.encoded(values, offsets, None).shape
            torch.Size([3, 8])
        """
        found, _ = encode(
            self.backbone, self.item_embedding, values, offsets, seed, self.config.backend, places
        )
        return found

    def begin_training(self, split: Split) -> None:
        super().begin_training(split)
        if self.samples:
            excluded: Excluded = getattr(self.config, "excluded_negatives", "train")
            self.negatives = NegativeSampler.of(split, excluded).to(self.device)
        if self.auxiliary is not None:
            self.auxiliary.begin_training(self, split)

    def begin_epoch(self, epoch: int) -> None:
        if self.auxiliary is not None:
            self.auxiliary.begin_epoch(self, epoch)

    def split_items(self, workers: Workers) -> None:
        if self.samples:
            raise ConfigError(
                "shard_items=True: loss='original' needs the vectors of items that other workers "
                "hold; leave it off (--no-shard-items), or use loss='full_ce'"
            )
        if self.auxiliary is not None:
            raise ConfigError(
                f"shard_items=True: {self.config.system} encodes several times a step, which a "
                "split item table does not; leave it off (--no-shard-items)"
            )
        super().split_items(workers)

    def _draws(self, share: Share | None) -> Tensor | None:
        """The seed ``[3]`` of the coming step at the place of its batch, where a loss draws."""
        if not self.samples and self.auxiliary is None:
            return None
        return rng.at_place(self.noise_seed, None if share is None else share.place)

    def _drawn(self, batch: Batch, draws: Tensor | None) -> Tensor | None:
        """A negative for each target, int64 ``[R, 1]``, or None under the full cross entropy."""
        if not self.samples:
            return None
        assert draws is not None
        if self.negatives is None:
            raise ValueError(
                "loss='original' needs to know what users have met; call begin_training(split) "
                "before the first loss, as train does"
            )
        users, first = batch.users, rng.first_sequence(draws)
        if self.config.supervision == "all":
            owner = ragged.sequence_ids(batch.offsets, batch.item_ids.shape[0])
            users, first = users[owner.clamp(max=users.shape[0] - 1)], rng.first_token(draws)
        drawn: Tensor = self.negatives(draws, users, first)
        return drawn

    def _beside(
        self, batch: Batch, embeddings: Tensor, table: Tensor | None, negatives: Tensor | None,
        draws: Tensor | None, share: Share | None,
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The means of the losses beside the one that ranks, and their counts; see
        :class:`.auxiliary.Step` and :class:`.auxiliary.Parts`."""
        if self.auxiliary is None:
            return {}, {}
        assert draws is not None
        table = self.item_embedding.weight if table is None else table
        step = Step(batch, embeddings, draws, share, table, negatives)
        means, counts = self.auxiliary.losses(self, step)
        return means, counts

    @property
    def weights(self) -> dict[str, float]:
        """Of the losses beside the one that ranks, in the total."""
        return {} if self.auxiliary is None else self.auxiliary.weights

    def why_not_captured(self) -> str | None:
        if self.auxiliary is None:
            return None
        return f"steps of {self.config.system} have not been tried as CUDA graphs"

    @property
    def leaves_some_unused(self) -> bool:
        return self.auxiliary is not None and self.auxiliary.leaves_some_unused


def configured(kind: type[C], config: C | None, options: Mapping[str, Any]) -> C:
    """A configuration of a kind, by a whole one, or fields, or one and changes to it.

    Raises:
        ConfigError: an unknown field, a value out of range, or a configuration of another kind.
    """
    if config is None:
        return kind.create(**options)
    if not isinstance(config, kind):
        raise ConfigError(f"config={config!r} must be an {kind.__name__}")
    return config.replace(**options) if options else config

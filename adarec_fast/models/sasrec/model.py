"""SASRec (Kang and McAuley, ICDM 2018): a causal Transformer over the history, and nothing else.

It is ADARec's backbone alone, trained with the full cross entropy of Eq. 13 (``loss="full_ce"``);
with the same configuration and seed it is that backbone to the last bit.

``loss="original"`` is the paper's binary cross entropy with one sampled negative a target. The
encoder is that of the S3-Rec family's public code (post-LN, GELU, feed-forward 4D), from which
published figures on the four files are, not that of kang205/SASRec. Deviations: negatives are drawn
from 1..V, where that code reaches V+1, its mask token; and a user's held-out items may be negatives
(``excluded_negatives="all"``: they may not, as there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ... import ragged, rng
from ...config import ConfigError, ModelConfig
from ...data import Batch, Split
from ...histories import History
from ...precision import computing
from ..base import Diagnostics, LossOutput, Plan, Represented, UserGraph, initialise
from ..blocks.auxiliary import Auxiliary, Parts, Step
from ..blocks.diagnostics import CROSS_ENTROPY, SAMPLED, LossDiagnostics
from ..blocks.negatives import NegativeSampler
from ..blocks.sampled_bce import sampled_bce
from ..embedded import EmbeddingModel
from ..encoders.encode import encode
from ..encoders.plan import EncoderPlan
from ..encoders.sasrec import SASRecEncoder
from ..prediction import prediction_loss
from ..pretrained import Pretrained
from .config import SASRecConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...distributed import Workers
    from ...distributed.share import Share
    from ..options import SASRecOptions


class SASRec(Pretrained, EmbeddingModel):
    """SASRec's encoder over packed histories, with the item table tied to the output.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`SASRecConfig`, e.g. ``num_items=12101, num_layers=2``.

    Attributes:
        negatives: while a model with ``loss="original"`` is trained.
        auxiliary: the losses beside the one that ranks, of the systems that derive from this one.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    config_type: ClassVar[type[ModelConfig]] = SASRecConfig
    config: SASRecConfig

    def __init__(
        self, config: SASRecConfig | None = None, **options: Unpack[SASRecOptions]
    ) -> None:
        made = configured(SASRecConfig, config, options)
        super().__init__(made, made.hidden_size)
        self.negatives: NegativeSampler | None = None
        self.backbone = SASRecEncoder(made)
        self._add_noise_seed()
        generator = torch.Generator().manual_seed(made.seed)
        for child in self.children():
            initialise(child, generator)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()
        # Behind all that a SASRec draws, which so begins with the same weights.
        self.auxiliary = self._make_auxiliary()

    def _make_auxiliary(self) -> Auxiliary | None:
        """The losses of a system that is this encoder and more."""
        return None

    def forward(self, item_ids: History, lengths: Tensor | None = None) -> Tensor:
        """Users ``[B, D]``; in training mode with dropout.

        Args:
            item_ids: int64 ``[B, L]`` padded with 0, or a jagged pair (values ``[N]``, offsets
                ``[B+1]``). Of longer histories the last ``max_length`` items are read.
            lengths: optional int64 ``[B]`` for the padded form.

        Raises:
            ValueError: a shape, dtype, length or id that does not fit, naming the argument.
        """
        return self.represent(*self._histories(item_ids, lengths))

    def represent(self, values: Tensor, offsets: Tensor) -> Tensor:
        with computing(self.config.precision, self.device.type):
            embeddings, _ = self._encode(values, offsets, self._next_seed())
            return embeddings[ragged.last_tokens(offsets)]

    def loss(self, batch: Batch, share: Share | None = None) -> LossOutput:
        """As configured, the mean over the targets, which is the part ``rec``; see
        :meth:`SequenceModel.loss`."""
        values, offsets, targets = batch.item_ids, batch.offsets, batch.targets
        self._check_targets(values, offsets, targets)
        with computing(self.config.precision, self.device.type):
            place = None if share is None else share.place
            draws = rng.at_place(self.noise_seed, place)
            embeddings, own = self._encode(values, offsets, self._next_seed(place))
            table = self.item_embedding.weight if own is None else own
            negatives = self._drawn(batch, draws) if self.config.loss == "original" else None
            rec = self._of_targets(batch, embeddings, own, negatives, share)
            beside = Parts({})
            if self.auxiliary is not None:
                step = Step(batch, embeddings, draws, share, table, negatives)
                beside = self.auxiliary.losses(self, step)
        means = {"rec": rec, **beside.means}
        if share is not None:
            counts = dict(beside.counts)
            if isinstance(self.item_embedding, nn.Embedding):
                counts["rec"] = (targets > 0).sum()
            if counts:
                means, _ = share.of_whole_batch(means, counts)
        total = means["rec"]
        for name in beside.means:
            total = total + self.weights[name] * means[name]
        parts = {name: mean.detach() for name, mean in means.items()}
        return LossOutput(total, parts, examples=None if share is None else share.examples)

    @property
    def weights(self) -> dict[str, float]:
        """Of the parts beside ``rec`` in the total."""
        return {} if self.auxiliary is None else self.auxiliary.weights

    def _of_targets(
        self, batch: Batch, embeddings: Tensor, table: Tensor | None, negatives: Tensor | None,
        share: Share | None,
    ) -> Tensor:
        """The loss that ranks, the mean over the targets at hand.

        Args:
            batch: the histories.
            embeddings: E ``[N, D]`` of them.
            table: as :meth:`_encode` gives it.
            negatives: int64 ``[R, 1]``; None: the full cross entropy.
            share: where the batch lies in one that workers share.
        """
        rows, targets = embeddings, batch.targets
        if self.config.supervision != "all":
            rows = rows[ragged.last_tokens(batch.offsets)]
        if negatives is None:
            return prediction_loss(
                self.config, rows, self.item_embedding, table, targets, self.soft_targets, share
            )
        table = self.item_embedding.weight if table is None else table
        return sampled_bce(rows, table, targets, negatives)

    def _drawn(self, batch: Batch, draws: Tensor) -> Tensor:
        """A negative for each target, int64 ``[R, 1]``."""
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

    def begin_training(self, split: Split) -> None:
        super().begin_training(split)
        if self.config.loss == "original":
            sampler = NegativeSampler.of(split, self.config.excluded_negatives)
            self.negatives = sampler.to(self.device)
        if self.auxiliary is not None:
            self.auxiliary.begin_training(self, split)

    def begin_epoch(self, epoch: int) -> None:
        if self.auxiliary is not None:
            self.auxiliary.begin_epoch(self, epoch)

    def split_items(self, workers: Workers) -> None:
        if self.config.loss == "original":
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

    def diagnostics(self) -> Diagnostics:
        labels = {"rec": SAMPLED if self.config.loss == "original" else CROSS_ENTROPY}
        if self.auxiliary is not None:
            for name, label in self.auxiliary.labels.items():
                title = f"{label.title}, weight {self.weights[name]:g}"
                labels[name] = label._replace(title=title)
        return LossDiagnostics(self, labels)

    def _encode(
        self, values: Tensor, offsets: Tensor, seed: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """E ``[N, D]``, and the table for the loss where that is not the parameter itself."""
        return encode(
            self.backbone, self.item_embedding, values, offsets, seed, self.config.backend
        )

    def encoded(
        self, values: Tensor, offsets: Tensor, seed: Tensor | None, places: Tensor | None = None
    ) -> Tensor:
        """E ``[N, D]`` of packed histories.

        Args:
            values: int64 ``[N]``.
            offsets: int64 ``[B+1]``.
            seed: of dropout; None draws none.
            places: int64 ``[N]``, positions of the tokens instead of their counts from the end.
        """
        found, _ = encode(
            self.backbone, self.item_embedding, values, offsets, seed, self.config.backend, places
        )
        return found

    def why_not_captured(self) -> str | None:
        if self.auxiliary is None:
            return None
        return f"steps of {self.config.system} have not been tried as CUDA graphs"

    @property
    def leaves_some_unused(self) -> bool:
        return self.auxiliary is not None

    def plan(self) -> Plan | None:
        if not EncoderPlan.suits(self.config.backend, self.table()):
            return None
        return _serving(self)

    def user_graph(self) -> UserGraph:
        from .graph import SASRecGraph  # export's parts take a second to import

        return SASRecGraph(self)


def configured(
    kind: type[SASRecConfig], config: SASRecConfig | None, options: Mapping[str, Any]
) -> Any:
    """A configuration of a kind, by a whole one, or fields, or one and changes to it."""
    if config is None:
        return kind.create(**options)
    return config.replace(**options) if options else config


def _serving(model: SASRec) -> Callable[[Tensor, Tensor], Represented]:
    encoder = EncoderPlan(model.backbone, model.table(), model.config.backend)
    precision, device = model.config.precision, model.device.type

    def plan(values: Tensor, offsets: Tensor) -> Represented:
        with computing(precision, device):
            return Represented(encoder.last(values, offsets))

    return plan

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

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ... import ragged
from ...config import ModelConfig
from ...data import Batch
from ...precision import computing
from ..base import Diagnostics, LossOutput, Plan, Represented, UserGraph, initialise
from ..blocks.diagnostics import CROSS_ENTROPY, SAMPLED, LossDiagnostics
from ..blocks.sampled_bce import sampled_bce
from ..blocks.system import SystemModel, configured
from ..encoders.encode import encode
from ..encoders.plan import EncoderPlan
from ..encoders.sasrec import SASRecEncoder
from ..prediction import prediction_loss
from ..pretrained import Pretrained
from .config import SASRecConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...distributed.share import Share
    from ..options import SASRecOptions


class SASRec(Pretrained, SystemModel):
    """SASRec's encoder over packed histories, with the item table tied to the output.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`SASRecConfig`, e.g. ``num_items=12101, num_layers=2``.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    config_type: ClassVar[type[ModelConfig]] = SASRecConfig
    config: SASRecConfig
    takes_features: ClassVar[bool] = True

    def __init__(
        self, config: SASRecConfig | None = None, **options: Unpack[SASRecOptions]
    ) -> None:
        made = configured(SASRecConfig, config, options)
        super().__init__(made, made.hidden_size)
        self.backbone = SASRecEncoder(made)
        self._add_noise_seed()
        generator = torch.Generator().manual_seed(made.seed)
        for child in self.children():
            initialise(child, generator)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()
        # Behind all that a SASRec draws, which so begins with the same weights.
        self.auxiliary = self._make_auxiliary()

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
            draws = self._draws(share)
            seed = self._next_seed(None if share is None else share.place)
            embeddings, own = self._encode(values, offsets, seed)
            negatives = self._drawn(batch, draws)
            rec = self._of_targets(batch, embeddings, own, negatives, share)
            beside, counted = self._beside(batch, embeddings, own, negatives, draws, share)
        means = {"rec": rec, **beside}
        if share is not None:
            counts = dict(counted)
            if isinstance(self.item_embedding, nn.Embedding):
                counts["rec"] = (targets > 0).sum()
            if counts:
                means, _ = share.of_whole_batch(means, counts)
        total = means["rec"]
        for name in beside:
            total = total + self.weights[name] * means[name]
        parts = {name: mean.detach() for name, mean in means.items()}
        return LossOutput(total, parts, examples=None if share is None else share.examples)

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

    def plan(self) -> Plan | None:
        if not EncoderPlan.suits(self.config.backend, self.table()):
            return None
        return _serving(self)

    def user_graph(self) -> UserGraph:
        from .graph import SASRecGraph  # export's parts take a second to import

        return SASRecGraph(self)


def _serving(model: SASRec) -> Callable[[Tensor, Tensor], Represented]:
    assert isinstance(model.backbone, SASRecEncoder)
    encoder = EncoderPlan(model.backbone, model.table(), model.config.backend)
    precision, device = model.config.precision, model.device.type

    def plan(values: Tensor, offsets: Tensor) -> Represented:
        with computing(precision, device):
            return Represented(encoder.last(values, offsets))

    return plan

"""SASRec (Kang and McAuley, ICDM 2018): a causal Transformer over the history, and nothing else.

It is ADARec's backbone alone, trained with the full cross entropy of Eq. 13 instead of the paper's
sampled one; with the same configuration and seed it is that backbone to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ... import ragged
from ...config import ModelConfig
from ...data import Batch
from ...histories import History
from ...precision import computing
from ..base import LossOutput, Plan, Represented, UserGraph, initialise
from ..embedded import EmbeddingModel
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


class SASRec(Pretrained, EmbeddingModel):
    """SASRec's encoder over packed histories, with the item table tied to the output.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`SASRecConfig`, e.g. ``num_items=12101, num_layers=2``.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    config_type: ClassVar[type[ModelConfig]] = SASRecConfig
    config: SASRecConfig

    def __init__(
        self, config: SASRecConfig | None = None, **options: Unpack[SASRecOptions]
    ) -> None:
        if config is None:
            config = SASRecConfig.create(**options)
        elif options:
            config = config.replace(**options)
        super().__init__(config, config.hidden_size)
        self.backbone = SASRecEncoder(config)
        self._add_noise_seed()
        generator = torch.Generator().manual_seed(config.seed)
        for child in self.children():
            initialise(child, generator)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()

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
        """Eq. 13, the mean over the targets, smoothed as configured, as is the part ``rec``; see
        :meth:`SequenceModel.loss`."""
        values, offsets, targets = batch.item_ids, batch.offsets, batch.targets
        self._check_targets(values, offsets, targets)
        with computing(self.config.precision, self.device.type):
            seed = self._next_seed(None if share is None else share.place)
            user, table = self._encode(values, offsets, seed)
            if self.config.supervision != "all":
                user = user[ragged.last_tokens(offsets)]
            rec = prediction_loss(
                self.config, user, self.item_embedding, table, targets, self.soft_targets, share
            )
        if share is None:
            return LossOutput(rec, {"rec": rec.detach()})
        if isinstance(self.item_embedding, nn.Embedding):
            found, _ = share.of_whole_batch({"rec": rec}, {"rec": (targets > 0).sum()})
            rec = found["rec"]
        return LossOutput(rec, {"rec": rec.detach()}, examples=share.examples)

    def _encode(
        self, values: Tensor, offsets: Tensor, seed: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """E ``[N, D]``, and the table for the loss where that is not the parameter itself."""
        return encode(
            self.backbone, self.item_embedding, values, offsets, seed, self.config.backend
        )

    def why_not_captured(self) -> str | None:
        return None

    @property
    def leaves_some_unused(self) -> bool:
        return False

    def plan(self) -> Plan | None:
        if not EncoderPlan.suits(self.config.backend, self.table()):
            return None
        return _serving(self)

    def user_graph(self) -> UserGraph:
        from .graph import SASRecGraph  # export's parts take a second to import

        return SASRecGraph(self)


def _serving(model: SASRec) -> Callable[[Tensor, Tensor], Represented]:
    encoder = EncoderPlan(model.backbone, model.table(), model.config.backend)
    precision, device = model.config.precision, model.device.type

    def plan(values: Tensor, offsets: Tensor) -> Represented:
        with computing(precision, device):
            return Represented(encoder.last(values, offsets))

    return plan

"""A system that is the built-in encoder, a loss that ranks, and losses beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...data import Batch
from ...precision import computing
from ..base import Diagnostics, LossOutput, initialise
from ..encoders.encode import encode
from ..encoders.sasrec import SASRecEncoder
from ..pretrained import Pretrained
from .diagnostics import CROSS_ENTROPY, SAMPLED, LossDiagnostics
from .system import SystemModel

if TYPE_CHECKING:
    from ...distributed.share import Share


class EncoderModel(Pretrained, SystemModel):
    """The encoder over packed histories; a subclass says how its outputs rank.

    Args:
        config: the configuration, with the encoder's fields.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config, config.hidden_size)
        self.backbone = SASRecEncoder(config)
        self._add_noise_seed()
        generator = torch.Generator().manual_seed(config.seed)
        for child in self.children():
            initialise(child, generator)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()
        # Behind all that a SASRec draws, which so begins with the same weights.
        self.auxiliary = self._make_auxiliary()

    def loss(self, batch: Batch, share: Share | None = None) -> LossOutput:
        """As configured: the part ``rec``, which ranks, the mean over the targets, and those beside
        it before their weights; see :meth:`SequenceModel.loss`."""
        values, offsets, targets = batch.item_ids, batch.offsets, batch.targets
        self._check_targets(values, offsets, targets)
        with computing(self.config.precision, self.device.type):
            draws = self._draws(share)
            seed = self._next_seed(None if share is None else share.place)
            embeddings, own = self._encode(values, offsets, seed)
            negatives = self._drawn(batch, draws)
            rec = self._of_targets(batch, embeddings, own, negatives, seed, share)
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

    def _encode(
        self, values: Tensor, offsets: Tensor, seed: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """E ``[N, D]``, and the table for the loss where that is not the parameter itself."""
        return encode(
            self.backbone, self.item_embedding, values, offsets, seed, self.config.backend
        )

    def _of_targets(
        self, batch: Batch, embeddings: Tensor, table: Tensor | None, negatives: Tensor | None,
        seed: Tensor | None, share: Share | None,
    ) -> Tensor:
        """The loss that ranks, the mean over the targets at hand.

        Args:
            batch: the histories.
            embeddings: E ``[N, D]`` of them.
            table: as :meth:`_encode` gives it.
            negatives: int64 ``[R, 1]``; None: the full cross entropy.
            seed: of this pass' dropout.
            share: where the batch lies in one that workers share.
        """
        raise NotImplementedError

    def diagnostics(self) -> Diagnostics:
        labels = {"rec": SAMPLED if self.samples else CROSS_ENTROPY}
        if self.auxiliary is not None:
            for name, label in self.auxiliary.labels.items():
                title = f"{label.title}, weight {self.weights[name]:g}"
                labels[name] = label._replace(title=title)
        return LossDiagnostics(self, labels)

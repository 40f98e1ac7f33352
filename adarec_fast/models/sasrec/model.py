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

from torch import Tensor

from ... import ragged
from ...config import ModelConfig
from ...data import Batch
from ...ops.serving import RequestParts
from ...precision import computing
from ..base import Plan, Represented, UserGraph
from ..blocks.encoder_model import EncoderModel
from ..blocks.sampled_bce import sampled_bce
from ..blocks.system import configured
from ..encoders.plan import EncoderPlan
from ..encoders.request import encoder_parts
from ..encoders.sasrec import SASRecEncoder
from ..prediction import prediction_loss
from .config import SASRecConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...distributed.share import Share
    from ..options import SASRecOptions


class SASRec(EncoderModel):
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
        super().__init__(configured(SASRecConfig, config, options))

    def represent(self, values: Tensor, offsets: Tensor) -> Tensor:
        with computing(self.config.precision, self.device.type):
            embeddings, _ = self._encode(values, offsets, self._next_seed())
            return self.ranking_vectors(embeddings[ragged.last_tokens(offsets)])

    def ranking_vectors(self, rows: Tensor) -> Tensor:
        """What of the encoder's outputs ``[..., D]`` is multiplied with :meth:`table`."""
        return rows

    def _of_targets(
        self, batch: Batch, embeddings: Tensor, table: Tensor | None, negatives: Tensor | None,
        seed: Tensor | None, share: Share | None,
    ) -> Tensor:
        rows, targets = embeddings, batch.targets
        if self.config.supervision != "all":
            rows = rows[ragged.last_tokens(batch.offsets)]
        if negatives is None:
            return prediction_loss(
                self.config, rows, self.item_embedding, table, targets, self.soft_targets, share
            )
        table = self.item_embedding.weight if table is None else table
        return sampled_bce(rows, table, targets, negatives)

    def plan(self) -> Plan | None:
        if not EncoderPlan.suits(self.config.backend, self.table()):
            return None
        return _serving(self)

    def request_parts(self) -> RequestParts | None:
        plain = type(self).ranking_vectors is SASRec.ranking_vectors
        if not plain or self.config.precision == "bf16":
            return None
        assert isinstance(self.backbone, SASRecEncoder)
        return encoder_parts(self.backbone, self.item_embedding.weight)

    def user_graph(self) -> UserGraph:
        from .graph import SASRecGraph  # export's parts take a second to import

        return SASRecGraph(self)


def _serving(model: SASRec) -> Callable[[Tensor, Tensor], Represented]:
    assert isinstance(model.backbone, SASRecEncoder)
    items = model.item_embedding.weight
    encoder = EncoderPlan(model.backbone, items, model.config.backend)
    precision, device = model.config.precision, model.device.type

    def plan(values: Tensor, offsets: Tensor) -> Represented:
        with computing(precision, device):
            return Represented(model.ranking_vectors(encoder.last(values, offsets)))

    return plan

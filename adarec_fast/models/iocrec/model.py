"""IOCRec (Li et al., "Multi-intention oriented contrastive learning for sequential recommendation",
WSDM 2023).

The states of a history, of a causal Transformer (local) and of learnt queries that attend to all of
its items (global), are split by prototypes into K intents, each a vector m_k; the score of an item
is the greatest m_k e_i. Two augmented views of each history are contrasted, intent by intent:

    L = CE(max_k m_k E, target) + lambda_contrast L_contrast

The authors' code is not public; this follows LFM-bot/IOCRec at a1b91db, a third party's, whose
disentangling is that of Ma et al. (KDD 2020), changed: each position keeps its own vectors, of
which the last ones rank (``pooling="position"``; ``"sum"``: as Ma et al. have it). There LN_5 makes
up for the weights p and w, so that the K vectors of a position lie on a line, as far as its epsilon
leaves them. ``loss="original"`` and ``"full_ce"`` are the same: its own is a full cross entropy.

Deviations from that code:

* Padding takes no part. There, global attention, the weights w and the contrast's concatenation run
  over all 50 positions.
* The softmax of the cross entropy is over items alone, not over padding and the mask, too.
* Views are made of the last ``max_length`` items. All biases begin at 0.
* Every item is ranked; the logs there rank a target among 100 uniform negatives.

Hyper-parameters of its logs (Toys): D 64, 3 layers, 2 heads, feed-forward 2 D, dropout 0.5, K = 4,
lambda_contrast 0.1; Adam 1e-3, batches of 256, patience 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ... import ragged
from ...config import ConfigError, ModelConfig
from ...data import Batch
from ...precision import computing
from ..base import UserGraph
from ..blocks.auxiliary import Auxiliary
from ..blocks.encoder_model import EncoderModel
from ..blocks.interests import multi_interest_cross_entropy
from ..blocks.system import configured
from ..encoders.encode import encode
from .config import IOCRecConfig
from .intents import Places
from .losses import IntentionContrast

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...distributed.share import Share
    from ..options import IOCRecOptions


class IOCRec(EncoderModel):
    """K vectors of each history, the best of which ranks an item.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`IOCRecConfig`, e.g. ``num_items=12101, num_intents=8``.

    Raises:
        ConfigError: an unknown field, or a value out of range.

    Example:
        >>> model = IOCRec(num_items=9, hidden_size=8).eval()
        >>> model(torch.tensor([[1, 2, 3]])).shape  # a vector an intent
        torch.Size([1, 4, 8])
    """

    config_type: ClassVar[type[ModelConfig]] = IOCRecConfig
    config: IOCRecConfig
    auxiliary: IntentionContrast

    def __init__(
        self, config: IOCRecConfig | None = None, **options: Unpack[IOCRecOptions]
    ) -> None:
        super().__init__(configured(IOCRecConfig, config, options))
        self.samples = False  # whichever name the loss is given

    def _make_auxiliary(self) -> Auxiliary:
        return IntentionContrast(self.config)

    def represent(self, values: Tensor, offsets: Tensor) -> Tensor:
        """m ``[B, K, D]``."""
        with computing(self.config.precision, self.device.type):
            seed = self._next_seed()
            local, _ = self._encode(values, offsets, seed)
            return self._intents(values, offsets, local, seed)

    def _encode(
        self, values: Tensor, offsets: Tensor, seed: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        places = self._places(values, offsets).at if self.auxiliary.from_left else None
        return encode(
            self.backbone, self.item_embedding, values, offsets, seed, self.config.backend, places
        )

    def _of_targets(
        self, batch: Batch, embeddings: Tensor, table: Tensor | None, negatives: Tensor | None,
        seed: Tensor | None, share: Share | None,
    ) -> Tensor:
        users = self._intents(batch.item_ids, batch.offsets, embeddings, seed)
        table = self.item_embedding.weight if table is None else table
        return multi_interest_cross_entropy(users, table, batch.targets)

    def _intents(
        self, values: Tensor, offsets: Tensor, local: Tensor, seed: Tensor | None
    ) -> Tensor:
        """m ``[B, K, D]`` of local states ``[N, D]``."""
        found: Tensor = self.auxiliary.intents(
            local, self.item_embedding(values), self._places(values, offsets), seed,
            self.config.backend,
        )
        return found if self.config.pooling == "sum" else found[ragged.last_tokens(offsets)]

    def _places(self, values: Tensor, offsets: Tensor) -> Places:
        return Places.of(
            offsets, values.shape[0], self.config.max_length, from_left=self.auxiliary.from_left
        )

    @property
    def leaves_some_unused(self) -> bool:
        return not self.config.lambda_contrast  # the mask, which stands in views alone

    def user_graph(self) -> UserGraph:
        raise ConfigError(
            f"an export has one vector of a user, and IOCRec has num_intents="
            f"{self.config.num_intents}; serve it with adarec-fast serve, or export another model"
        )

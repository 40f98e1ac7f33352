"""BASRec (Dang et al., "Augmenting sequential recommendation with balanced relevance and
diversity", AAAI 2025; code KingGugu/BASRec).

SASRec trained on synthetic samples, too. ``augmented``: 2 P copies of each history are reordered or
have items replaced by similar ones, and are mixed with it, embedding by embedding, by one
alpha ~ Beta(b, b); each history's loss has the weight 1/(alpha r), r being the share that was
changed, brought to 0..1 over the batch. ``mixed``: in each of W rounds encoded histories are mixed
with others, and their positive and negative items alike: by one alpha a position, and by one a
feature.

    L = L_rec + L_augmented + L_mixed

The paper trains SASRec first and goes on from its best weights. Here both are one run:
``plain_epochs`` of SASRec's loss alone, then all three.

Deviations from the code:

* Adam keeps its moments from the first stage, whose last weights are gone on with, not its best.
* Padding takes no part: where the other history of a mixture is shorter, alpha is 1.
* Of equally similar items the lowest is taken.
* Negatives as in :mod:`..sasrec.model`.
* The code multiplies losses and weights as an outer product, which weighs every history by the sum
  of all weights: ``weighting="outer"``. The paper's is ``"sample"``.
* ``loss="full_ce"`` is ours: mixtures by position share their target as they are mixed; those by
  feature, which have no target, are left out.

Hyper-parameters of the authors: b 0.4, P 2, W 3, ratios 0.2 to 0.71 on Beauty (Sports: b 0.3, 0.1
to 0.81; Yelp: b 0.5, 0.2 to 0.51); 2 layers, dropout 0.1; up to 200 epochs of the second stage,
patience 20.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ...config import ModelConfig
from ..blocks.auxiliary import Auxiliary
from ..blocks.system import configured
from ..sasrec.model import SASRec
from .config import BASRecConfig
from .losses import Mixing

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..options import BASRecOptions


class BASRec(SASRec):
    """BASRec; ranks as SASRec does.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`BASRecConfig`, e.g. ``num_items=12101, plain_epochs=50``.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    config_type: ClassVar[type[ModelConfig]] = BASRecConfig
    config: BASRecConfig

    def __init__(
        self, config: BASRecConfig | None = None, **options: Unpack[BASRecOptions]
    ) -> None:
        super().__init__(configured(BASRecConfig, config, options))

    def _make_auxiliary(self) -> Auxiliary:
        return Mixing(self.config)

    @property
    def first_stage(self) -> int:
        return self.config.plain_epochs

"""ICLRec (Chen, Liu, Li, McAuley and Xiong, "Intent contrastive learning for sequential
recommendation", WWW 2022; code salesforce/ICLRec).

SASRec's encoder and two losses more: two augmented views of a history agree (``sequence``), and a
view agrees with the prototype of its user's cluster (``intent``). Clusters are k-means over the
mean representations of all training histories, made anew at the beginning of every epoch.

    L = L_rec + lambda_sequence L_sequence + lambda_intent L_intent

Deviations from the code:

* Padding takes no part in anything. There the mean runs over 50 positions, padding included, and
  the concatenation that views are compared by holds the outputs at padding.
* Views are made of the last ``max_length`` items; there they are cut after the operators.
* Negatives as in :mod:`..sasrec.model`; k-means as in :func:`adarec_fast.clustering.centroids`.
* One set of clusters. (With several, the code's loop leaves the last one alone.)
* ``mask_false_negatives`` masks users of one cluster in the ``intent`` loss alone. The code's flag,
  which no published script sets, also masks the other loss, by items that are validation targets.

Hyper-parameters of the scripts: 1 layer on Beauty, 2 on Sports and Yelp, 3 on Toys; D = 64, 2
heads, dropout 0.5, K = 256, both weights 0.1; Adam 1e-3 without clipping, batches of 256, patience
40.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ...config import ModelConfig
from ..blocks.auxiliary import Auxiliary
from ..blocks.system import configured
from ..sasrec.model import SASRec
from .config import ICLRecConfig
from .losses import IntentContrast

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..options import ICLRecOptions


class ICLRec(SASRec):
    """ICLRec; ranks as SASRec does.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`ICLRecConfig`, e.g. ``num_items=12101, num_intents=256``.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    config_type: ClassVar[type[ModelConfig]] = ICLRecConfig
    config: ICLRecConfig

    def __init__(
        self, config: ICLRecConfig | None = None, **options: Unpack[ICLRecOptions]
    ) -> None:
        super().__init__(configured(ICLRecConfig, config, options))

    def _make_auxiliary(self) -> Auxiliary:
        return IntentContrast(self.config)

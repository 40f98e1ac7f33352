"""ELCRec (Liu et al., "End-to-end learnable clustering for intent learning in recommendation",
NeurIPS 2024; code yueliu1999/ELCRec).

ICLRec whose centres are parameters: k-means gives them once, before the first step, and gradients
move them from there. Views are compared by vectors that have their nearest centre beside them or
added (``fusion``); the intent of a user is the centre nearest to its normalised mean.

    L = L_rec + lambda_sequence L_sequence + lambda_intent L_intent + lambda_cluster L_cluster

L_cluster draws the mean of the centres to the mean of the users and makes it short; it tells no
cluster from another (see :func:`.losses.clustering`).

Deviations from the code: those of :mod:`..iclrec.model`; the nearest centre is that of each token,
as there, but padding has none. As there, and not as in the paper: users are means over positions,
and L_cluster's second mean runs over all K^2 pairs, the diagonal among them.

Hyper-parameters of the code: layers as ICLRec; K = 256 on Beauty and Yelp, 512 on Sports and Toys;
``fusion="shift"`` on Beauty; lambda_cluster 10 on Beauty, 1 on Sports and Toys, 0.1 on Yelp.
L_cluster is least, -1/2, where all users are one point; with Beauty's 10 our one run went there,
perhaps since padding has no part in our means. ``reproduce`` has 0.1, a choice of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ...config import ModelConfig
from ..blocks.auxiliary import Auxiliary
from ..blocks.system import configured
from ..sasrec.model import SASRec
from .config import ELCRecConfig
from .losses import LearnedIntents

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..options import ELCRecOptions


class ELCRec(SASRec):
    """ELCRec; ranks as SASRec does.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`ELCRecConfig`, e.g. ``num_items=12101, fusion="shift"``.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    config_type: ClassVar[type[ModelConfig]] = ELCRecConfig
    config: ELCRecConfig

    def __init__(
        self, config: ELCRecConfig | None = None, **options: Unpack[ELCRecOptions]
    ) -> None:
        super().__init__(configured(ELCRecConfig, config, options))

    def _make_auxiliary(self) -> Auxiliary:
        return LearnedIntents(self.config)

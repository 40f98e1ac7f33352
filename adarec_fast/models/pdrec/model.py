"""PDRec (Ma et al., "Plug-in diffusion model for sequential recommendation", AAAI 2024; code
hulkima/PDRec at fc557dd).

Before the first epoch a diffusion over each user's whole vector of interactions is trained and
frozen (:mod:`.diffusion`). What it takes a user to prefer steers the training of SASRec's encoder:
targets have weights (``rec``), the best five of the items of highest preference that a history has
not met are further targets (``soft``), and beside a uniform negative of each target there is one
from the bottom of the user's preferences (``negatives``). Ranking needs the encoder alone.

    L = mean w softplus(-x+) + lambda_soft mean softplus(-x_soft)
        + 1/2 [mean softplus(x_uniform) + mean softplus(x_bottom)]

``loss="full_ce"`` is ours: weighted cross entropies of targets and soft targets, and no negatives,
which all items are then. Deviations from the code:

* The encoder is the S3-Rec family's (post-LN, GELU, feed-forward 4 D), with histories of 50.
* What is diffused rises evenly along a history, from ``least_weight`` to 1: the four files have no
  times. The diffusion stops early by NDCG@10 on validation items of up to 4,096 users, looked at
  every five epochs; there by the test items.
* Soft targets are items that the user has not met, as the paper says (``exclude_observed=False``:
  any, as coded, of which most are met ones).
* A weight's floor goes by the least preference among the targets themselves; there padding counts.
* The band of negatives is cut from the order of items that the user has not met, where the code
  counts met ones, the most preferred of all, in its begin. Held-out items may be negatives
  (``excluded_negatives="all"``: they may not, as there).
* Adam's betas are the trainer's; there is no decay of the rate of 0.99 an epoch.

Its hyper-parameters for Amazon's toys: D 64, 2 layers, 1 head, dropout 0.2, rate 0.005, batches of
128; the diffusion's are the defaults here. For books: scale 10, weight_limit 3, rank_share 0.5,
band from 0.8, 100 candidates, 1 soft target, lambda_soft 0.01.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import ModelConfig
from ...data import Batch
from ..blocks.auxiliary import Auxiliary
from ..blocks.system import configured
from ..blocks.weighted_cross_entropy import weighted_cross_entropy
from ..sasrec.model import SASRec
from .config import PDRecConfig
from .losses import Preferences, products, scaled

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...distributed.share import Share
    from ..options import PDRecOptions


class PDRec(SASRec):
    """PDRec; ranks by cosines in the own loss, and as SASRec does in the full cross entropy.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`PDRecConfig`, e.g. ``num_items=12101, candidates=100``.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    # Soft targets are of the whole catalogue, cold items are in no softmax of training.
    takes_features: ClassVar[bool] = False
    config_type: ClassVar[type[ModelConfig]] = PDRecConfig
    config: PDRecConfig
    auxiliary: Preferences

    def __init__(
        self, config: PDRecConfig | None = None, **options: Unpack[PDRecOptions]
    ) -> None:
        super().__init__(configured(PDRecConfig, config, options))

    def _make_auxiliary(self) -> Auxiliary:
        return Preferences(self.config)

    def table(self) -> Tensor:
        weight = self.item_embedding.weight
        return F.normalize(weight, dim=1) if self.auxiliary.scale else weight

    def ranking_vectors(self, rows: Tensor) -> Tensor:
        return scaled(rows, self.auxiliary.scale)

    def _of_targets(
        self, batch: Batch, embeddings: Tensor, table: Tensor | None, negatives: Tensor | None,
        seed: Tensor | None, share: Share | None,
    ) -> Tensor:
        targets, weights = batch.targets, self.auxiliary.target_weights(batch)
        table = self.item_embedding.weight if table is None else table
        weights = weights.to(table.dtype)
        if not self.samples:
            return weighted_cross_entropy(embeddings, table, targets, weights)
        counted = targets > 0
        rows = torch.where(counted[:, None], embeddings, 0.0)
        lost = F.softplus(-products(rows, targets[:, None], table, self.auxiliary.scale))[:, 0]
        return torch.where(counted, weights * lost, 0.0).sum() / counted.sum().clamp(min=1)

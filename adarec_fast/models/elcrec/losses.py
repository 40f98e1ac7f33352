"""ELCRec's losses: centres that gradients move, mixed into the views."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...clustering import nearest
from ..base import Label
from ..blocks.auxiliary import Encodes, Parts, Step, pooled
from ..iclrec.losses import LABELS, Contrast


class LearnedIntents(Contrast):
    """ELCRec's: ``sequence`` over vectors with their nearest centres, ``intent`` with the centre
    nearest to a user's normalised mean, and ``cluster``.

    Attributes:
        centres: C ``[K, D]``, k-means centroids from the first epoch's beginning on.
    """

    def __init__(self, config: Any) -> None:
        labels = {**LABELS, "cluster": Label("clustering", "squared distance")}
        weights = {name: getattr(config, f"lambda_{name}") for name in labels}
        super().__init__(config, labels, weights)
        self.concatenates = config.fusion == "concat"
        generator = torch.Generator().manual_seed(config.seed)
        drawn = torch.empty(config.num_intents, config.hidden_size, dtype=torch.float32)
        self.centres = nn.Parameter(drawn.normal_(0.0, 0.02, generator=generator))

    @torch.no_grad()
    def begin_epoch(self, model: Encodes, epoch: int) -> None:
        if epoch == 0 and self.weights:
            self.centres.copy_(F.normalize(self.clusters(model), dim=1))

    def losses(self, model: Encodes, step: Step) -> Parts:
        means: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        if not self.weights:
            return Parts(means)
        batch = step.batch
        if "sequence" in self.weights or "intent" in self.weights:
            x, views = self.views(model, step)
        if "sequence" in self.weights:
            means["sequence"] = self.sequence(model, step, self._fused(x), views)
        # The code replaces the centres' data by normalised ones here, in every step, and the
        # gradients of what follows go to these as they are.
        with torch.no_grad():
            unit = F.normalize(self.centres, dim=1)
        centres = self.centres + (unit - self.centres).detach()
        query = F.normalize(pooled(model, step.embeddings, batch.offsets), dim=1)
        query = query.to(centres.dtype)
        if "intent" in self.weights:
            with torch.no_grad():
                chosen, _ = nearest(query, unit)
            own = F.embedding(chosen, centres)
            means["intent"] = self.intent(model, step, x, views, own, None)
        if "cluster" in self.weights:
            means["cluster"] = clustering(query, centres)
            counts["cluster"] = batch.offsets.new_full((), query.shape[0])
        if model.training:
            # Not in place of what autograd saved: nothing above saves the centres themselves.
            self.centres.data.copy_(unit)
        return Parts(means, counts)

    def _fused(self, x: Tensor) -> Tensor:
        """Vectors ``[M, D]`` with their nearest centres: ``[M, 2D]`` beside, ``[M, D]`` added."""
        with torch.no_grad():
            # Behind the last token there may be anything; what is chosen there is not read.
            chosen, _ = nearest(x.to(self.centres.dtype), self.centres)
        own = F.embedding(chosen, self.centres).to(x.dtype)
        return torch.cat([x, own], 1) if self.concatenates else x + own


def clustering(queries: Tensor, centres: Tensor) -> Tensor:
    """mean_{b,k} |q_b - c_k|^2 - mean_{k,k'} |c_k - c_k'|^2, over all pairs, a scalar.

    In closed form, with the means q and c, mean |q_b|^2 - mean |c_k|^2 - 2 q c + 2 |c|^2; of unit
    vectors 2 (|c|^2 - q c): the centres count by their mean alone.

    Args:
        queries: ``[B, D]``.
        centres: ``[K, D]``.

    Returns:
        0 if there is no query.
    """
    if not queries.shape[0]:
        return 0.0 * centres.sum()
    centre = centres.mean(0)
    spread = queries.square().sum(1).mean() - centres.square().sum(1).mean()
    return spread + 2 * (centre - queries.mean(0)) @ centre

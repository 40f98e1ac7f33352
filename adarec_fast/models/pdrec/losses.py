"""PDRec's losses beside the one of its weighted targets: soft targets, and two kinds of negatives.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops, ragged, rng
from ...config import ConfigError
from ...data import Batch, Split
from ...ops.linear_cross_entropy import target_lead
from ..base import Label
from ..blocks.auxiliary import Auxiliary, Encodes, Parts, Step
from ..blocks.next_place import with_next
from ..blocks.views import place_of
from .diffusion import Histories, PreferenceDiffusion
from .tables import Tables, tables

LABELS = {
    "soft": Label("soft targets", "nats"),
    "negatives": Label("negatives, uniform and by preference", "nats"),
}


def products(rows: Tensor, items: Tensor, table: Tensor, scale: float) -> Tensor:
    """Logits ``[R, M]``, float32 or wider: cosines times ``scale``, or at 0 products.

    Args:
        rows: ``[R, D]``, finite.
        items: int64 ``[R, M]``.
        table: ``[V+1, D]``.
        scale: T_c.
    """
    with torch.autocast(rows.device.type, enabled=False):
        found = F.embedding(items, table, padding_idx=0)
        rows = scaled(rows.to(torch.promote_types(rows.dtype, torch.float32)), scale)
        return (rows[:, None] * (F.normalize(found, dim=-1) if scale else found)).sum(-1)


def scaled(rows: Tensor, scale: float) -> Tensor:
    """``[..., D]`` of length ``scale``; at 0 as they are."""
    return scale * F.normalize(rows, dim=-1) if scale else rows


class Preferences(Auxiliary):
    """What estimated preferences make of training: weights of targets, soft targets, negatives.

    Attributes:
        diffusion: what estimates them; trained at the beginning of the first epoch, and saved.
    """

    def __init__(self, config: Any) -> None:
        sampled = config.loss == "original"
        super().__init__(LABELS, {"soft": config.lambda_soft, "negatives": 0.5 * sampled})
        self.samples = sampled
        self.scale = config.cosine_scale if self.samples else 0.0
        self.diffusion = PreferenceDiffusion(config)
        self._known: tuple[Histories, ragged.Jagged] | None = None
        self._tables: Tables | None = None

    def begin_training(self, model: Encodes, split: Split) -> None:
        config, train = model.config, ragged.Jagged(*split.inputs("train"))
        owner = ragged.sequence_ids(train.offsets, train.values.shape[0])
        width = split.num_items + 1
        met = torch.bincount(
            torch.unique(owner * width + train.values) // width, minlength=split.num_users
        )
        most = int(met.max()) if config.exclude_observed and met.numel() else 0
        if config.candidates > split.num_items - most:
            user = f", of which user number {int(met.argmax())} has met {most}" if most else ""
            raise ConfigError(
                f"candidates={config.candidates}: soft targets are chosen among so many items, and "
                f"there are {split.num_items}{user}; choose at most {split.num_items - most}, or "
                "more data"
            )
        wanted = split.targets("valid")
        self._known = Histories.of(*train, wanted, config.least_weight), (
            ragged.Jagged(split.data.values, split.data.offsets)
            if config.excluded_negatives == "all" else train
        )
        self._tables = None

    def begin_epoch(self, model: Encodes, epoch: int) -> None:
        if epoch == 0:
            self.diffusion.fit(self._histories()[0])
            self._tables = None

    def _histories(self) -> tuple[Histories, ragged.Jagged]:
        if self._known is None:
            raise ValueError(
                "preferences are those of the training histories; call begin_training(split) "
                "before the first epoch, as train does"
            )
        return self._known

    def tables(self) -> Tables:
        """Of the trained diffusion; computed when they are first asked for, also after a resume."""
        if self._tables is None:
            if not int(self.diffusion.fitted):
                raise ValueError(
                    "preferences are not known yet; call begin_epoch(0) before the first loss, as "
                    "train does"
                )
            histories, spared = self._histories()
            self._tables = tables(
                self.diffusion, histories, spared if self.samples else None, self.diffusion.config
            )
        return self._tables

    def target_weights(self, batch: Batch) -> Tensor:
        """What the loss of each position's target counts, ``[N]``."""
        tokens = batch.item_ids.shape[0]
        owner = ragged.sequence_ids(batch.offsets, tokens).clamp(max=batch.users.shape[0] - 1)
        return self.tables().weights[batch.users[owner], ragged.from_end(batch.offsets, tokens)]

    def losses(self, model: Encodes, step: Step) -> Parts:
        means, counts = {}, {}
        if "soft" in self.weights:
            means["soft"] = self._soft(model, step)
            counts["soft"] = step.draws.new_tensor(step.batch.users.shape[0])
        if "negatives" in self.weights:
            means["negatives"] = self._negatives(step)
            counts["negatives"] = (step.batch.targets > 0).sum()
        return Parts(means, counts)

    def _negatives(self, step: Step) -> Tensor:
        """The mean over targets of softplus of a uniform negative's logit, and of one by
        preference."""
        batch, table = step.batch, self.tables()
        tokens = batch.item_ids.shape[0]
        owner = ragged.sequence_ids(batch.offsets, tokens).clamp(max=batch.users.shape[0] - 1)
        users = batch.users[owner]
        index = torch.arange(tokens, device=users.device) + rng.first_token(step.draws)
        word = rng.words(step.draws, index, rng.STREAM_NEGATIVE, 1)
        chosen = table.pool[users, rng.below(word, table.sizes[users])].long()
        assert step.negatives is not None
        items = torch.cat([step.negatives, chosen[:, None]], 1)
        counted = batch.targets > 0
        rows = torch.where(counted[:, None], step.embeddings, 0.0)
        lost = F.softplus(products(rows, items, step.table, self.scale)).sum(1)
        return torch.where(counted, lost, 0.0).sum() / counted.sum().clamp(min=1)

    def _soft(self, model: Encodes, step: Step) -> Tensor:
        """The mean over users and their soft targets, which are those of the candidates that the
        history with its last target scores highest."""
        batch = step.batch
        users = batch.users.shape[0]
        items, behind, offsets = with_next(
            batch.item_ids, batch.offsets, model.config.max_length - 1
        )
        owner = ragged.sequence_ids(offsets, items.shape[0]).clamp(max=max(users - 1, 0))
        last = batch.targets[ragged.last_tokens(batch.offsets)]
        items = torch.where(behind, last[owner], items) if users else items
        place = place_of(step, offsets)
        seed = rng.of_pass(step.draws, 1, place) if model.training else None
        hidden = model.encoded(items, offsets, seed)[ragged.last_tokens(offsets)]
        candidates = self.tables().candidates[batch.users].long()
        logits = products(hidden, candidates, step.table, self.scale)
        best = logits.detach().topk(model.config.soft_targets, 1).indices
        if self.samples:
            return F.softplus(-logits.gather(1, best)).sum() / max(1, best.numel())
        chosen = candidates.gather(1, best)
        first = chosen[:, 0]
        loss = ops.linear_cross_entropy(
            hidden, step.table, first, backend=model.config.backend
        )
        # The mean over all of them is the first one's, and by how much it leads their mean.
        vectors = F.embedding(chosen, step.table, padding_idx=0)
        return loss + target_lead(hidden, vectors[:, 0], vectors.mean(1), first)

"""The two contrasts that ICLRec and ELCRec have, and ICLRec's intents."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ragged, rng
from ...clustering import centroids, nearest
from ...config import ConfigError
from ...data import Split
from ..base import Label
from ..blocks.augmentation import Ratios, Views, augmented
from ..blocks.auxiliary import Auxiliary, Encodes, Histories, Parts, Step, pooled
from ..blocks.contrast import Tokens, pair_infonce, pair_products
from ..blocks.views import contrast_of_positions, is_user, place_of

LABELS = {
    "sequence": Label("contrast of two views of a history", "nats"),
    "intent": Label("contrast of a view with its user's intent", "nats"),
}


class Contrast(Auxiliary):
    """Two views of every history, encoded for the contrast of histories and again, with another
    dropout, for that of intents; what an intent is, a subclass says.

    Attributes:
        histories: while a model is trained.
    """

    def __init__(self, config: Any, labels: dict[str, Label], weights: dict[str, float]) -> None:
        super().__init__(labels, weights)
        self.histories: Histories | None = None
        self.ratios = Ratios(config.crop_ratio, config.mask_ratio, config.reorder_ratio)
        self.temperature = config.view_temperature

    def begin_training(self, model: Encodes, split: Split) -> None:
        known = Histories(split, model.config.max_length)
        wanted = model.config.num_intents
        if known.number <= wanted:
            raise ConfigError(
                f"num_intents={wanted}: k-means needs more histories than clusters, and "
                f"{known.number} of {split.num_users} users have a training history of two items; "
                f"choose at most {known.number - 1}, or more data"
            )
        self.histories = known.to(model.device)

    def clusters(self, model: Encodes) -> Tensor:
        """Centroids ``[K, D]`` of the training histories' mean representations, of the weights and
        the model's seed alone."""
        if self.histories is None:
            raise ValueError(
                "intents are clusters of the training histories; call begin_training(split) before "
                "the first epoch, as train does"
            )
        points = self.histories.means(model)
        return centroids(points, model.config.num_intents, seed=model.config.seed)

    def views(self, model: Encodes, step: Step) -> tuple[Tensor, Views]:
        """E of the views, ``[M, D]``, and these: two for each contrast that is on."""
        batch, draws = step.batch, step.draws
        levels = [0, 1] * len([name for name in LABELS if name in self.weights])
        views = augmented(batch.item_ids, batch.offsets, draws, levels, self.ratios)
        place = place_of(step, views.offsets, views.each)
        seed = rng.of_pass(draws, 1, place) if model.training else None
        return model.encoded(views.values, views.offsets, seed, views.places), views

    def sequence(self, model: Encodes, step: Step, x: Tensor, views: Views) -> Tensor:
        """The contrast of histories: NT-Xent over the concatenation of all positions.

        Args:
            model: whose ``max_length`` is the number of positions.
            step: the batch.
            x: ``[M, D']``, a vector for each token of the views.
            views: of which the first two of each history are read.
        """
        batch = step.batch.offsets.shape[0] - 1
        view = ragged.sequence_ids(views.offsets, x.shape[0])
        history, column = view // views.each, view % views.each
        taking = (history < batch) & (column < 2)
        rows = torch.where(taking, 2 * history + column, 2 * batch)
        tokens = Tokens(rows, views.places, 2 * batch, model.config.max_length)
        return contrast_of_positions(step, x, tokens, 1, self.temperature)

    def intent(
        self, model: Encodes, step: Step, x: Tensor, views: Views, intents: Tensor,
        ids: Tensor | None,
    ) -> Tensor:
        """The contrast of a view's mean with its user's intent, the mean over both views.

        Args:
            model: who encodes.
            step: the batch.
            x: E ``[M, D]`` of the views.
            views: of which the last two of each history are read.
            intents: ``[B, D]`` of the users.
            ids: int64 ``[B]``; users of one id are not told from each other.
        """
        batch, share = step.batch.offsets.shape[0] - 1, step.share
        means = pooled(model, x, views.offsets)
        means = means.view(batch, views.each, means.shape[1])[:, -2:]
        rows = torch.cat([means, intents[:, None].to(means.dtype)], 1)
        valid = is_user(step)
        if share is not None:
            rows = share.gather(rows, share.most_examples)
            ids = None if ids is None else share.gather(ids, share.most_examples)
        losses = [
            pair_infonce(
                pair_products(rows[:, view], rows[:, 2]), self.temperature, ids=ids, valid=valid
            )
            for view in range(2)
        ]
        return (losses[0] + losses[1]) / 2


class IntentContrast(Contrast):
    """ICLRec's: the intent of a user is the k-means centroid, normalised, that its mean
    representation is nearest to; no gradient goes there.

    Attributes:
        centroids: float32 ``[K, D]``, of the last beginning of an epoch; saved, since the weights
            move on from there.
    """

    centroids: Tensor

    def __init__(self, config: Any) -> None:
        weights = {"sequence": config.lambda_sequence, "intent": config.lambda_intent}
        super().__init__(config, LABELS, weights)
        self.apart = not config.mask_false_negatives
        shape = config.num_intents, config.hidden_size
        self.register_buffer("centroids", torch.zeros(shape, dtype=torch.float32))

    def begin_epoch(self, model: Encodes, epoch: int) -> None:
        if "intent" in self.weights:
            self.centroids.copy_(self.clusters(model))

    def losses(self, model: Encodes, step: Step) -> Parts:
        if not self.weights:
            return Parts({})
        x, views = self.views(model, step)
        means = {}
        if "sequence" in self.weights:
            means["sequence"] = self.sequence(model, step, x, views)
        if "intent" in self.weights:
            with torch.no_grad():
                query = pooled(model, step.embeddings, step.batch.offsets)
                ids, _ = nearest(query.to(self.centroids.dtype), self.centroids)
                intents = F.normalize(self.centroids[ids], dim=1)
            told = None if self.apart else ids
            means["intent"] = self.intent(model, step, x, views, intents, told)
        return Parts(means)

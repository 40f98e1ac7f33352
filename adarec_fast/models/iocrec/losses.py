"""IOCRec's contrast of two views, intent by intent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import ragged, rng
from ..base import Label
from ..blocks.augmentation import Ratios, augmented
from ..blocks.auxiliary import Auxiliary, Encodes, Parts, Step
from ..blocks.contrast import Tokens, pair_infonce, pair_products
from ..blocks.views import contrast_of_positions, is_user, place_of
from .intents import Intents, Places, embedded

LABELS = {"contrast": Label("contrast of two views, intent by intent", "nats")}


class IntentionContrast(Auxiliary):
    """Two views of every history, of which intent k of one is to find intent k of the other among
    all intents of all views.

    Attributes:
        intents: from states to intents.
        mask: ``[D]``, what stands for a masked item.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(LABELS, {"contrast": config.lambda_contrast})
        self.ratios = Ratios(config.crop_ratio, config.mask_ratio, config.reorder_ratio)
        self.temperature = config.view_temperature
        self.from_left = config.positions == "left"
        # Of its own, so that the encoder begins as it would without.
        generator = torch.Generator().manual_seed(config.seed + 1)
        self.intents = Intents(config, generator)
        self.mask = nn.Parameter(torch.empty(config.hidden_size, dtype=torch.float32))
        with torch.no_grad():
            self.mask.normal_(0.0, 0.02, generator=generator)

    def losses(self, model: Encodes, step: Step) -> Parts:
        if not self.weights:
            return Parts({})
        batch, draws = step.batch, step.draws
        users, config = batch.offsets.shape[0] - 1, model.config
        masked = config.num_items + 1
        views = augmented(
            batch.item_ids, batch.offsets, draws, (0, 1), self.ratios, mask_id=masked
        )
        place = place_of(step, views.offsets, views.each)
        seed = rng.of_pass(draws, 1, place) if model.training else None
        places = Places.of(
            views.offsets, views.values.shape[0], config.max_length, from_left=self.from_left
        )
        items = embedded(views.values, step.table, self.mask)
        local = model.backbone(
            items, views.offsets, seed=seed, backend=config.backend, places=places.at
        )
        found = self.intents(local, items, places, seed, config.backend)
        if config.pooling == "sum":
            return Parts({"contrast": self._of_sums(step, found.view(users, 2, *found.shape[1:]))})
        intent = torch.arange(config.num_intents, device=found.device)
        view = ragged.sequence_ids(views.offsets, found.shape[0])[:, None]
        rows = 2 * (view // 2 * config.num_intents + intent) + view % 2
        sequences = 2 * users * config.num_intents
        rows = torch.where(places.real, rows, sequences)
        at = places.at[:, None].expand_as(rows)
        tokens = Tokens(rows.flatten(), at.flatten(), sequences, config.max_length)
        contrast = contrast_of_positions(
            step, found.flatten(0, 1), tokens, config.num_intents, self.temperature
        )
        return Parts({"contrast": contrast})

    def _of_sums(self, step: Step, found: Tensor) -> Tensor:
        """The contrast of a vector an intent, ``[B, 2, K, D]``."""
        valid, share = is_user(step), step.share
        each = found.shape[2]
        if share is not None:
            found = share.gather(found, share.most_examples)
        if valid is not None:
            valid = valid.repeat_interleave(each)
        first, second = (found[:, view].flatten(0, 1) for view in range(2))
        return pair_infonce(pair_products(first, second), self.temperature, valid=valid)

"""RePlay's SASRec (``replay.nn.sequential.SasRec``) through Lightning."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.sequential import SasRec
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adarec_fast.data import Split

from .lightning_trainer import trainer
from .settings import Clock, Settings, training_part

_ITEM = "item_id"


class _Padded(Dataset[dict[str, Any]]):
    """Histories padded on the left beforehand, so that its own reading is not timed."""

    def __init__(self, items: Tensor, targets: Tensor, there: Tensor) -> None:
        self.items, self.targets, self.there = items, targets, there

    def __len__(self) -> int:
        return self.items.shape[0]

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        chosen = torch.tensor(rows)
        there = self.there[chosen]
        return {
            "feature_tensors": {_ITEM: self.items[chosen]}, "padding_mask": there,
            "positive_labels": self.targets[chosen, :, None],
            "target_padding_mask": there[:, :, None],
        }  # fmt: skip


def _whole(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


class RePlaySASRec:
    """The class of its documentation with the full cross entropy; items are 0 ... V-1 there."""

    note = "ReLU; dropout as one number"

    def __init__(self, split: Split, settings: Settings) -> None:
        lightning.seed_everything(settings.seed)
        self.settings, self.padding = settings, split.num_items
        source = TensorFeatureSource(FeatureSource.INTERACTIONS, _ITEM)
        schema = TensorSchema([TensorFeatureInfo(
            _ITEM, is_seq=True, feature_type=FeatureType.CATEGORICAL,
            embedding_dim=settings.hidden_size, padding_value=self.padding,
            cardinality=split.num_items, feature_hint=FeatureHint.ITEM_ID, feature_sources=[source],
        )])  # fmt: skip
        self.model = SasRec.from_params(
            schema, embedding_dim=settings.hidden_size, num_heads=settings.heads,
            num_blocks=settings.layers, max_sequence_length=settings.max_length,
            dropout=settings.dropout, hidden_dim=settings.feed_forward * settings.hidden_size,
        )  # fmt: skip
        parts = training_part(split)
        there = self._padded([part[:-1] for part in parts])
        self.loader = DataLoader(
            _Padded(there, self._padded([part[1:] for part in parts]), there != self.padding),
            batch_size=settings.batch_size, shuffle=True, collate_fn=_whole,
        )  # fmt: skip
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.steps_per_epoch = len(self.loader)

    def _padded(self, histories: list[list[int]]) -> Tensor:
        length = self.settings.max_length
        padded = torch.full((len(histories), length), self.padding)
        for row, history in zip(padded, histories, strict=True):
            kept = history[-length:]
            row[length - len(kept) :] = torch.tensor(kept) - 1
        return padded

    def train(self, clock: Clock, steps: int | None, epochs: int) -> None:
        """So many steps, or whole epochs."""
        module = LightningModule(
            self.model, OptimizerFactory(learning_rate=self.settings.learning_rate)
        )
        trainer(lightning, clock, self.settings, steps, epochs).fit(module, self.loader)

    @torch.no_grad()
    def vectors(self, histories: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Of users and of items 1 ... V."""
        self.model.eval()
        items = self._padded(histories)
        hidden = self.model.body({_ITEM: items}, items != self.padding)
        return hidden[:, -1], self.model.body.embedder.get_item_weights(None)

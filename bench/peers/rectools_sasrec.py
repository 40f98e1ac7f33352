"""RecTools' SASRec (``rectools.models.SASRecModel``), its softmax loss."""

from __future__ import annotations

import pandas
import pytorch_lightning as lightning
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet
from torch import Tensor

from adarec_fast.data import Split

from .lightning_trainer import trainer
from .settings import Clock, Settings, training_part


class RecToolsSASRec:
    """The class of its documentation; its feed-forward half has D hidden units, no choice."""

    note = "feed-forward D instead of 4D; ReLU; dropout as one number"

    def __init__(self, split: Split, settings: Settings) -> None:
        lightning.seed_everything(settings.seed)
        self.settings, self.num_items = settings, split.num_items
        parts = training_part(split)
        rows = [
            (user, item, place)
            for user, part in enumerate(parts) for place, item in enumerate(part)
        ]
        table = pandas.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Datetime])
        table[Columns.Datetime] = pandas.to_datetime(table[Columns.Datetime], unit="s")
        table[Columns.Weight] = 1.0
        self.dataset = Dataset.construct(table)
        self.model = SASRecModel(
            n_blocks=settings.layers, n_heads=settings.heads, n_factors=settings.hidden_size,
            dropout_rate=settings.dropout, session_max_len=settings.max_length, loss="softmax",
            lr=settings.learning_rate, batch_size=settings.batch_size,
            item_net_block_types=(IdEmbeddingsItemNet,),
        )  # fmt: skip
        self.steps_per_epoch = -(-len(parts) // settings.batch_size)
        self.parameters = 0

    def train(self, clock: Clock, steps: int | None, epochs: int) -> None:
        """So many steps, or whole epochs."""
        # What its documentation says of a trainer that is chosen after the model.
        self.model._trainer = trainer(lightning, clock, self.settings, steps, epochs)
        self.model.fit(self.dataset)
        self.parameters = sum(p.numel() for p in self.model.torch_model.parameters())

    @torch.no_grad()
    def vectors(self, histories: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Of users and of items 1 ... V; ranked by them, users get what ``recommend`` gives."""
        network, length = self.model.torch_model.eval(), self.settings.max_length
        rows = self.model.data_preparator.item_id_map.to_internal
        row_of = {item: int(row) for item, row in rows.items() if isinstance(item, int)}
        padded = torch.zeros(len(histories), length, dtype=torch.long)
        for place, history in zip(padded, histories, strict=True):
            kept = [row_of[item] for item in history[-length:] if item in row_of]
            if kept:
                place[length - len(kept) :] = torch.tensor(kept)
        found = network.item_model.get_all_embeddings()
        items = found.new_zeros(self.num_items, found.shape[1])
        items[torch.tensor(list(row_of)) - 1] = found[torch.tensor(list(row_of.values()))]
        hidden = network.encode_sessions({"x": padded}, found)
        return hidden[:, -1], items

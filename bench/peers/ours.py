"""adarec_fast's SASRec and ADARec, and SASRec as plain PyTorch on packed items."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adarec_fast import ADARec
from adarec_fast.config import TrainConfig
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.data.batches import pack
from adarec_fast.models import registry
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.statistics import EpochStatistics

from ..baselines.sasrec import PackedSASRec
from .settings import Clock, Settings


class Ours:
    """A model of the package, stepped as ``adarec-fast train`` steps it."""

    note = ""

    def __init__(self, name: str, split: Split, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.model = registry.build(registry.create_config({
            "model": name, "num_items": split.num_items, "hidden_size": settings.hidden_size,
            "num_layers": settings.layers, "num_heads": settings.heads, "supervision": "all",
            "max_length": settings.max_length, "dropout": settings.dropout,
            "attention_dropout": settings.dropout,
        }))  # fmt: skip
        self.batches, self.settings = _batches(split, settings), settings
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.steps_per_epoch = len(self.batches)

    def train(self, clock: Clock, steps: int | None, epochs: int) -> None:
        """So many steps, or whole epochs."""
        self.model.train()
        cpu = torch.device("cpu")
        config = TrainConfig(
            learning_rate=self.settings.learning_rate, gradient_clip=self.settings.clip
        )
        stepper = Stepper(self.model, config, cpu)
        number = 0
        clock.tick()
        for epoch in range(epochs if steps is None else 1 + steps // self.steps_per_epoch):
            statistics = EpochStatistics(self.model.diagnostics(), cpu)
            for batch in self.batches.epoch(epoch):
                number += 1
                stepper.step(batch, number, statistics)
                clock.tick()
                if number == steps:
                    return

    @torch.no_grad()
    def vectors(self, histories: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Of users and of items 1 ... V."""
        self.model.eval()
        users = self.model.represent(*pack(histories, self.settings.max_length))
        return users, self.model.table()[1:]


class PlainSASRec:
    """SASRec on packed items in plain PyTorch, eager or through ``torch.compile``."""

    note = ""

    def __init__(self, split: Split, settings: Settings, compiled: bool) -> None:
        torch.manual_seed(settings.seed)
        self.owner = ADARec(
            num_items=split.num_items, hidden_size=settings.hidden_size, supervision="all",
            num_layers=settings.layers, num_heads=settings.heads, dropout=settings.dropout,
            attention_dropout=settings.dropout, max_length=settings.max_length,
            moe=False, diffusion=False, depth="fixed",
            lambda_cont=0, lambda_deno=0, lambda_expl=0,
        )  # fmt: skip
        self.model = PackedSASRec(self.owner)
        self.call: Any = torch.compile(self.model, dynamic=True) if compiled else self.model
        self.batches, self.settings = _batches(split, settings), settings
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.steps_per_epoch = len(self.batches)

    def train(self, clock: Clock, steps: int | None, epochs: int) -> None:
        """So many steps, or whole epochs."""
        self.model.train()
        parameters = list(self.model.parameters())
        adam = torch.optim.Adam(parameters, lr=self.settings.learning_rate, fused=True)
        number = 0
        clock.tick()
        for epoch in range(epochs if steps is None else 1 + steps // self.steps_per_epoch):
            for batch in self.batches.epoch(epoch):
                number += 1
                adam.zero_grad(set_to_none=True)
                longest = int(batch.offsets.diff().max())
                self.call(batch.item_ids, batch.offsets, batch.targets, longest).backward()
                nn.utils.clip_grad_norm_(parameters, self.settings.clip)
                adam.step()
                clock.tick()
                if number == steps:
                    return

    @torch.no_grad()
    def vectors(self, histories: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Of users and of items 1 ... V; the weights are those of an ADARec, whose look this is."""
        self.owner.eval()
        users = self.owner.represent(*pack(histories, self.settings.max_length))
        return users, self.owner.table()[1:]


def _batches(split: Split, settings: Settings) -> TrainingBatches:
    return TrainingBatches(
        *split.inputs("train"), supervision="all", batch_size=settings.batch_size,
        max_length=settings.max_length, seed=settings.seed,
    )  # fmt: skip

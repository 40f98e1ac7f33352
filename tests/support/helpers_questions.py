"""A small shop, models of it, and what of all its scores comes first, by sorting them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from adarec_fast import ADARec, InteractionData, Recommender, Split
from adarec_fast.data import EvaluationBatch
from adarec_fast.models.base import SequenceModel
from adarec_fast.models.counting.model import Counting, Popularity
from adarec_fast.models.memory import Memory
from adarec_fast.models.sasrec.model import SASRec

ITEMS, USERS = 40, 30
SMALL: dict[str, Any] = {
    "num_items": ITEMS, "hidden_size": 8, "num_layers": 1, "max_length": 5, "backend": "packed",
}  # fmt: skip


class Interests(SASRec):
    """Two vectors a user."""

    def represent(self, values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        user = super().represent(values, offsets)
        return torch.stack([user, user.flip(1)], 1)

    def plan(self) -> None:
        """The encoder's own would give one."""


def small_model(kind: str, data: InteractionData) -> SequenceModel:
    if kind == "popularity":
        model: SequenceModel = Popularity(num_items=ITEMS)
    elif kind == "counting":
        model = Counting(num_items=ITEMS)
    elif kind == "adarec":
        model = ADARec(**SMALL, max_depth=2, seed=1)
    else:
        model = (Interests if kind == "interests" else SASRec)(**SMALL, seed=1)
    if kind in ("popularity", "counting"):
        model.prepare(Split(data))
    if kind == "memory":
        model.memory = Memory.of(*Split(data).inputs("train"), ITEMS, max_length=5)
    with torch.no_grad():  # scores that rounding does not reorder
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    model.item_vocabulary = data.items
    return model.eval()


KINDS = ["adarec", "memory", "interests", "counting", "popularity"]


class Given(NamedTuple):
    model: SequenceModel
    recommender: Recommender
    histories: list[list[int]]
    scores: torch.Tensor


@torch.no_grad()
def all_scores(model: SequenceModel, histories: list[list[int]]) -> torch.Tensor:
    """All of them, one history after the other."""
    rows = []
    for history in histories:
        values = torch.tensor(history[-model.config.max_length :])
        offsets, user = torch.tensor([0, len(values)]), torch.zeros(1, dtype=torch.int64)
        row = model.scores(EvaluationBatch(values, offsets, user, user, values, offsets))
        if model.memory is not None:
            model.memory.add_to(row, values, offsets)
        rows.append(row)
    return torch.cat(rows)


def best_by_hand(
    scores: torch.Tensor, k: int, allowed: list[set[int]], left_out: list[set[int]]
) -> list[list[int]]:
    """The k best of those that may come, by sorting all."""
    return [
        sorted(may - gone, key=lambda item, row=row: (-float(row[item]), item))[:k]
        for row, may, gone in zip(scores, allowed, left_out, strict=True)
    ]


EVERY = set(range(1, ITEMS + 1))
FEW = [3, 39, 17, 8, 22, 1]
MANY = list(range(2, ITEMS, 2))


def rule(size: int) -> torch.Tensor:
    return torch.arange(1, size + 1) % 3 != 0

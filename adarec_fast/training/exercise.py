"""Everything that a run asks a device for, once: what `build` compiles and `tune` measures."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..config import ModelConfig, Supervision, TrainConfig
from ..data import Batch
from ..data.batches import every_position
from ..models import registry
from ..ranking.recommender import Recommender
from .captured import capacity, in_bucket
from .optimization import Stepper
from .statistics import EpochStatistics

# Mean length of a history, as in the data sets of the paper.
MEAN_LENGTH = 7
_K = 20


def exercise(
    model_config: ModelConfig,
    train_config: TrainConfig,
    device: torch.device,
    *,
    users: int | None = None,
    supervisions: Sequence[Supervision] | None = None,
) -> None:
    """Training steps, the representations of a validation, and requests of few and many users.

    Args:
        model_config: of the model, whose weights are fresh.
        train_config: how it is trained.
        device: where; kernels are collected on the CPU.
        users: histories a batch, drawn at random; None: ``train_config.batch_size``.
        supervisions: of the steps; None: that of ``model_config``.
    """
    count = users or train_config.batch_size
    draw = torch.Generator().manual_seed(0)
    longest = max(2, min(2 * MEAN_LENGTH, model_config.max_length))
    lengths = torch.randint(1, longest, (count,), generator=draw)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    tokens = int(offsets[-1])
    items = torch.randint(1, model_config.num_items + 1, (2, tokens), generator=draw)
    for supervision in supervisions or (model_config.supervision,):
        model = registry.build(model_config.replace(supervision=supervision)).to(device).train()
        if model.fitted:
            continue
        targets = items[1] if every_position(supervision) else items[1, :count]
        batch = Batch(items[0], offsets, targets, torch.arange(count)).to(device)
        stepper = Stepper(model, train_config, device, total_steps=2)
        statistics = EpochStatistics(model.diagnostics(), device)
        batch = in_bucket(batch, capacity(tokens), supervision)
        # As captured, where the step's number is on the device, and as not.
        for number in (1, torch.full((), 2, dtype=torch.int64, device=device)):
            stepper.update(batch, number, statistics)
    model.eval()
    if not model.fitted:
        with torch.no_grad():
            model.represent(batch.item_ids, batch.offsets)
    recommender = Recommender(model, batch_size=count)
    k = min(_K, model_config.num_items)
    asked = 1
    while asked < count:  # the catalogue is shared out in other ways among few
        recommender.recommend([[1]] * asked, k)
        asked *= 2
    recommender.recommend((items[0], offsets), k)

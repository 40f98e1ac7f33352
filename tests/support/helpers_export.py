"""A small model and run to export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adarec_fast import ADARec, Split, TrainConfig, synthetic
from adarec_fast.training import Run

SIZES = {"hidden_size": 16, "num_layers": 1, "max_length": 6, "max_depth": 2}


def make_model(num_items: int, **options: Any) -> ADARec:
    """Depths differ between its users, and no bias or tap is zero."""
    model = ADARec(**{**SIZES, "num_items": num_items, "backend": "packed", **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "depth_controller" in name or "taps" in name or parameter.dim() == 1:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def make_run(path: Path, **options: Any) -> Run:
    data = synthetic(num_users=60, num_items=50)
    model = make_model(data.num_items, **options)
    model.item_vocabulary = data.items
    return Run(path, "best", model, data, Split(data), model.config, TrainConfig(), [], {})

"""Summary statistics of interaction data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dataset import InteractionData
from .splits import Split
from .time_split import in_words

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def inspect(data: InteractionData, top: int = 10) -> dict[str, Any]:
    """What a data set looks like, as a plain dict that ``json`` can write.

    Args:
        data: interaction data; every history needs 3 items for the leave-one-out figures, unless
            the data are split otherwise.
        top: how many of the most frequent items to list.

    Returns:
        ``name``, ``users``, ``items``, ``interactions``, ``density`` (interactions over
        users x items), ``items_untouched``, ``length`` (mean, median, min, max, quantiles),
        ``training_prefixes``, ``sparse_share`` (users with at most 5 items before the test
        item), ``repeated_test_targets`` (share of test targets already in the history),
        ``repeats`` (interactions with an item that the history has already, ``all`` of them and
        those in a row, ``consecutive``: what ``load`` would drop with ``deduplicate``),
        ``ids`` (``"int"`` or ``"str"``, of users and items), ``top_items`` (external id and
        count), ``split`` (None of leave-one-out, else its ``kind``, what was counted of it and
        ``in_words``), and ``report`` (columns with their reasons and what reading dropped, or
        None); of items with features ``features``, what they are, in words.
    """
    split = Split(data)
    asked = split.users("test")
    lengths = data.lengths.numpy()
    counts = torch.bincount(data.values, minlength=data.num_items + 1)[1:]
    # A stable sort lists equally frequent items in the order of their indices.
    order = torch.sort(counts, descending=True, stable=True).indices[:top]
    quantiles = np.quantile(lengths, _QUANTILES)
    return {
        "name": data.name,
        "users": data.num_users,
        "items": data.num_items,
        "interactions": data.num_interactions,
        "density": data.num_interactions / (data.num_users * data.num_items),
        "items_untouched": int((counts == 0).sum()),
        "length": {
            "mean": float(lengths.mean()),
            "median": float(np.median(lengths)),
            "min": int(lengths.min()),
            "max": int(lengths.max()),
            "quantiles": {
                str(q): float(v) for q, v in zip(_QUANTILES, quantiles.tolist(), strict=True)
            },
        },
        "training_prefixes": split.training_prefixes(),
        "sparse_share": _share(split.sparse_users()[asked]),
        "repeated_test_targets": _share(split.repeated_targets("test")[asked]),
        "repeats": _repeats(data),
        "ids": {"user": data.users.kind, "item": data.items.kind},
        "top_items": [
            {"item": item, "count": count}
            for item, count in zip(
                data.items.decode(order + 1), counts[order].tolist(), strict=True
            )
        ],
        "split": None if data.cuts is None else {
            "kind": data.cuts.kind, **data.cuts.facts, "in_words": in_words(data.cuts)
        },
        "report": None if data.report is None else vars(data.report).copy(),
        **({} if data.features is None else {"features": data.features.in_words()}),
    }


def _share(true: Tensor) -> float:
    """Of nobody it is none."""
    return float(true.double().mean()) if true.numel() else 0.0


def _repeats(data: InteractionData) -> dict[str, int]:
    users = torch.repeat_interleave(torch.arange(data.num_users), data.lengths)
    pairs = users * (data.num_items + 1) + data.values
    return {
        "all": data.num_interactions - len(torch.unique(pairs)),
        "consecutive": int((pairs[1:] == pairs[:-1]).sum()),
    }

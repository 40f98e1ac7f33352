"""Public functions given arguments of wrong types: either taken, or refused in words of ours.

An error that torch or Python raises from within says nothing about the argument. So the place that
raised must be a line of this package, and its message must not be a bare one of theirs.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adarec_fast as af
from adarec_fast.export import ExportOptions
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.ranking.frames import recommendation_frame
from adarec_fast.ranking.recommender import exportable

PACKAGE = str(Path(af.__file__).resolve().parent)
DATA = af.synthetic(num_users=12, num_items=40)
SPLIT = af.Split(DATA)
MODEL = af.ADARec(num_items=40, hidden_size=8, num_layers=1, max_depth=1, max_length=5).eval()
RECOMMENDER = af.Recommender(MODEL)
VALUES, OFFSETS = torch.tensor([1, 2, 3]), torch.tensor([0, 2, 3])
WRONG: list[Any] = [
    None, "x", b"x", "", 1.5, -1, 0, True, 2**70, float("nan"), 1j, [], {}, {"a": 1}, set(),
    [None], ["x"], [[1.5]], [[]], (), (1, 2), object(), int, print, np.array([1.5]),
    np.array(["a"]), torch.tensor(1), torch.tensor([0.5]), torch.tensor([[1]], dtype=torch.int32),
    torch.empty(0), torch.ones(2, 2).to_sparse(), (torch.tensor([1]), torch.tensor([2.0])),
    (torch.tensor([1]), "x"), Path("nowhere"),
]  # fmt: skip

# Calls that are right; each argument of theirs is replaced, one at a time.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "ADARec": (
        af.ADARec,
        {"num_items": 9, "hidden_size": 8, "max_depth": 1, "dropout": 0.1, "config": None,
         "backbone": None, "schedule": "direct", "diffusion": True}),
    "forward": (MODEL, {"item_ids": (VALUES, OFFSETS), "lengths": None, "targets": None}),
    "padded": (MODEL, {"item_ids": torch.tensor([[1, 2]]), "lengths": torch.tensor([2])}),
    "representations": (MODEL.representations, {"item_ids": (VALUES, OFFSETS)}),
    "recommend": (
        MODEL.recommend, {"item_ids": [[1, 2]], "lengths": None, "k": 3, "seen": None}),
    "Recommender": (af.Recommender, {"model": MODEL, "batch_size": 4}),
    "Recommender.recommend": (
        RECOMMENDER.recommend, {"histories": [[1, 2]], "k": 3, "exclude": None}),
    "exportable": (exportable, {"model": MODEL, "k": 3}),
    "evaluate": (
        evaluate,
        {"model": MODEL, "split": SPLIT, "part": "test", "ks": (5,), "seen_mask": "off",
         "batch_size": 8, "users": None}),
    "recommendation_frame": (
        recommendation_frame,
        {"model": MODEL, "data": DATA, "k": 3, "users": None, "chunk_size": 8, "part": None,
         "kind": "polars"}),
    "Split": (af.Split, {"data": DATA}),
    "TrainingBatches": (
        af.TrainingBatches,
        {"values": SPLIT.inputs("train")[0], "offsets": SPLIT.inputs("train")[1],
         "supervision": "prefix", "batch_size": 4, "max_length": 5, "seed": 0}),
    "TrainConfig": (af.TrainConfig.create, {"epochs": 1, "learning_rate": 0.1, "device": "cpu"}),
    "ExportOptions": (
        ExportOptions,
        {"k": 3, "max_batch": 4, "users": 5, "dtype": "float32", "user_model": "torch",
         "min_recall": 0.5}),
    "synthetic": (af.synthetic, {"num_users": 9, "num_items": 40, "seed": 0}),
    "from_pretrained": (af.ADARec.from_pretrained, {"folder": "nowhere", "device": "cpu"}),
}  # fmt: skip


def complaint(error: BaseException) -> str | None:
    """What is wrong with an error, or None."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    if not str(Path(place.filename).resolve()).startswith(PACKAGE):
        return f"{type(error).__name__} from {place.filename}:{place.lineno}: {str(error)[:90]}"
    if not isinstance(error, (ValueError, RuntimeError)) or not str(error):
        return f"{type(error).__name__} at {place.filename}:{place.lineno}: {str(error)[:90]}"
    return None


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_wrong_types_are_refused_in_our_words(name: str) -> None:
    function, right = CALLS[name]
    if name != "from_pretrained":
        function(**right)
    found = []
    for argument in right:
        for value in WRONG:
            if isinstance(value, int) and argument in ("num_users", "num_items", "hidden_size"):
                continue  # sizes that are there, and that are taken
            try:
                with torch.no_grad():
                    function(**{**right, argument: value})
            except Exception as error:
                said = complaint(error)
                if said is not None:
                    found.append(f"{argument}={str(value)[:40]!r}: {said}")
    assert not found, "\n".join(found)

"""A recommender in another process: forked off after threads were at work, spawned, copied."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adarec_fast import ADARec, Recommender
from adarec_fast.models.base import SequenceModel
from adarec_fast.models.registry import build, create_config

PLACE = Path(__file__).parents[2]
HISTORIES = [[1 + (user * step) % 40 for step in range(1, 6)] for user in range(40)]
TINY = {"num_items": 40, "hidden_size": 16, "num_layers": 1, "max_length": 10}


def make(name: str) -> SequenceModel:
    if name == "popularity":
        return build(create_config({"model": "popularity", "num_items": 40})).eval()
    model = "adarec" if name == "auto" else name
    return build(create_config({"model": model, **TINY})).eval()


@pytest.mark.parametrize("name", ["auto", "sasrec", "popularity"])
def test_copies_rank_alike(name: str) -> None:
    recommender = Recommender(make(name), batch_size=7)
    expected = recommender.recommend(HISTORIES, 5)
    for other in (copy.deepcopy(recommender), pickle.loads(pickle.dumps(recommender))):
        assert other.batch_size == 7
        found = other.recommend(HISTORIES, 5)
        assert torch.equal(found.items, expected.items)
        assert torch.equal(found.scores, expected.scores)
    weights = pickle.loads(pickle.dumps(recommender.model)).state_dict()
    for key, value in recommender.model.state_dict().items():
        assert torch.equal(weights[key], value)


def test_a_backend_of_the_cpu_alone() -> None:
    for backend in ("packed", "reference"):
        Recommender(ADARec(backend=backend, **TINY)).recommend(HISTORIES, 5)


FORKED = """
import os, signal, torch
torch.set_num_threads(2)
from adarec_fast import ADARec, Recommender
sizes = {{"hidden_size": 64, "num_layers": 1, "max_depth": 2, "max_length": 50}}
model = ADARec(num_items=400, backend={!r}, **sizes)
recommender = Recommender(model)
histories = [[1 + (user * step) % 400 for step in range(1, 41)] for user in range(300)]
expected = recommender.recommend(histories, 5).items
child = os.fork()
if child == 0:
    signal.alarm(60)
    ours = recommender.recommend(histories, 5).items
    again = model.recommend(histories, k=5)[0]
    os._exit(0 if torch.equal(ours, expected) and torch.equal(again, expected) else 3)
assert torch.get_num_threads() == 2
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("backend", ["auto", "packed"])
def test_a_fork_after_threads_were_at_work(backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED.format(backend)], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(PLACE)},
    )  # fmt: skip
    assert done.stdout == "0\n", done.stderr


def test_a_spawned_process() -> None:
    recommender = Recommender(make("auto"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(recommender.recommend, (HISTORIES, 5))
    assert torch.equal(found.items, recommender.recommend(HISTORIES, 5).items)

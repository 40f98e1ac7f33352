"""An exported model adds its memory: the export's own check holds it to the model's ranking."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adarec_fast import Recommender, TrainConfig, synthetic
from adarec_fast.export import ExportOptions, export_run
from adarec_fast.models.memory import TENSORS, VALUES, Memory
from adarec_fast.training import Run, load_run, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = {
        "model": "sasrec", "hidden_size": 16, "num_layers": 1, "max_length": 9,
        "memory": "transitions", "memory_neighbours": 7,
    }  # fmt: skip
    data = synthetic(num_users=60, num_items=50, seed=1)
    train(options, TrainConfig(epochs=1, batch_size=64, device="cpu"), data, folder)
    found = load_run(folder)
    memory = found.model.memory
    assert memory is not None
    memory.alpha, memory.gamma = 1.0, 100.0  # whatever helps this data
    return found


FEW = ExportOptions(k=5, users=12, max_batch=8)


def test_a_program_ranks_with_it(run: Run, tmp_path: Path) -> None:
    made = export_run(run, tmp_path, ["torch"], FEW)[0]
    program = torch.export.load(str(made.folder / "model.pt2")).module()
    history = [3, 8, 3, 11]
    ids = torch.tensor([[*history, 0], [5, 0, 0, 0, 0]])
    items, scores = program(ids, ids.clone())
    wanted = Recommender(run.model).recommend([history, [5]], 5)
    assert torch.equal(items, wanted.items)
    torch.testing.assert_close(scores, wanted.scores, rtol=1e-4, atol=1e-5)
    memory, run.model.memory = run.model.memory, None
    try:
        assert not torch.equal(Recommender(run.model).recommend([history, [5]], 5).items, items)
    finally:
        run.model.memory = memory


@pytest.mark.parametrize("form", ["torch", "embeddings"])
def test_a_memory_of_nothing(form: str, run: Run, tmp_path: Path) -> None:
    """Of people who each took one thing again and again, say."""
    memory, nothing = run.model.memory, torch.zeros(0)
    empty = Memory(
        torch.zeros(run.data.num_items + 2, dtype=torch.int64), nothing.int(), nothing,
        alpha=1.0, gamma=1.0, decay=0.9, max_length=9,
    )  # fmt: skip
    (tmp_path / "memory").mkdir()
    empty.write(tmp_path / "memory")  # tensors of a file, as a run's are
    tensors = load_file(tmp_path / "memory" / TENSORS)
    run.model.memory = Memory.read(tensors, tmp_path / "memory" / VALUES, run.data.num_items)
    try:
        assert export_run(run, tmp_path, [form], FEW)[0].outcome.users >= 12  # type: ignore[list-item]
        assert run.model.memory is not None
    finally:
        run.model.memory = memory


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnxscript")
def test_onnx_ranks_with_it(run: Run, tmp_path: Path) -> None:
    assert export_run(run, tmp_path, ["onnx"], FEW)[0].outcome.users >= 12


def test_vectors_come_with_it(run: Run, tmp_path: Path) -> None:
    made = export_run(run, tmp_path, ["embeddings"], FEW)[0]
    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert set(manifest["memory"]["files"]) == {TENSORS, VALUES}
    assert set(manifest["memory"]["files"]) <= set(manifest["files"])
    assert load_file(made.folder / TENSORS)["rows"].shape == (52,)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="needs faiss")
def test_an_index_and_the_memory_find_what_both_rank_best(run: Run, tmp_path: Path) -> None:
    options = ExportOptions(k=5, users=12, max_batch=8, index="Flat", search="")
    made = export_run(run, tmp_path, ["ann"], options)[0]
    assert made.index is not None
    assert made.index.recall == 1.0

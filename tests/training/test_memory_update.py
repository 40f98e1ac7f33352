"""New interactions counted into a run's memory: users and items of before and new ones."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner, Result

from adarec_fast import TrainConfig
from adarec_fast.cli import app
from adarec_fast.data import DataError, InteractionData, load
from adarec_fast.data.extend import extended
from adarec_fast.models.growing import by_neighbours
from adarec_fast.models.memory import Memory
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.serving.served import Source, signature
from adarec_fast.serving.served import load as load_served
from adarec_fast.training import load_run, train
from adarec_fast.training.further import refitted
from adarec_fast.training.remember import remember
from adarec_fast.training.updated import load_current, update_memory

SMALL = {
    "model": "sasrec", "hidden_size": 8, "num_layers": 1, "max_length": 9, "memory": "transitions"
}  # fmt: skip
CONFIG = TrainConfig(epochs=1, batch_size=64, device="cpu")


def lists(data: InteractionData) -> dict[object, list[object]]:
    """Item ids by user id."""
    users = data.users.ids
    return {users[u]: data.items.decode(data.sequence(u)) for u in range(data.num_users)}


def test_histories_go_on() -> None:
    known = load({"a": ["x", "y", "z"], "b": ["y", "y", "x"]})
    more = load({"c": ["z"], "a": ["w", "x"]}, min_length=1)
    grown = extended(known, more)
    assert lists(grown.data) == {
        "a": ["x", "y", "z", "w", "x"], "b": ["y", "y", "x"], "c": ["z"],
    }  # fmt: skip
    assert grown[1:] == (1, 1, 3)
    assert grown.data.items.ids[:3] == known.items.ids
    assert grown.data.users.ids[:2] == known.users.ids


def test_ids_of_another_kind_are_refused() -> None:
    known = load([[1, 2, 3]])
    with pytest.raises(DataError, match=r"item ids are whole numbers .* such as 1, and text"):
        extended(known, load({0: ["x"]}, min_length=1))
    # Text that is a known number is that number.
    assert extended(known, load({0: ["2"]}, min_length=1)).new_items == 0


def some(users: int) -> InteractionData:
    """Whole numbers for ids; neighbours of a ring of 30 items follow each other."""
    g = torch.Generator().manual_seed(4)
    starts = torch.randint(0, 30, (users,), generator=g).tolist()
    steps = torch.randint(1, 4, (users, 9), generator=g).cumsum(1).tolist()
    return load({7000 + u: [1 + (starts[u] + s) % 30 for s in steps[u]] for u in range(users)})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    train(SMALL, CONFIG, some(60), tmp_path / "run")
    return tmp_path / "run"


def write_csv(path: Path, rows: list[tuple[object, object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("user", "item"), *rows])
    return path


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_update_by_command(run_dir: Path, tmp_path: Path) -> None:
    run = load_run(run_dir)
    user, known = run.data.users.ids[0], run.data.items.ids
    novel = max(known) + 7
    # Five people went from an item to one that nobody knew, and so did a known one.
    rows = [(f"9{i}", item) for i in range(5) for item in (known[3], novel)]
    rows += [(user, known[3]), (user, novel)]
    file = write_csv(tmp_path / "new.csv", rows)
    done = invoke("memory", "update", run_dir, "--data", file)
    assert done.exit_code == 0, done.output
    assert "12 interactions counted in: 5 new users, 1 new items" in done.output
    model, data, which = load_current(run_dir)
    assert which == "updated"
    assert data.items.ids == [*known, novel]
    assert data.sequence(0).tolist()[-2:] == [4, len(known) + 1]
    memory, old = model.memory, run.model.memory
    assert memory is not None
    assert old is not None
    assert (memory.alpha, memory.gamma, memory.decay) == (old.alpha, old.gamma, old.decay)
    wanted = Memory.of(data.values, data.offsets, len(data.items), max_length=9)
    assert torch.equal(memory.weights, wanted.weights)
    # The vectors of before, and for the new item the mean of what it came with.
    table = model.table()
    assert torch.equal(table[:-1], run.model.table())
    begin, end = memory.rows[-2:].tolist()
    others, weights = memory.neighbours[begin:end].long(), memory.weights[begin:end]
    expected = (weights[:, None] * table[others]).sum(0) / weights.sum()
    torch.testing.assert_close(table[-1], expected)
    # It can be asked for, and for whoever takes the old item the memory speaks for it.
    assert memory.sums(torch.tensor([4]), torch.tensor([0, 1]))[0, -1] > 0
    answer = invoke("recommend", run_dir, "--history", novel, "--format", "json", "--k", "3")
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)[0]["history"] == [novel]
    assert invoke("recommend", run_dir, "--user", "93").exit_code == 0
    # The run itself is what it was.
    assert load_run(run_dir).data.items.ids == known
    assert train(SMALL, CONFIG, run.data, run_dir, resume=True).status == "finished"


@pytest.mark.parametrize("headed", [True, False], ids=["names", "columns"])
def test_update_reads_as_train_does(headed: bool, run_dir: Path, tmp_path: Path) -> None:
    """Every option of reading, in a log of events that is not in the order of time."""
    rows = [
        "9|501|02.01.2024|buy", "9|502|01.02.2024|buy", "9|3|01.01.2024|buy", "9|4|03.01.2024|look"
    ]  # fmt: skip
    header = ["who|what|when|did"] if headed else []
    file = tmp_path / "log.txt"
    file.write_text("\n".join([*header, *rows]) + "\n")
    layout: list[str] = [] if headed else ["--columns", "who,what,when,did"]
    done = invoke(
        "memory", "update", run_dir, "--data", file, "--format", "csv", "--separator", "|",
        "--user-column", "who", "--item-column", "what", "--time-column", "when",
        "--time-format", "%d.%m.%Y", "--event-column", "did", "--keep", "buy", *layout,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "3 interactions counted in: 1 new users, 2 new items" in done.output
    data = load_current(run_dir).data
    assert data.items.decode(data.history_of(9)) == [3, 501, 502]
    # Nothing of a file that is refused stays.
    for wrong in (["--time-format", "%Y"], ["--keep", "sell"], ["--ids", "both"]):
        refused = invoke(
            "memory", "update", run_dir, "--data", file, "--separator", "|", "--user-column", "who",
            "--item-column", "what", "--time-column", "when", "--event-column", "did",
            *(["--keep", "buy"] if wrong[0] != "--keep" else []), *wrong, *layout,
        )  # fmt: skip
        assert refused.exit_code == 2, refused.output
        assert lists(load_current(run_dir).data) == lists(data)


def test_updates_add_up_until_the_best_epoch_is_another(run_dir: Path) -> None:
    known = load_run(run_dir).data
    for item in (501, 502):
        update_memory(run_dir, load({7001: [1, item]}, min_length=1))
    current = load_current(run_dir)
    assert current.data.items.ids[-2:] == [501, 502]
    user = current.data.users.ids.index(7001)
    assert current.data.items.decode(current.data.sequence(user))[-4:] == [1, 501, 1, 502]
    assert load_current(run_dir, which="last").which == "last"
    train(SMALL, CONFIG.replace(epochs=4), known, run_dir, resume=True)
    after = load_current(run_dir)
    if load_run(run_dir).model.table().equal(current.model.table()[: known.num_items + 1]):
        assert after.which == "updated"
    else:
        assert after.which == "best"


def test_a_memory_fitted_anew_puts_an_update_aside(run_dir: Path) -> None:
    update_memory(run_dir, load({1: [1, 501]}, min_length=1))
    assert load_current(run_dir).which == "updated"
    done = invoke("memory", "fit", run_dir, "--neighbours", "2")
    assert done.exit_code == 0, done.output
    current = load_current(run_dir)
    assert current.which == "best"
    assert current.model.memory is not None
    assert current.model.memory.widest <= 2


def test_a_service_takes_it_over(run_dir: Path) -> None:
    source = Source(run_dir, "best", torch.device("cpu"), 1, 4)
    before, served = signature(source), load_served(source)
    update_memory(run_dir, load({1: [1, 501]}, min_length=1))
    assert signature(source) != before
    after = load_served(source)
    assert after.id != served.id
    # Other rankings of the same weights are another model, too.
    remember(run_dir, kind="regression")
    assert len({served.id, after.id, load_served(source).id}) == 3
    update_memory(run_dir, load({1: [1, 501]}, min_length=1))
    after = load_served(source)
    assert len(after.items) == len(served.items) + 1
    assert after.path.name == "updated"
    # A damaged one is a change too, and loading it says what is wrong.
    (run_dir / "updated" / "manifest.json").write_text("{")
    assert signature(source) != before
    with pytest.raises(CheckpointError, match=r"updated/manifest\.json"):
        load_served(source)


def test_a_log_is_not_counted_again(run_dir: Path) -> None:
    with pytest.raises(DataError, match=r"60 of 60 known users .* give only what came later"):
        update_memory(run_dir, some(60))
    # Who does the same again is no log.
    update_memory(run_dir, load({7000: some(60).sequence(0).tolist()}, min_length=1))
    with pytest.raises(DataError, match="59 of 60 known users"):
        update_memory(run_dir, some(60))


def test_as_many_neighbours_as_it_was_fitted_with(run_dir: Path, tmp_path: Path) -> None:
    def of(folder: Path) -> Memory:
        memory = load_current(folder).model.memory
        assert memory is not None
        return memory

    assert of(run_dir).most == 128
    assert invoke("memory", "fit", run_dir, "--neighbours", "2").exit_code == 0
    assert (of(run_dir).most, of(run_dir).widest) == (2, 2)
    update_memory(run_dir, load({1: [1, 501]}, min_length=1))
    assert (of(run_dir).most, of(run_dir).widest) == (2, 2)
    # A run that goes back to this one takes over alpha and gamma, which are of two a row.
    plan = refitted(run_dir)
    train(plan.model, plan.train, plan.data, tmp_path / "whole", start=plan.start)
    assert (of(tmp_path / "whole").most, of(tmp_path / "whole").widest) == (2, 2)
    assert of(tmp_path / "whole").alpha == of(run_dir).alpha
    # Files of before say nothing of it.
    file = run_dir / "best" / "memory.json"
    values = json.loads(file.read_text())
    del values["most"]
    file.write_text(json.dumps(values))
    read = Memory.read(load_file(file.with_suffix(".safetensors")), file, 30, most=64)
    assert read.most == 64


def test_a_better_epoch_keeps_the_memory_that_a_run_was_given(tmp_path: Path) -> None:
    run, config = tmp_path / "run", {**SMALL, "memory": "none"}
    train(config, CONFIG, some(60), run)
    done = invoke("memory", "fit", run, "--neighbours", "3", "--kind", "transitions")
    assert done.exit_code == 0, done.output
    before = load_run(run)
    # Whatever the next epoch is, it is better.
    for name in ("last", "best"):
        state = run / name / "training_state.json"
        if state.exists():
            values = json.loads(state.read_text())
            values["early_stopping"]["best"] = 0.0
            state.write_text(json.dumps(values))
            manifest = json.loads((run / name / "manifest.json").read_text())
            manifest["sha256"][state.name] = hashlib.sha256(state.read_bytes()).hexdigest()
            (run / name / "manifest.json").write_text(json.dumps(manifest))
    train(config, CONFIG.replace(epochs=2), some(60), run, resume=True)
    after = load_run(run)
    assert not torch.equal(after.model.table(), before.model.table())
    assert after.model.memory is not None
    assert (after.model.memory.kind, after.model.memory.most) == ("transitions", 3)


def test_a_memory_elsewhere_than_torchs_default_device(run_dir: Path) -> None:
    torch.set_default_device("meta")
    try:
        remember(run_dir, kind="regression")
    finally:
        torch.set_default_device(None)
    memory = load_run(run_dir).model.memory
    assert memory is not None
    assert memory.kind == "regression"


@pytest.mark.parametrize("model", ["counting", "popularity"])
def test_what_counts_is_trained_further_instead(model: str, tmp_path: Path) -> None:
    train({"model": model, "memory": "transitions"}, CONFIG, some(40), tmp_path / "run")
    file = write_csv(tmp_path / "new.csv", [(1, 1), (1, 501)])
    refused = invoke("memory", "update", tmp_path / "run", "--data", file)
    assert refused.exit_code == 2
    told = " ".join(refused.stderr.split())
    assert "no item vectors that new items could join" in told
    assert "adarec-fast train --from" in told
    done = invoke(
        "train", "--from", tmp_path / "run", "--data", file, "--split", "none", "--run-dir",
        tmp_path / "further", "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert 501 in load_run(tmp_path / "further").data.items.ids


def test_many_new_items_take_no_table_of_pairs() -> None:
    """A vector for each new item in memory that grows with the entries, and equal to a mean."""
    many, size = 3000, 4
    g = torch.Generator().manual_seed(1)
    # A known item, then a new one, a history each.
    pairs = torch.stack([torch.arange(1, many + 1), torch.arange(many + 1, 2 * many + 1)], 1)
    table = torch.randn(many + 1, size, generator=g)
    values, offsets = pairs.flatten(), torch.arange(0, 2 * many + 1, 2)
    memory = Memory.of(values, offsets, 2 * many + 1, max_length=5)
    largest = 0

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, (tuple, list)) else [made]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return made

    with Watched():
        vectors, found = by_neighbours(table, memory)
    assert largest <= 10 * many * size
    torch.testing.assert_close(vectors[:-1], table[1:])
    assert found[:-1].all()
    # Of an item that nobody has taken, the mean of all.
    assert not found[-1]
    torch.testing.assert_close(vectors[-1], table[1:].mean(0))


def test_a_run_without_memory_is_told_how_to_get_one(tmp_path: Path) -> None:
    train({**SMALL, "memory": "none"}, CONFIG, some(40), tmp_path / "run")
    file = write_csv(tmp_path / "new.csv", [(1, 1), (1, 2)])
    refused = invoke("memory", "update", tmp_path / "run", "--data", file)
    assert refused.exit_code == 2
    assert "adarec-fast memory fit" in refused.stderr
    assert not (tmp_path / "run" / "updated").exists()

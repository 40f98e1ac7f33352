"""The search, with a stub in Optuna's place that keeps studies by their storage and proposes what a
test has prepared."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from helpers_cli import adarec
from helpers_training import DATA

from adarec_fast.config import ConfigError
from adarec_fast.data import write_csv
from adarec_fast.experiments import SweepError
from adarec_fast.experiments.search import Range, read_space, search
from adarec_fast.training import Reporter, load_run
from adarec_fast.training.values import Values, from_mapping

BASE = Values(
    model={"model": "sasrec", "hidden_size": 8, "num_layers": 1, "max_length": 10,
           "backend": "packed"},
    train={"epochs": 2, "batch_size": 64, "device": "cpu", "log": "none"},
)  # fmt: skip
SPACE = {"learning_rate": Range(1e-3, 1e-2, True, False), "num_heads": (1, 2)}


class Trial:
    """Both of a trial that is asked for, and of one that is kept."""

    def __init__(self, number: int, fixed: dict[str, Any], attrs: dict[str, Any]) -> None:
        self.number, self.state, self.value = number, "RUNNING", None
        self.params: dict[str, Any] = {}
        self.intermediate_values: dict[int, float] = {}
        self.user_attrs, self._fixed = dict(attrs), fixed
        self.prune_at: int | None = None

    def suggest_float(self, name: str, low: float, high: float, log: bool) -> float:
        return self._take(name, low)

    def suggest_int(self, name: str, low: int, high: int, log: bool) -> int:
        return self._take(name, low)

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return self._take(name, choices[self.number % len(choices)])

    def _take(self, name: str, value: Any) -> Any:
        self.params[name] = self._fixed.get(name, value)
        return self.params[name]

    def report(self, value: float, step: int) -> None:
        self.intermediate_values[step] = value

    def should_prune(self) -> bool:
        return max(self.intermediate_values) == self.prune_at

    def set_user_attr(self, name: str, value: Any) -> None:
        self.user_attrs[name] = value


class Study:
    def __init__(self) -> None:
        self.trials: list[Trial] = []
        self.user_attrs: dict[str, Any] = {}
        self.queue: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.prune: dict[int, int] = {}

    def set_user_attr(self, name: str, value: Any) -> None:
        self.user_attrs[name] = value

    def get_trials(self, states: tuple[str, ...] | None = None) -> list[Trial]:
        return [t for t in self.trials if states is None or t.state in states]

    def enqueue_trial(self, params: dict[str, Any], user_attrs: dict[str, Any]) -> None:
        self.queue.append((params, user_attrs))

    def ask(self) -> Trial:
        fixed, attrs = self.queue.pop(0) if self.queue else ({}, {})
        trial = Trial(len(self.trials), fixed, attrs)
        trial.prune_at = self.prune.get(trial.number)
        self.trials.append(trial)
        return trial

    def tell(self, trial: Trial | int, value: float | None = None, state: str = "COMPLETE") -> None:
        kept = self.trials[trial] if isinstance(trial, int) else trial
        kept.value, kept.state = value, state


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> dict[str, Study]:
    known: dict[str, Study] = {}

    def create_study(**options: Any) -> Study:
        assert options["direction"] == "maximize"
        assert options["load_if_exists"]
        return known.setdefault(options["storage"], Study())

    module = ModuleType("optuna")
    module.create_study = create_study  # type: ignore[attr-defined]
    states = {name: name for name in ("RUNNING", "COMPLETE", "PRUNED", "FAIL")}
    module.trial = SimpleNamespace(TrialState=SimpleNamespace(**states))  # type: ignore[attr-defined]
    module.pruners = SimpleNamespace(MedianPruner=SimpleNamespace)  # type: ignore[attr-defined]
    module.samplers = SimpleNamespace(TPESampler=SimpleNamespace)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optuna", module)
    return known


class Dies(Reporter):
    """Ends the process, as far as the search can tell, when the second epoch is done."""

    def epoch(self, metrics: Any, is_best: bool) -> None:
        if metrics["epoch"] == 2:
            raise MemoryError


def test_trials_are_runs_and_the_best_is_kept(studies: dict[str, Study], tmp_path: Path) -> None:
    folder = tmp_path / "search"
    storage = f"sqlite:///{folder / 'study.db'}"
    studies[storage] = Study()
    studies[storage].prune[1] = 1
    begun: list[tuple[int, dict[str, Any]]] = []
    found = search(BASE, SPACE, DATA, folder, trials=2,
                   on_trial=lambda n, values: begun.append((n, dict(values))))  # fmt: skip
    assert [(one.run, one.status) for one in found] == [
        ("trial-0000", "finished"), ("trial-0001", "pruned"),
    ]  # fmt: skip
    assert begun == [(n, one.values) for n, one in enumerate(found)]
    for one, epochs in zip(found, (2, 1), strict=True):
        run = load_run(folder / one.run)
        assert len(run.history) == epochs
        assert run.model_config.num_heads == one.values["num_heads"]
        assert one.metric == max(line["valid"]["NDCG@20"] for line in run.history)
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["train"] == {**BASE.train, "learning_rate": 1e-3}
    assert best["model"]["num_heads"] == 1
    # Nothing is trained again; more trials may be asked for.
    assert search(BASE, SPACE, DATA, folder, trials=2) == found
    assert len(studies[storage].trials) == 2
    for other, message in (
        (Values(model=BASE.model, train={**BASE.train, "epochs": 3}), "epochs is 2 there and 3"),
        (Values(model={**BASE.model, "dropout": 0.1}, train=BASE.train), "model.dropout is None"),
    ):
        with pytest.raises(SweepError, match=message):
            search(other, SPACE, DATA, folder, trials=3)
    with pytest.raises(SweepError, match=r"space\.num_heads is \[1, 2\] there and \[1, 2, 4\]"):
        search(BASE, {**SPACE, "num_heads": (1, 2, 4)}, DATA, folder, trials=3)


def test_a_trial_whose_process_died_is_gone_on_with(
    studies: dict[str, Study], tmp_path: Path
) -> None:
    with pytest.raises(MemoryError):
        search(BASE, SPACE, DATA, tmp_path, trials=1, reporter=Dies)
    (study,) = studies.values()
    assert [trial.state for trial in study.trials] == ["RUNNING"]
    steps: list[int] = []

    class Counts(Reporter):
        def step(self, progress: Any) -> None:
            steps.append(progress.step)

    (found,) = search(BASE, SPACE, DATA, tmp_path, trials=1, reporter=Counts)
    assert (found.run, found.status) == ("trial-0000", "finished")
    assert steps == []  # both epochs lay there
    assert [trial.state for trial in study.trials] == ["FAIL", "COMPLETE"]
    assert list(study.trials[1].intermediate_values) == [1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: [0.1, 0.2]", "did you mean 'learning_rate'"),
        ("dropout: [0.1]", "dropout: must be a list of two values or more, or low and high"),
        ("dropout: {low: 0.1, high: 0.1}", "must be numbers, the second greater"),
        ("learning_rate: {low: 0, high: 0.1, log: true}", "both above 0 with log: true"),
        ("dropout: {low: 0.1, high: 1.5}", "dropout=1.5: input should be less than 1"),
        ("k_core: [0, 5]", "k_core: all trials are of the same data"),
        ("{}", "names nothing to choose"),
    ],
)
def test_bad_spaces(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_space(path, BASE)


def test_on_the_command_line(
    studies: dict[str, Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(DATA, tmp_path / "shop.csv")
    space = tmp_path / "space.yaml"
    space.write_text("window: {low: 1, high: 5}\ndecay: {low: 0.1, high: 0.9}\n")
    assert read_space(space, Values(model={"model": "counting"}))["window"] == (1, 5, False, True)
    asked = ["search", "--model", "counting", "--data", tmp_path / "shop.csv", "--space", space,
             "--search-dir", tmp_path / "s", "--trials", "1", "--log", "none"]  # fmt: skip
    shown = adarec(*asked)
    assert shown.exit_code == 0, shown.output
    assert "[1/1] window=1, decay=0.1" in shown.stdout
    assert "best.yaml" in shown.stdout
    # The base is read as train reads it: a preset, which names the model, then options.
    own = space.read_text()
    space.write_text("dropout: {low: 1e-1, high: 5e-1}\nlearning_rate: [1e-3, 2e-3]\n")
    spelled = read_space(space, Values(model={"model": "sasrec"}))
    assert spelled["dropout"] == (0.1, 0.5, False, False)
    assert spelled["learning_rate"] == (1e-3, 2e-3)
    of_preset = ["search", "--preset", "fast", *asked[3:], "--search-dir", tmp_path / "of-preset",
                 "--hidden-size", "8", "--epochs", "1", "--backend", "packed"]  # fmt: skip
    shown = adarec(*of_preset)
    assert shown.exit_code == 0, shown.output
    best = from_mapping(yaml.safe_load((tmp_path / "of-preset" / "best.yaml").read_text()), "")
    assert (best.system, best.model["local_path"], best.model["hidden_size"]) == ("sasrec", 3, 8)
    refused = adarec(*of_preset, "--model", "adarec")
    assert "--preset fast is of the model sasrec, and --model names adarec" in refused.stderr
    space.write_text(own)
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused = adarec(*asked)
    assert refused.exit_code == 2
    assert "a search needs optuna: pip install adarec_fast[search]" in refused.stderr
    assert "say what to train on" in adarec(*asked[:3], *asked[5:]).stderr

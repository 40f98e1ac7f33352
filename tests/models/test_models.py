"""Models by name: those of this package, those of other packages, and what is wrong with some."""

from __future__ import annotations

import json
import textwrap
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers_training import DATA, config, outcome
from torch import nn
from typer.testing import CliRunner

from adarec_fast import ADARec, Recommender
from adarec_fast.cli import app
from adarec_fast.config import ConfigError, ModelConfig
from adarec_fast.export import export_run
from adarec_fast.models import pretrained, registry
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import RunFolderError, load_run, train

BAG = '''
"""Means of item vectors, several a user, as another package would write a model."""
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from adarec_fast import ragged
from adarec_fast.config import ModelConfig
from adarec_fast.models.base import LossOutput, SequenceModel


class BagConfig(ModelConfig):
    system = "bag"
    width: int = Field(8, ge=1, description="size of a vector")
    views: int = Field(1, ge=1, description="vectors a user")


class Bag(SequenceModel):
    """The mean of a history's items."""

    config_type = BagConfig
    source = "nowhere"

    def __init__(self, config):
        super().__init__(config)
        torch.manual_seed(config.seed)
        self.items = nn.Embedding(config.num_items + 1, config.width)
        self.turn = nn.Linear(config.width, config.views * config.width)
        self.register_buffer("popularity", torch.zeros(config.num_items + 1))
        self.register_buffer("epochs_begun", torch.zeros((), dtype=torch.int64))

    def prepare(self, split):
        values, _ = split.inputs("train")
        self.popularity += torch.bincount(values, minlength=self.config.num_items + 1)

    def begin_epoch(self, epoch):
        self.epochs_begun.fill_(epoch + 1)

    def table(self):
        return self.items.weight

    def represent(self, values, offsets):
        owner = ragged.sequence_ids(offsets, values.shape[0])
        users = offsets.shape[0] - 1
        sums = torch.zeros(users + 1, self.config.width, device=values.device)
        sums = sums.index_add(0, owner, self.items(values))[:users]
        turned = self.turn(sums / ragged.lengths(offsets)[:, None])
        if self.config.views == 1:
            return turned
        return turned.view(users, self.config.views, self.config.width)

    def loss(self, batch, share=None):
        logits = self.score(self.represent(batch.item_ids, batch.offsets))[:, 1:]
        total = F.cross_entropy(logits, batch.targets - 1)
        norm = self.items.weight.square().mean()
        parts = {"rec": total.detach(), "norm": norm.detach()}
        return LossOutput(total + 1e-3 * norm, parts, {"norm": 1})

    def diagnostics(self):
        from adarec_fast.models.base import Diagnostics

        told = Diagnostics(self)
        told.parts = ("rec", "norm")
        return told
'''
OTHERS = '''
from bag import Bag, BagConfig

class WrongNameConfig(BagConfig):
    system = "something else"

class WrongName(Bag):
    config_type = WrongNameConfig

class OwnScores(Bag):
    config_type = type("OwnConfig", (BagConfig,), {"system": "own"})

    def scores(self, batch):
        return -torch.arange(self.config.num_items + 1.0).repeat(len(batch.offsets) - 1, 1)

import torch
'''


def switched(name: str) -> list[dict[str, Any]]:
    """A model's own options that are not numbers, each with every value it may have."""
    fields = registry.config_type(name).model_fields
    shared = set(ModelConfig.model_fields)
    choices = {
        key: (True, False) if field.annotation is bool else typing.get_args(field.annotation)
        for key, field in fields.items()
        if key not in shared
        and (field.annotation is bool or typing.get_origin(field.annotation) is Literal)
    }
    # What goes with another value of another option alone.
    needs: dict[tuple[str, Any], dict[str, Any]] = {("level_readout", "deepest"): {"moe": False}}
    if name == "adarec-iocrec":
        needs["prediction", "backbone"] = {"supervision": "prefix"}
    return [{}, *({key: value, **needs.get((key, value), {})}
                  for key, values in choices.items() for value in values)]  # fmt: skip


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_layer_norm_starts_as_one(name: str) -> None:
    found = 0
    for options in switched(name):
        model = registry.build(registry.create_config({"model": name, "num_items": 9, **options}))
        for place, part in model.named_modules():
            if isinstance(part, nn.LayerNorm):
                found += 1
                assert bool((part.weight == 1).all()), (options, place)
                assert not part.bias.any(), (options, place)
    assert found or name in ("caser", "counting", "markov", "popularity")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution of another project, with entry points."""
    site = tmp_path / "site"
    folder = site / "bags-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: bags\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(textwrap.dedent("""\
        [adarec_fast.models]
        bag = bag:Bag
        broken = no_such_module_here:Model
        notamodel = json:dumps
        misnamed = bag_others:WrongName
        own = bag_others:OwnScores
        """))
    (site / "bag.py").write_text(BAG)
    (site / "bag_others.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(str(site))


SMALL: dict[str, Any] = {"model": "bag", "max_length": 10, "width": 4}


def test_the_built_in_ones_know_themselves() -> None:
    for name in registry.BUILT_IN:
        assert registry.config_type(name).system == name
        assert registry.model_type(name).config_type is registry.config_type(name)


def test_an_unknown_model_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"'adarek' is not known, did you mean 'adarec'\?"):
        registry.create_config({"model": "adarek", "num_items": 3})
    with pytest.raises(ConfigError, match="model=5 must be the name of a model"):
        registry.create_config({"model": 5, "num_items": 3})


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "'no_such_module_here:Model' of the package bags cannot be imported"),
        ("notamodel", "'json:dumps' of the package bags is no class derived from"),
        ("misnamed", "whose system is 'misnamed'"),
    ],
)
def test_what_an_entry_point_may_lack_is_told(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.create_config({"model": name, "num_items": 3})


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("views", [1, 3])
def test_a_model_from_outside_does_all_that_ours_do(tmp_path: Path, views: int) -> None:
    model, whole, parts = {**SMALL, "views": views}, tmp_path / "whole", tmp_path / "parts"
    result = train(model, config(), DATA, whole)
    train(model, config(), DATA, parts, stop_after_steps=5)
    train(model, config(), DATA, parts, resume=True)
    assert outcome(whole) == outcome(parts)
    assert {"loss_rec", "loss_norm", "loss"} <= result.history[-1].keys()
    run = load_run(whole, which="last")
    assert int(run.model.get_buffer("epochs_begun")) == 2
    assert float(run.model.get_buffer("popularity").sum()) > 0
    assert evaluate(run.model, run.split).num_users == DATA.num_users
    ranking = Recommender(run.model).recommend([[3, 4], [5]], k=4, exclude=[[], [6]])
    scores = run.model.score(
        run.model.represent(torch.tensor([3, 4, 5]), torch.tensor([0, 2, 3]))
    )
    scores[0, [3, 4]] = scores[1, [5, 6]] = float("-inf")
    assert torch.equal(ranking.items, scores.topk(4).indices)
    assert not ranking.diagnostics
    with pytest.raises(AttributeError, match="no 'depth'"):
        _ = ranking.depth
    with pytest.raises(ConfigError, match=r"fills in no user_graph\(\); adarec-fast serve"):
        export_run(run, tmp_path / "export", ["embeddings"])


@pytest.mark.usefixtures("package")
def test_a_model_of_its_own_scores_is_ranked_but_not_exported(tmp_path: Path) -> None:
    train({**SMALL, "model": "own"}, config(epochs=1), DATA, tmp_path)
    run = load_run(tmp_path)
    assert Recommender(run.model).recommend([[1, 3]], k=3).items.tolist() == [[2, 4, 5]]
    with pytest.raises(ConfigError, match=r"an export needs vectors, as .* serve "):
        export_run(run, tmp_path / "export", ["ann"])


@pytest.mark.usefixtures("package")
def test_the_commands_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    told = json.loads(runner.invoke(app, ["models", "--json"]).stdout)
    by_name = {entry["name"]: entry for entry in told["models"]}
    assert told["default"] == "adarec"
    assert by_name["bag"] == {
        "name": "bag", "summary": "The mean of a history's items.", "source": "nowhere",
    }  # fmt: skip
    assert "cannot be imported" in by_name["broken"]["summary"]
    assert "AAAI 2026" in by_name["adarec"]["source"]
    Path("config.yaml").write_text("model: bag\nwidth: 4\nmax_length: 10\nepochs: 1\n")
    done = runner.invoke(
        app, ["train", "--config", "config.yaml", "--set", "views=2", "--run-dir", "run"]
    )
    assert done.exit_code == 0, done.output
    stored = json.loads(Path("run/config.json").read_text())["model"]
    assert (stored["model"], stored["width"], stored["views"]) == ("bag", 4, 2)
    refused = runner.invoke(app, ["train", "--config", "config.yaml", "--set", "hidden_size=2"])
    assert "model bag: unknown key 'hidden_size'" in refused.output


def test_a_folder_of_a_model_that_is_not_there(tmp_path: Path) -> None:
    ADARec(num_items=5, hidden_size=8).save_pretrained(tmp_path / "mine")
    path = tmp_path / "mine" / "config.json"
    values = json.loads(path.read_text())
    assert values["model"] == "adarec"
    path.write_text(json.dumps({**values, "model": "gone"}))
    with pytest.raises(CheckpointError, match="model='gone' is not known"):
        pretrained.load(tmp_path / "mine")
    del values["model"]  # as it was before models had names
    path.write_text(json.dumps(values))
    assert isinstance(pretrained.load(tmp_path / "mine"), ADARec)


def test_a_run_of_another_kind_is_not_resumed(tmp_path: Path) -> None:
    shape = {"hidden_size": 8, "num_layers": 1, "max_length": 10, "backend": "packed"}
    train({**shape, "model": "sasrec"}, config(), DATA, tmp_path, stop_after_steps=1)
    with pytest.raises(CheckpointError, match=r"model\.model is 'sasrec' there and 'adarec' now"):
        train(shape, config(), DATA, tmp_path, resume=True)
    with pytest.raises(RunFolderError, match="holds a run already"):
        train(shape, config(), DATA, tmp_path)

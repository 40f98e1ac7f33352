"""``adarec-fast train``."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import ConfigError, DataConfig, TrainConfig, absolute_source
from ..models.registry import DEFAULT, create_config, described
from ..training.values import Values, known_keys, renamed
from . import further
from .answers import samples
from .console import INTERRUPTED, command, err, out, said, tell, waiting, words
from .evaluate import report
from .options import config_options, given_values

if TYPE_CHECKING:
    from ..data import InteractionData
    from ..training import TrainResult

# Two minutes on two cores; the fields' own defaults are for real data.
SYNTHETIC = Values(
    model={"hidden_size": 32, "dropout": 0.2, "attention_dropout": 0.2},
    train={"epochs": 6, "learning_rate": 3e-3},
)


@command
@config_options("data", "model", "train")
def train(
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the run [dim](runs/<data>-<n>)[/]", metavar="DIR"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --run-dir where it stopped."),
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A model with its settings, see adarec-fast models."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML or JSON, flat or with data, model and train."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any field; may be repeated."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="RUN",
            help="Go on from a finished run, with --data FILE: the interactions that came later.",
        ),
    ] = None,
    refit: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Train a finished run's model on everything, for use: as many epochs as its "
            "validation found.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="How the run ended and its test, as JSON on stdout.")
    ] = False,
    *,
    chosen: Values,
) -> None:
    """Train a model, test its best epoch and show some recommendations.

    Without options it trains on synthetic data, in under two minutes on two cores. Values are
    taken from, each overriding those before: defaults, --preset, --config, options, --set.
    """
    with waiting("starting"):
        from ..data.configured import load_data
        from ..data.time_split import in_words
        from ..distributed import join, speaks
        from ..training import Reporter, make_reporter
        from ..training import train as run_training

    given = given_values(chosen, assignments, preset=preset, config=config)
    if preset is not None and resume:
        raise ConfigError(
            f"--preset {preset}: a run that goes on keeps its settings; leave it out"
        )
    if isinstance(given.model.get("backbone"), str):
        from ..models.encoders.named import trust

        trust(given.model["backbone"])  # named here, and not by a run that is gone on with
    origin = base or refit
    plan = None
    if origin is not None:
        ways = {"--from": base, "--refit": refit, "--resume": resume, "--preset": preset}
        several = [name for name, value in ways.items() if value]
        if len(several) > 1:
            raise ConfigError(f"{' and '.join(several)}: choose one")
        with waiting("reading the data"):
            plan = further.plan(origin, given, refit=refit is not None)
    elif resume:
        if run_dir is None:
            raise ConfigError("--resume needs --run-dir, the folder of the run to go on with")
        stored = _stored(run_dir)
        if given.system not in (None, stored.system):
            raise ConfigError(
                f"--model {given.system}: the run in {run_dir} is of the model {stored.system}; "
                "resume it without --model"
            )
        given = stored.update(given)
    else:
        given = renamed(given)
    if plan is None and not resume and given.data.get("data", "synthetic") == "synthetic":
        known = known_keys("model", given.system or DEFAULT)
        smaller = Values(
            model={n: v for n, v in SYNTHETIC.model.items() if n in known}, train=SYNTHETIC.train
        )
        named = {**given.model, **given.train}
        kept = {n: v for n, v in {**smaller.model, **smaller.train}.items() if n not in named}
        given = smaller.update(given)
        shown = " ".join(f"{name}={value}" for name, value in kept.items())
        if speaks():
            shown = f"synthetic data; smaller defaults for it: {shown or 'none left'}"
            tell(shown)
    if plan is not None and origin is not None:
        model_config, train_config, data = plan.model, plan.train, plan.data
        source = further.source_of(plan, origin, given)
        if speaks():
            for line in further.in_words(plan):
                tell(line)
    else:
        train_config = TrainConfig.create(**given.train)
        own = _own_data(run_dir) if resume and run_dir else None
        with waiting("reading the data"):
            data = load_data(given.data) if own is None else own
        model_config = create_config({**given.model, "num_items": data.num_items})
        source = DataConfig.create(**given.data).to_dict()
    if data.report is not None and speaks():
        # What is wrong there is wrong in every figure that follows.
        for name, told in (("read", data.report.chosen()), ("left out", data.report.left_out())):
            if told:
                tell(f"{name}: {', '.join(told)}")
    if data.features is not None and speaks():
        tell(f"items: {data.features.in_words()}")
    if data.cuts is not None and speaks():
        tell(f"split: {in_words(data.cuts)}")
    source = absolute_source(source)

    with join(train_config.device, train_config.worker_timeout) as workers:
        first = workers is None or workers.first
        made = run_dir is None and first
        folder = run_dir or (next_run_dir(Path("runs"), data.name) if first else Path())
        if workers is not None and run_dir is None:
            folder = Path(workers.announce(str(folder)))
        try:
            result = run_training(
                model_config,
                train_config,
                data,
                folder,
                resume=resume,
                reporter=make_reporter(said) if first and not said.quiet else Reporter(),
                data_source=source,
                start=None if plan is None else plan.start,
            )
        except BaseException:
            # A folder made for a run that never began is of no use to anybody.
            if made and not (folder / "config.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
    if not first:
        raise typer.Exit(INTERRUPTED if result.status == "interrupted" else 0)
    if result.status == "interrupted":
        again = shlex.join(["adarec-fast", "train", "--run-dir", str(folder), "--resume"])
        tell(words("[yellow]interrupted[/]; go on with: {}", again), err)
        # As a shell counts: 130 for SIGINT, 143 for SIGTERM.
        raise typer.Exit(INTERRUPTED if result.signal is None else 128 + result.signal)
    _conclude(folder, train_config, result, as_json)


def next_run_dir(parent: Path, name: str) -> Path:
    """Make the first free ``<parent>/<name>-<n>``, counting from 1."""
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / f"{slug}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def _stored(run_dir: Path) -> Values:
    """What a run was started with, in the form of a configuration file."""
    from ..training.run_folder import read_config as read_run_config

    model_config, train_config, about = read_run_config(run_dir)
    source: dict[str, Any] = about.get("source") or {}
    model = described(model_config)
    del model["num_items"]
    return Values(data=dict(source), model=model, train=train_config.to_dict())


def _own_data(run_dir: Path) -> InteractionData | None:
    """The data in the folder of a run that goes back to another; None of others."""
    from ..training import load_run
    from ..training.run_folder import read_config as read_run_config

    if not read_run_config(run_dir)[2].get("from"):
        return None
    return load_run(run_dir, which="last").data


def _conclude(folder: Path, config: TrainConfig, trained: TrainResult, as_json: bool) -> None:
    """Test the best epoch, show what the model does for a few users, and say what is next."""
    from ..ranking.evaluation import evaluate
    from ..training import load_run
    from ..training.loop import resolve_device

    tested = None
    with waiting("testing the best epoch"):
        run = load_run(folder, device=resolve_device(config.device))
        if run.split.holds_out:
            tested = evaluate(
                run.model,
                run.split,
                "test",
                seen_mask=config.seen_mask,
                batch_size=config.evaluation_batch_size,
            )
    if as_json:
        ended = {name: value for name, value in trained.to_dict().items() if name != "history"}
        test = None if tested is None else tested.to_dict()
        print(json.dumps({**ended, "test": test}, indent=2))
        return
    if said.quiet:
        print(folder)
        return
    user = run.data.users.ids[0]
    if tested is not None:
        out.print(report([tested]))
        out.print(samples(run.model, run.split))
        following = ["evaluate", str(folder)]
    else:
        tell("Nothing was held out, so that there is nothing to test this run on.")
        following = ["serve", str(folder)]
    tell(words("The run is in [bold]{}[/]. Next:", folder))
    for line in (following, ["recommend", str(folder), "--user", str(user)]):
        # To be copied, and so never broken.
        out.print(f"  {shlex.join(['adarec-fast', *line])}", markup=False, soft_wrap=True)

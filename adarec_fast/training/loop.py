"""Training a model on interaction data, into a run folder that can be resumed exactly."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import ConfigError, ModelConfig, TrainConfig, training_precision
from ..data import InteractionData, Split
from ..defaults import on_cpu
from ..distributed.workers import Workers, join
from ..models.base import no_features
from ..models.encoders.named import trust
from ..models.registry import create_config, described, model_type
from ..ops import choose
from ..ops._driver import cards, why_no_cuda
from . import run_folder
from .callbacks import Callback, check_callbacks
from .checkpoint import recover
from .errors import RunFolderError
from .further import Start
from .loggers import check_loggers
from .prewarm import prewarm
from .remember import check_kind, in_words, kept_memory, remember
from .reporter import Reporter
from .result import TrainResult
from .trainer import Trainer

_ENDED = ("finished", "early-stopped")


def train(
    model_config: Mapping[str, Any] | ModelConfig,
    train_config: TrainConfig,
    data: InteractionData,
    run_dir: str | Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    stop_after_steps: int | None = None,
    data_source: Mapping[str, Any] | None = None,
    command: Sequence[str] | None = None,
    callbacks: Sequence[Callback] = (),
    start: Start | None = None,
) -> TrainResult:
    """Train until the epochs are over, patience runs out, or a signal asks to end.

    Each epoch ends with a validation (every ``evaluate_every``), a line of metrics and the
    checkpoint ``last/``; ``best/`` holds the weights of the best validation NDCG@20, or, of data
    that hold nothing out, those of the last epoch. A run that
    was killed at any step and is resumed ends, on a CPU, with the very weights and metrics
    (times apart) of one never killed. SIGINT and SIGTERM finish the step and save; a second
    signal ends at once. A memory that the best epoch was given is found anew for a better one.

    Seeds torch's global generator with ``model_config.seed``, in case the backbone draws from it.

    Started by torchrun, in several processes, all of them call this alike and train together;
    the first one writes and reports.

    Args:
        model_config: the model's configuration, or its fields, where ``model`` names the kind (an
            ADARec without it) and ``num_items`` may be left out.
        train_config: how to train it.
        data: the interactions; histories of at least 3 items, unless they are split otherwise.
        run_dir: where everything is written, see :mod:`adarec_fast.training.run_folder`.
        resume: go on from ``last/`` (from the start, if there is none yet).
        reporter: what shows progress; silent by default.
        stop_after_steps: save and end after so many steps of this call.
        data_source: where the data came from, JSON-able; kept in ``config.json``.
        command: kept in ``environment.json``, this process' command line by default.
        callbacks: told of steps and epochs, see :class:`.callbacks.Callback`; of one process alone.
        start: what a new run begins with, of :func:`adarec_fast.training.further.continued` or
            ``refitted``.

    Raises:
        ConfigError: the model's configuration does not fit the data, or no such device.
        BackendError: ``model_config.backend`` cannot run on the device.
        RunFolderError: the folder holds a run already (and ``resume`` is false), or is in use.
        CheckpointError: a checkpoint cannot be written (the disk is full), is damaged, or is of
            another catalogue, data set or configuration.
        TrainingDiverged: a loss or the gradient norm is not finite.
        CompilationFailed: a kernel does not compile for the device.
        WorkersError: another worker ended, hangs, or failed.
    """
    if stop_after_steps is not None and stop_after_steps < 1:
        raise ValueError(f"stop_after_steps={stop_after_steps} must be at least 1, or None")
    check_callbacks(callbacks)
    config = _model_config(model_config, data)
    _check_features(config, data)
    training_precision(config, train_config)  # raises where the two contradict each other
    check_loggers(train_config.log)
    run_dir = Path(run_dir)
    fixed = None if start is None else start.memory
    if config.memory != "none" and not Split(data).users("valid").numel() and not resume:
        if fixed is None:
            raise ConfigError(
                f"memory={config.memory!r}: how much it counts is chosen on a validation part, and "
                "none is held out; refit a run that has a memory, or leave it off (--memory none)"
            )
        check_kind(config.memory, fixed)
    told = command if command is not None else run_folder.default_command()
    with on_cpu(), join(train_config.device, train_config.worker_timeout) as workers:
        if workers is None:
            device = resolve_device(train_config.device)
            if train_config.device == "auto" and device.type == "cpu" and cards():
                warnings.warn(
                    f"adarec_fast: training on the CPU: {why_no_cuda()}", RuntimeWarning,
                    stacklevel=2,
                )  # fmt: skip
            if train_config.shard_items:
                raise ConfigError(
                    "shard_items=True splits the item table over workers, and this process is "
                    "alone; start several with torchrun, or leave it off (--no-shard-items)"
                )
        else:
            device = workers.device
            if callbacks:
                raise ConfigError(
                    "callbacks are of a run in one process, and several workers train here; leave "
                    "them out, or start without torchrun"
                )
            _check_workers(workers, config, train_config, data, run_dir, resume, stop_after_steps)
        # Before there is a folder, and before the first step is timed: ops that every model needs
        # find their backend here, and what must be compiled for it is.
        for op in ("linear_cross_entropy", "score_topk"):
            choose(op, config.backend, device.type)
        with contextlib.ExitStack() as stack:

            def claim() -> None:
                stack.enter_context(run_folder.locked(run_dir))
                if not resume and (run_dir / run_folder.CONFIG).exists():
                    raise RunFolderError(
                        f"run_dir={str(run_dir)!r} holds a run already; resume it "
                        "(--resume, or resume=True) or choose another folder"
                    )
                for name in ("best", "last"):
                    recover(run_dir, name)

            first = workers is None or workers.first
            if workers is None:
                claim()
            else:
                workers.first_does(claim)
            # A better epoch takes the place of the one that has it.
            before = kept_memory(run_dir) if first else None
            shown = reporter if reporter is not None and first else Reporter()
            prewarm(config, train_config, device, shown.compiling)
            trainer = Trainer(
                config, train_config, data, run_dir, device, shown, workers, callbacks, start
            )
            watched = contextlib.nullcontext() if workers is None else workers.watched(trainer.kept)
            # Whatever the caller has switched off for itself.
            with watched, torch.inference_mode(False), torch.enable_grad():
                with shown.waiting("preparing the model"):
                    trainer.prepare(data_source)
                if first:
                    run_folder.write_environment(run_dir, device, told)
                result = trainer.run(stop_after_steps)
            wanted = config.memory != "none" or before is not None
            if wanted and first and result.status in _ENDED and kept_memory(run_dir) is None:
                kind, most = (None, None) if before is None else before
                with shown.waiting("finding which items follow which"):
                    counted = remember(run_dir, device, most, fixed, kind)
                shown.message(in_words(counted))
            return result


def _check_features(config: ModelConfig, data: InteractionData) -> None:
    """Whether a model and its data have features of items, or both have not.

    Raises:
        ConfigError: the model takes none, or its settings are for features that are not there.
    """
    kind = model_type(config.system)
    if data.features is not None and not kind.takes_features:
        raise ConfigError(no_features(kind))
    for name in ("feature_net", "id_dropout"):
        given, default = getattr(config, name), type(config).model_fields[name].default
        if data.features is None and given != default:
            raise ConfigError(
                f"{name}={given}: is for features of items, and the data have none (--items FILE, "
                "load(..., items=...))"
            )


def _check_workers(
    workers: Workers,
    config: ModelConfig,
    train_config: TrainConfig,
    data: InteractionData,
    run_dir: Path,
    resume: bool,
    stop_after_steps: int | None,
) -> None:
    """All workers must have been started alike."""
    workers.check_same(
        {
            **{f"model.{name}": value for name, value in described(config).items()},
            **{f"train.{name}": value for name, value in train_config.to_dict().items()},
            "data": run_folder.fingerprint(data),
            "run_dir": str(run_dir.absolute()),
            "resume": resume,
            "stop_after_steps": stop_after_steps,
            "device type": workers.device.type,
        }
    )


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # torch's list of twenty names helps nobody
            reason = "torch knows no device of this name"
        elif name.startswith("cuda"):
            reason = why_no_cuda() or reason
        there = "auto, cpu or cuda" if torch.cuda.is_available() else "auto or cpu"
        raise ConfigError(
            f"device={name!r} is not usable here: {reason}; choose {there}"
        ) from error
    return device


def _model_config(given: Mapping[str, Any] | ModelConfig, data: InteractionData) -> ModelConfig:
    if isinstance(given, ModelConfig):
        config = given
    else:
        config = create_config({"num_items": data.num_items, **given})
        if isinstance(given.get("backbone"), str):  # the caller's own words
            trust(given["backbone"])
    if config.num_items != data.num_items:
        raise ConfigError(
            f"num_items={config.num_items}, but {data.name} has {data.num_items} items; "
            "leave num_items out to take it from the data"
        )
    return config

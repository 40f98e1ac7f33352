"""The memory of a run that has ended: found, fitted, and put beside the best epoch's weights."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import NamedTuple

import torch

from ..config import ConfigError
from ..defaults import on_cpu
from ..models.memory import TENSORS, VALUES, Kind, Memory, known_kind
from ..models.pretrained import CheckpointError, load, write
from ..ranking.fitting import Fitted, fit_memory
from .checkpoint import MANIFEST, find_checkpoint, read_json, save_checkpoint
from .errors import RunFolderError
from .run_folder import Run, load_run

# What a checkpoint's manifest says of its files, and not of the training.
_OF_FILES = ("format", "name", "sha256")


@on_cpu()
def remember(
    run_dir: Path,
    device: torch.device | str = "cpu",
    neighbours: int | None = None,
    fixed: Memory | None = None,
    kind: Kind | None = None,
) -> Fitted:
    """Find the weights of a run's training histories and write them into ``best/``, as a whole.

    The weights of ``best/`` stay what they are. A memory that is there already is replaced.

    Args:
        run_dir: of a run, locked by this process.
        device: where the model scores the validation part.
        neighbours: M, the largest weights kept of an item; by default that of ``fixed`` where no
            validation part can choose, else what the model's configuration says.
        fixed: whose alpha, gamma and decay are taken where no validation part can choose them; by
            default those of the memory that the run goes back to.
        kind: of the memory; by default the model's configured one, else that of ``fixed``, else
            a regression.

    Raises:
        ConfigError: nothing validates, and there is no such memory, or one of another kind.
        RunFolderError: there is no run, or it has no ``best/`` yet.
        CheckpointError: a file is damaged, or the disk is full.
    """
    begun = time.perf_counter()
    run = load_run(run_dir, device=device)
    config = run.model.config
    validates = run.split.users("valid").numel() > 0
    if not validates:
        fixed = fixed or _of_origin(run)
    if kind is None:
        origins = fixed.kind if fixed else "regression"
        kind = origins if config.memory == "none" else config.memory
    if not validates and fixed is not None:
        check_kind(kind, fixed)
        neighbours = neighbours or fixed.most
    memory = Memory.of(
        *run.split.inputs("train"), config.num_items, max_length=config.max_length, kind=kind,
        neighbours=config.memory_neighbours if neighbours is None else neighbours,
    )  # fmt: skip
    if fixed is None or validates:
        fitted = fit_memory(run.model, memory.to(run.model.device), run.split)
    else:
        memory.alpha, memory.gamma, memory.decay = fixed.alpha, fixed.gamma, fixed.decay
        fitted = Fitted(fixed.alpha, fixed.gamma, math.nan, math.nan)
    run.model.memory = memory
    folder = find_checkpoint(run_dir, "best")
    if folder is None:
        raise RunFolderError(f"{run_dir / 'best'}: no such checkpoint any more")
    about = read_json(folder / MANIFEST)
    kept = {name: value for name, value in about.items() if name not in _OF_FILES}
    told = {n: None if math.isnan(value) else value for n, value in fitted._asdict().items()}
    kept["memory"] = {**told, "seconds": time.perf_counter() - begun}
    save_checkpoint(run_dir, "best", lambda fresh: write(run.model, fresh), kept)
    return fitted


def check_kind(kind: str, fixed: Memory) -> None:
    """Whether a memory without validation may count as much as another one.

    Raises:
        ConfigError: that one is of another kind.
    """
    if fixed.kind != kind:
        raise ConfigError(
            f"memory={kind!r}: how much it counts is chosen on a validation part, and none is held "
            f"out; the run that this one goes back to has one of {fixed.kind}, which --memory "
            f"{fixed.kind} takes over"
        )


def _of_origin(run: Run) -> Memory:
    """The memory of the run that a run goes back to."""
    origin = run.source.get("from") or {}
    folder = find_checkpoint(Path(origin.get("folder", "")), "best") if origin else None
    memory = None if folder is None else load(folder).memory
    if memory is None:
        raise ConfigError(
            f"{run.path}: holds out nothing to choose on how much a memory counts, and goes back "
            "to no run that has one; train one with a validation part and --memory, and then "
            "--refit it"
        )
    return memory


def in_words(fitted: Fitted) -> str:
    """A line for the reader of a log."""
    if math.isnan(fitted.after):
        return (
            f"memory: alpha {fitted.alpha:g}, gamma {fitted.gamma:.3g}, of the run that this one "
            "goes back to"
        )
    return (
        f"memory: alpha {fitted.alpha:g}, gamma {fitted.gamma:.3g}; valid NDCG@20 "
        f"{fitted.before:.4f} without it, {fitted.after:.4f} with it"
    )


def memory_seconds(run_dir: Path) -> float:
    """What counting and fitting took, as the best epoch's folder says; 0 without a memory."""
    folder = find_checkpoint(run_dir, "best")
    about = {} if folder is None else read_json(folder / MANIFEST)
    return float((about.get("memory") or {}).get("seconds", 0.0))


class Kept(NamedTuple):
    """How the best epoch's memory was found: ``kind``, and M."""

    kind: Kind
    most: int | None


def kept_memory(run_dir: Path) -> Kept | None:
    """How the memory of the best epoch's folder was found; None where there is none.

    Raises:
        CheckpointError: ``memory.json`` is missing or damaged.
    """
    folder = find_checkpoint(run_dir, "best")
    if folder is None or not (folder / TENSORS).exists():
        return None
    values = read_json(folder / VALUES)
    try:
        kind = known_kind(values.get("kind", "transitions"))
    except ConfigError as error:
        raise CheckpointError(f"{folder / VALUES}: {error}") from None
    most = values.get("most")
    return Kept(kind, most if isinstance(most, int) else None)

"""The metrics of a run: a line an epoch in JSONL, the same as CSV, and what :mod:`.loggers` has."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import loggers_of
from ..documents import DocumentError, parse_json
from ..models.pretrained import CheckpointError
from .checkpoint import disk_errors, write_atomically
from .loggers import LOGGERS, Logger, TensorBoard

JSONL, CSV, TENSORBOARD = "metrics.jsonl", "metrics.csv", "tensorboard"


class MetricsLog:
    """Writes the metrics of each epoch.

    Args:
        run_dir: the run folder.
        epochs: completed epochs according to the checkpoint that training goes on from; lines of
            later ones are cut off, since these epochs will be run again.
        log: of the run's configuration, which names the loggers.
        settings: of model and training, flat, for loggers that show them.
        identity: what tells the run from others, where it has one.

    Attributes:
        history: all lines so far.

    Raises:
        CheckpointError: lines of completed epochs are missing, or the disk refuses.
    """

    def __init__(
        self,
        run_dir: Path,
        epochs: int,
        log: str = "auto",
        settings: Mapping[str, Any] | None = None,
        identity: str | None = None,
    ) -> None:
        self._run_dir = run_dir
        lines = read_metrics(run_dir)
        self.history = [line for line in lines if line["epoch"] <= epochs]
        found = [line["epoch"] for line in self.history]
        if len(found) != epochs or found != list(range(1, epochs + 1)):
            raise CheckpointError(
                f"{run_dir / JSONL}: must hold one line for each of the epochs 1..{epochs} that "
                f"the checkpoint has completed, it holds {[line['epoch'] for line in lines]}"
            )
        text = "".join(_line(metrics) for metrics in self.history)
        write_atomically(run_dir / JSONL, text)
        self._write_csv()
        self._loggers: dict[str, Logger] = {}
        for name in (TENSORBOARD,) if log == "auto" else loggers_of(log):
            with contextlib.ExitStack() as opened, disk_errors(run_dir / name):
                opened.callback(self.close)  # those before it, if this one fails
                if name == TENSORBOARD:
                    writer = _summary_writer(run_dir / name, epochs + 1)
                    if writer is not None:
                        self._loggers[name] = TensorBoard(writer)
                else:
                    self._loggers[name] = LOGGERS[name](run_dir, identity, settings or {})
                opened.pop_all()

    def append(self, metrics: Mapping[str, Any]) -> None:
        """Write one epoch's line, flushed to the disk before this returns.

        Raises:
            CheckpointError: the disk is full or refuses.
        """
        line = _line(metrics)
        path = self._run_dir / JSONL
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.history.append(json.loads(line))
        self._write_csv()
        numbers = {
            name: value for name, value in flatten(self.history[-1]).items()
            if isinstance(value, (int, float)) and name not in ("epoch", "step")
        }  # fmt: skip
        for name, logger in self._loggers.items():
            with disk_errors(self._run_dir / name):
                logger.log(metrics["epoch"], numbers)

    def close(self) -> None:
        """Release the loggers' files.

        Raises:
            CheckpointError: the disk is full or refuses.
        """
        with contextlib.ExitStack() as all_of_them:
            for name, logger in self._loggers.items():
                all_of_them.callback(logger.close)
                all_of_them.enter_context(disk_errors(self._run_dir / name))

    def _write_csv(self) -> None:
        rows = [flatten(line) for line in self.history]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        if columns:
            writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._run_dir / CSV, text.getvalue())


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; none if there is no file.

    A last line without its line break was cut off by the end of the process and is left out.

    Raises:
        CheckpointError: a line does not parse; it is named.
    """
    path = run_dir / JSONL
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    lines = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            value = parse_json(line)
        except DocumentError as error:
            raise CheckpointError(f"{path}:{number}: {error}") from None
        if not isinstance(value, dict) or not isinstance(value.get("epoch"), int):
            raise CheckpointError(f"{path}:{number}: must be an object with an integer epoch")
        lines.append(value)
    return lines


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one level: ``valid/NDCG@20``, ``gate/0``, ``gate/1``, …"""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            flat |= flatten({str(i): item for i, item in enumerate(value)}, f"{prefix}{name}/")
        elif value is not None:
            flat[prefix + name] = value
    return flat


def _line(metrics: Mapping[str, Any]) -> str:
    return json.dumps(_finite(metrics), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """NaN and infinity become None: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary_writer(folder: Path, first_epoch: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an optional extra
        return None
    return SummaryWriter(str(folder), purge_step=first_epoch)

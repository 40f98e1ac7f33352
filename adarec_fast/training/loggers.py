"""Where the metrics of a run go beside its own files: TensorBoard, Weights & Biases, MLflow.

All of them write into the run folder and ask no network: W&B is offline until ``wandb sync`` sends
what lies in ``wandb/``, MLflow's store is the folder ``mlflow/``. ``WANDB_MODE``, ``WANDB_PROJECT``
and ``MLFLOW_TRACKING_URI`` of the environment say otherwise. A run that is resumed goes on in the
same run there, by its identity in ``config.json``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ..config import ConfigError, loggers_of

PROJECT = "adarec_fast"
# What is imported, and the extra that has it.
_PACKAGES = {
    "tensorboard": ("torch.utils.tensorboard", "log"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}


class Logger(Protocol):
    """Takes the metrics of a run."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """An epoch's numbers by name, epochs from 1, at once and for good."""

    def close(self) -> None:
        """After the last epoch, or an error."""


def package(name: str) -> ModuleType:
    """The package of a logger, imported.

    Raises:
        ConfigError: it is not installed.
    """
    module, extra = _PACKAGES[name]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"--log {name} needs {error.name or name}: pip install adarec_fast[{extra}]"
        ) from error


def check_loggers(log: str) -> None:
    """Import what a configuration's ``log`` names, before there is a folder.

    Raises:
        ConfigError: a package is not installed.
    """
    for name in loggers_of(log):
        package(name)


class TensorBoard:
    """``tensorboard/`` of a run folder."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """``wandb/`` of a run folder, an offline run for each start, all of one id."""

    def __init__(self, run_dir: Path, identity: str | None, settings: Mapping[str, Any]) -> None:
        self._run = package("wandb").init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_dir.name,
            id=identity,
            resume="allow" if identity else None,
            dir=str(run_dir),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=dict(settings),
        )

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=epoch)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """``mlflow/`` of a run folder, one run; its names have ``_at_`` where ours have ``@``."""

    _TAG = "adarec_fast.run"

    def __init__(self, run_dir: Path, identity: str | None, settings: Mapping[str, Any]) -> None:
        store = os.environ.get("MLFLOW_TRACKING_URI")
        if not store:
            store = (run_dir / "mlflow").absolute().as_uri()
            # MLflow 3 refuses folders otherwise, and its skinny package has no other store.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = package("mlflow").MlflowClient(tracking_uri=store)
        experiment = self._client.get_experiment_by_name(PROJECT)
        where = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        before = []
        if identity:
            wanted = f"tags.`{self._TAG}` = '{identity}'"
            before = list(self._client.search_runs([where], filter_string=wanted))
        if before:
            self._id: str = before[0].info.run_id
            return
        tags = {self._TAG: identity} if identity else {}
        self._id = self._client.create_run(where, run_name=run_dir.name, tags=tags).info.run_id
        for name, value in settings.items():
            self._client.log_param(self._id, name, value)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name.replace("@", "_at_"), float(value), step=epoch)

    def close(self) -> None:
        self._client.set_terminated(self._id)


LOGGERS: dict[str, Callable[[Path, str | None, Mapping[str, Any]], Logger]] = {
    "wandb": WeightsAndBiases, "mlflow": MLflow,
}  # fmt: skip

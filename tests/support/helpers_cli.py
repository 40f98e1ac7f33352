"""The command line in this process, and a run that is small."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from adarec_fast.cli import app

PACKAGE = Path(__file__).resolve().parents[2]
MODEL = {
    "hidden_size": 8, "num_layers": 1, "max_depth": 2, "max_length": 10, "dropout": 0.1,
    "backend": "packed",
}  # fmt: skip
TRAIN = {"epochs": 1, "batch_size": 128, "device": "cpu"}


def adarec(*arguments: str | Path) -> Result:
    """What ``adarec-fast`` says to these arguments, in a wide terminal."""
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})

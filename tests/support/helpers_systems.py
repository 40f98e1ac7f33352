"""What the commands and the service must do for every system, on the small data of trainings."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import DATA, config
from typer.testing import CliRunner

from adarec_fast.cli import app
from adarec_fast.training import train


def invoke(*words: str) -> str:
    """What a command that ends well prints."""
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


def follow_commands(system: str, *options: str) -> dict[str, Any]:
    """Train, resume, recommend and evaluate in the current folder: ``data.txt``, ``run``.

    Returns:
        What ``evaluate`` says of the system.
    """
    lines = [
        f"{user} " + " ".join(map(str, DATA.sequence(user).tolist()))
        for user in range(DATA.num_users)
    ]
    Path("data.txt").write_text("\n".join(lines) + "\n")
    invoke(
        "train", "--model", system, "--data", "data.txt", "--run-dir", "run", "--epochs", "1",
        "--hidden-size", "8", "--device", "cpu", *options,
    )  # fmt: skip
    invoke("train", "--run-dir", "run", "--resume", "--epochs", "2")
    told = invoke("recommend", "run", "--user", "3", "--format", "json", "--k", "2")
    (answer,) = json.loads(told)
    assert len(answer["items"]) == 2
    assert system in invoke("models")
    (result,) = json.loads(invoke("evaluate", "run", "--no-baselines", "--json"))["results"]
    return result


def ask_a_service(model: dict[str, Any], folder: Path) -> None:
    """Train into a folder, and have a service of it answer a user."""
    train(model, config(epochs=1), DATA, folder)
    ask_a_service_of(folder)


def ask_a_service_of(folder: Path) -> None:
    """Have a service of a run on the small data answer a user."""
    pytest.importorskip("fastapi")
    from adarec_fast.serving import ServeConfig, Service, Source

    service = Service(
        Source(folder, "best", torch.device("cpu"), 1, 8), ServeConfig.create(max_batch=8)
    )
    service.start()
    request = service.request_type(user=DATA.users.ids[0], k=3)
    answer = asyncio.run(service.recommend(request))
    service.close()
    assert len(answer["items"]) == 3

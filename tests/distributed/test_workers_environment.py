"""What torchrun sets, when it is wrong: one line that names it, before anything is trained."""

from __future__ import annotations

import re
import socket

import pytest
from typer.testing import CliRunner

from adarec_fast import ConfigError
from adarec_fast.cli import app
from adarec_fast.distributed import WorkersError, join

RIGHT = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


def set_all(patch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in {**RIGHT, **values}.items():
        patch.setenv(name, value)


def test_a_port_that_another_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        set_all(monkeypatch, MASTER_PORT=port)
        with (
            pytest.raises(WorkersError, match=rf"at 127.0.0.1, port {port}: .*choose another"),
            join("cpu", 5),
        ):
            pass
        done = CliRunner().invoke(app, ["train", "--epochs", "1", "--device", "cpu"])
    assert done.exit_code == 1, done.output
    assert "Traceback" not in done.output
    assert "address already in use" in done.output
    assert done.output.strip().splitlines()[-1].startswith("error: worker 0 of 2 cannot meet")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", "first"), ("RANK", "2"), ("RANK", "-1"), ("WORLD_SIZE", "two"), ("RANK", "1.0"),
        ("LOCAL_RANK", "x"), ("MASTER_PORT", "http"), ("MASTER_PORT", "70000"), ("RANK", ""),
    ],
)  # fmt: skip
def test_what_is_no_number_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, **{"MASTER_PORT": "29511", name: value})
    with pytest.raises(ConfigError, match=rf"{name}='{value}' must be a whole number in 0\.\."), (
        join("cpu", 5)
    ):
        pass


@pytest.mark.parametrize("host", ["", " ", "no.such.host.invalid", "a" * 300, "10.0.0.1/24"])
def test_an_address_that_nobody_has_is_refused_at_once(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, MASTER_PORT="29511", MASTER_ADDR=host)
    told = re.escape(f"MASTER_ADDR={host!r} is the address of no machine: ")
    with pytest.raises(WorkersError, match=told + r"\S.*; write the name"), join("cpu", 5):
        pass


@pytest.mark.parametrize(("rank", "size"), [("0", "0"), ("1", "1"), ("5", "1")])
def test_a_rank_that_is_no_workers(rank: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, MASTER_PORT="29511", RANK=rank, WORLD_SIZE=size)
    told = f"RANK={rank} is no worker of WORLD_SIZE={size}; start"
    with pytest.raises(ConfigError, match=told), join("cpu", 5):
        pass


def test_an_environment_in_part_is_not_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=2: .* not set: MASTER_PORT; start"), (
        join("cpu", 5)
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with join("cpu", 5) as workers:
        assert workers is None

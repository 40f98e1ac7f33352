"""Several workers over one model: its memory, its successors, their deaths and their end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi_offline", reason="the extra [serve] is not installed")
if sys.platform != "linux":
    pytest.skip("workers share memory by Linux' memfd", allow_module_level=True)

import torch
from helpers_serving import (
    JSON_TYPE,
    Clients,
    asker,
    make_data,
    make_run,
    make_service,
    post_request,
    raw_connection,
    read_all,
    source,
    wait_until_closed,
)

from adarec_fast import ConfigError
from adarec_fast.serving import ServeConfig, serve
from adarec_fast.serving.handover import attach, publish
from adarec_fast.serving.served import load

DATA = make_data()


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(found: Any, seconds: float = 30.0) -> Any:
    """What ``found`` gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if what := found():
                return what
        time.sleep(0.02)
    raise AssertionError(f"nothing within {seconds} s")


def get(where: str, path: str) -> bytes:
    """Over a new connection, which any worker may accept; httpx takes 20 ms for a client."""
    with urllib.request.urlopen(where + path, timeout=60) as answer:
        content: bytes = answer.read()
    return content


def healths(where: str) -> dict[int, dict[str, Any]]:
    """What each worker says."""
    found = {}
    for _ in range(200):
        health = json.loads(get(where, "/health"))
        found[health["worker"]] = health
        if len(found) == health["workers"]:
            break
    return found


def shared_pages(pid: int) -> tuple[int, int]:
    """KiB of a worker's own pages in the model's memory, and of all of them."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    own = resident = 0
    for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text):
        if "memfd:adarec-model" in part.split("\n", 1)[0]:
            size = {name: int(kb) for name, kb in re.findall(r"^(\w+): +(\d+) kB", part, re.M)}
            own += size["Private_Clean"] + size["Private_Dirty"]
            resident += size["Rss"]
    return own, resident


@contextlib.contextmanager
def forked(folder: Path, **options: Any) -> Iterator[tuple[int, str]]:
    """``serve`` in a fork of this process, which has imported all there is; its address."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            config = ServeConfig.create(port=0, workers=2, **options)
            serve(source(folder), config,
                  announce=lambda _, address: os.write(writing, address.encode()) and None)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    try:
        yield pid, os.read(reading, 100).decode()
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_two_workers_of_one_model(tmp_path: Path) -> None:
    """One service for all of it: starting one is dear."""
    folder = tmp_path / "run"
    following = make_run(folder, 3)
    second = load(source(folder)).id
    make_run(folder, 2)
    first = load(source(folder)).id
    with forked(folder, timeout_ms=20_000) as (server, where):
        workers = children(server)
        assert len(workers) == 2
        assert set(healths(where)) == {0, 1}
        # The model is there once: no page of its memory belongs to one worker alone.
        for pid in workers:
            own, resident = shared_pages(pid)
            assert own == 0
            assert resident > 0

        # A model takes over in all workers at once: nobody is answered by the old one after
        # somebody was answered by the new one.
        latest, order = [first], threading.Lock()
        ask = asker(where, DATA, {second: following})

        def request(number: int, dice: random.Random) -> None:
            before = latest[0]
            found = json.loads(get(where, "/recommend?user=u00001"))["model"]
            assert found in (first, second)
            assert (before, found) != (second, first)
            with order:
                latest[0] = second if found == second else latest[0]
            time.sleep(0.005)

        with Clients(3, request) as clients:
            make_run(folder, 3)
            os.kill(server, signal.SIGHUP)
            until(lambda: latest[0] == second or clients.errors)
            enough = clients.done.total() + 20
            until(lambda: clients.done.total() > enough or clients.errors)
        told = healths(where)
        assert {h["model"]["id"] for h in told.values()} == {second}
        assert {h["reload"]["attempts"] for h in told.values()} == {1}
        ask(0, random.Random(0))
        # The new one is shared as well, and nobody keeps the old one.
        for pid in (*workers, server):
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert len(set(re.findall(r"(\d+) +/memfd:adarec-model", maps))) == 1
        assert shared_pages(workers[0])[0] == shared_pages(workers[1])[0] == 0

        # What does not load leaves the old model serving, in all of them.
        (folder / "config.json").rename(folder / "aside.json")
        os.kill(server, signal.SIGHUP)
        told = until(lambda: _all(healths(where), lambda h: h["reload"]["attempts"] == 2))
        assert {h["status"] for h in told.values()} == {"degraded"}
        assert {h["model"]["id"] for h in told.values()} == {second}
        (folder / "aside.json").rename(folder / "config.json")

        # Another worker takes the place of one that died, with the model that serves by now.
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: len(set(children(server)) - set(workers)) == 1)
        told = until(lambda: _all(healths(where), lambda h: h["status"] == "degraded"))
        assert {h["model"]["id"] for h in told.values()} == {second}

        def series() -> set[str]:
            text = get(where, "/metrics").decode()
            return set(re.findall(r'adarec_model_info\{.*worker="(\d)"', text))

        assert until(lambda: series() == {"0", "1"})

        # The end, which a terminal or systemd may tell the workers as well.
        body = b'{"user": "u00003", "k": 5}'
        head = post_request(body, JSON_TYPE).split(body)[0]
        raws = [raw_connection(where) for _ in range(6)]
        for raw in raws:
            raw.sendall(head + body[:9])
        time.sleep(0.2)
        for pid in (*children(server), server):
            os.kill(pid, signal.SIGTERM)
        wait_until_closed(where)
        for raw in raws:
            raw.sendall(body[9:])
        for raw in raws:
            assert read_all(raw).startswith(b"HTTP/1.1 200")
            raw.close()
        assert os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]) == 0


def _all(found: dict[int, dict[str, Any]], holds: Any) -> dict[int, dict[str, Any]] | None:
    return found if len(found) == 2 and all(map(holds, found.values())) else None


def test_workers_that_die_again_and_again_end_the_service(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with forked(tmp_path / "run") as (pid, where):
        ended = (0, 0)
        killed = set[int]()
        while ended[0] == 0:
            for worker in set(children(pid)) - killed:
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
            time.sleep(0.02)
            ended = os.waitpid(pid, os.WNOHANG)
        assert os.waitstatus_to_exitcode(ended[1]) == 1
        assert 6 <= len(killed) <= 8
        wait_until_closed(where)


def test_workers_end_with_their_supervisor(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with forked(tmp_path / "run") as (pid, where):
        workers = children(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        until(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in workers))
        wait_until_closed(where)


def test_a_model_in_shared_memory_answers_as_before(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    model = load(source(tmp_path / "run"))
    descriptor = publish(model)
    again = attach(descriptor)
    os.close(descriptor)
    assert (again.id, again.path, again.epoch) == (model.id, model.path, model.epoch)
    histories = [DATA.sequence(user).tolist() for user in range(8)]
    found, wanted = (one.recommender.recommend(histories, 5) for one in (again, model))
    assert torch.equal(found.items, wanted.items)
    assert torch.equal(found.scores, wanted.scores)
    assert again.items.decode([1, 2]) == model.items.decode([1, 2])
    assert torch.equal(again.data.values, model.data.values)


def test_what_several_workers_cannot_serve(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    model = load(source(tmp_path / "run"))
    model.recommender.model.extra = lambda: None
    with pytest.raises(ConfigError, match=r"cannot be handed to another process.*serve it with 1"):
        publish(model)
    on_a_gpu = source(tmp_path / "run")._replace(device=torch.device("cuda", 0))
    with pytest.raises(ConfigError, match="workers=2: the device is cuda:0"):
        serve(on_a_gpu, ServeConfig(workers=2, port=0))
    health = make_service(tmp_path / "run").health()
    assert (health["worker"], health["workers"]) == (0, 1)

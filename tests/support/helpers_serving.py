"""Run folders that were never trained, and services over them."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from adarec_fast import ADARec, InteractionData, TrainConfig, synthetic
from adarec_fast.cli.recommend import recommend_for
from adarec_fast.models.pretrained import write
from adarec_fast.serving import ServeConfig, Service, Source
from adarec_fast.serving.server import address, listen, server_settings
from adarec_fast.training import run_folder
from adarec_fast.training.checkpoint import save_checkpoint
from adarec_fast.training.origin import describe_origin

ROOT = Path(__file__).parents[2]
USERS, ITEMS = 60, 40


def make_data() -> InteractionData:
    """60 users ``u00000``... and 40 items, the same in every call."""
    return synthetic(num_users=USERS, num_items=ITEMS)


def make_model(data: InteractionData, seed: int = 0) -> ADARec:
    """Random weights under which users differ in their depths."""
    model = ADARec(
        num_items=data.num_items, hidden_size=8, num_layers=1, max_depth=2, max_length=10,
        backend="packed", seed=seed,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    model.item_vocabulary = data.items
    return model.eval()


def make_run(folder: Path, seed: int = 0, data: InteractionData | None = None) -> ADARec:
    """Write a run folder, or the next ``best`` of one; returns its model."""
    data = data or make_data()
    model = make_model(data, seed)
    if not (folder / run_folder.CONFIG).exists():
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_config(folder, model.config, TrainConfig(), data, None)
        run_folder.write_data(folder, data)
    settings = run_folder.read_config(folder)[:2]
    about = {"epoch": seed, **describe_origin(folder / run_folder.CONFIG, *settings)}
    save_checkpoint(folder, "best", lambda target: write(model, target), about)
    return model


def source(folder: Path, max_batch: int = 128) -> Source:
    """The best model of a run folder, on one thread of the CPU."""
    return Source(folder, "best", torch.device("cpu"), threads=1, max_batch=max_batch)


def make_service(folder: Path, **options: Any) -> Service:
    """A service that has not been started."""
    config = ServeConfig.create(**{"port": 0, **options})
    return Service(source(folder, config.max_batch), config)


def expected(
    model: ADARec, data: InteractionData, history: list[Any], k: int, exclude_seen: bool = True
) -> tuple[list[Any], list[float], int]:
    """Items, scores and depth as `adarec-fast recommend` gives them."""
    indices = data.items.encode(history).tolist()
    (answer,) = recommend_for(model, data.items, [None], [indices], k, exclude_seen)
    return answer.items, answer.scores, int(answer.diagnostics["depth"])


@contextlib.contextmanager
def running(service: Service) -> Iterator[str]:
    """The service behind a real server in a thread; gives its address."""
    with listen(service.config.host, service.config.port) as bound:
        server = uvicorn.Server(server_settings(service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        where = address(bound)
        try:
            wait_until_ready(where)
            yield where
        finally:
            server.should_exit = True
            thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def connected(service: Service) -> Iterator[httpx.Client]:
    """A client of the service behind a real server."""
    with running(service) as where, httpx.Client(base_url=where, timeout=60) as made:
        yield made


def assert_is(found: dict[str, Any], wanted: tuple[list[Any], list[float], int]) -> None:
    """An answer is what :func:`expected` says."""
    items, scores, depth = wanted
    assert [row["item"] for row in found["items"]] == items
    assert [row["score"] for row in found["items"]] == pytest.approx(scores, rel=1e-4, abs=1e-5)
    assert found["depth"] == depth


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a refusal, which has all the fields of one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"code", "argument", "value", "message"}
    return error


def wait_until_ready(where: str, seconds: float = 60.0) -> None:
    """Return once `/ready` says 200."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{where}/ready", timeout=5).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"{where} is not ready after {seconds} s")


def raw_connection(where: str) -> socket.socket:
    """A connection to say anything over."""
    host, port = where.removeprefix("http://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=20)


def read_all(raw: socket.socket) -> bytes:
    """What comes until a whole answer is there or the other side closes."""
    found = b""
    while part := raw.recv(65_536):
        found += part
        head, gap, body = found.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
        if gap and length.isdigit() and len(body) >= int(length):
            break
    return found


def wait_for_reloads(where: str, attempts: int) -> dict[str, Any]:
    until = time.monotonic() + 30
    while True:
        health: dict[str, Any] = httpx.get(f"{where}/health").json()
        if health["reload"]["attempts"] >= attempts:
            return health
        assert time.monotonic() < until, health
        time.sleep(0.02)


@contextlib.contextmanager
def process(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`adarec-fast serve` in a process of its own, and its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    command = "from adarec_fast.cli import app; app()"
    started = subprocess.Popen(
        [sys.executable, "-c", command, "serve", str(folder), "--port", "0", *options],
        env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert started.stderr is not None
        line = started.stderr.readline()
        assert " on http://127.0.0.1:" in line, line + started.stderr.read()
        yield started, line.split(" on ")[1].split(",")[0]
    finally:
        started.kill()
        started.communicate()


def wait_until_closed(where: str) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            raw_connection(where).close()
        except ConnectionError:
            return
        time.sleep(0.02)
    raise AssertionError("connections are still accepted")


class Clients:
    """Threads that each call a function over and over until the end of the block."""

    def __init__(self, count: int, work: Callable[[int, random.Random], object]) -> None:
        self._work, self._ending = work, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]
        self.done, self.errors = Counter[int](), list[BaseException]()

    def _run(self, number: int) -> None:
        dice = random.Random(number)
        while not self._ending.is_set():
            try:
                self._work(number, dice)
            except BaseException as error:
                self.errors.append(error)
                return
            self.done[number] += 1

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(60)
        if self.errors:
            raise self.errors[0]
        assert len(self.done) == len(self._threads), "a client never came to an end"


def asker(where: str, data: InteractionData, models: dict[str, ADARec]) -> Callable[..., None]:
    """A client that checks each answer against the model that the answer names."""
    clients: dict[int, httpx.Client] = {}
    wanted: dict[tuple[str, int, int], Any] = {}

    def ask(number: int, dice: random.Random) -> None:
        http = clients.setdefault(number, httpx.Client(base_url=where, timeout=60))
        user, k = dice.randrange(20), dice.randrange(1, 12)
        if dice.random() < 0.5:
            body = {"user": data.users.decode([user])[0], "k": k}
        else:
            body = {"history": data.items.decode(data.sequence(user)), "k": k}
        reply = http.post("/recommend", json=body)
        assert reply.status_code == 200, reply.text
        found = reply.json()
        key = (found["model"], user, k)
        if key not in wanted:
            history = data.items.decode(data.sequence(user))
            wanted[key] = expected(models[found["model"]], data, history, k)
        items, scores, depth = wanted[key]
        assert [row["item"] for row in found["items"]] == items
        assert [row["score"] for row in found["items"]] == pytest.approx(scores, abs=1e-4)
        assert found["depth"] == depth

    return ask


JSON_TYPE = "Content-Type: application/json"


def post_request(
    body: bytes, *headers: str, method: str = "POST", path: str = "/recommend"
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body

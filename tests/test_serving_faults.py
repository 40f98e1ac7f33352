"""The service under malformed clients, changing models and signals."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi_offline", reason="the extra [serve] is not installed")

import httpx
from helpers_serving import (
    expected,
    make_data,
    make_model,
    make_run,
    make_service,
    raw_connection,
    read_all,
    running,
)

from adarec_fast import ADARec, InteractionData, synthetic
from adarec_fast.serving.reload import Reloader
from adarec_fast.serving.served import load, signature

ROOT = Path(__file__).parents[1]
DATA = make_data()


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


# ---------------------------------------------------------------------- malformed clients


def _request(body: bytes, *headers: str, method: str = "POST", path: str = "/recommend") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


_JSON = "Content-Type: application/json"
MALFORMED: dict[str, bytes] = {
    "noise": bytes(range(256)) * 4,
    "no HTTP": b"hello?\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "nothing": b"",
    "half a header": b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Le",
    "long header": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000,
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
    "two lengths": b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    b"Content-Length: 7\r\n\r\n{}{}{}{}",
    "length no number": b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n{}",
    "length below 0": b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{}",
    "bad chunk": b"POST /recommend HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "half a body": b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b'Content-Length: 90\r\n\r\n{"user"',
    "no JSON": _request(b"{nope", _JSON),
    "no UTF-8": _request(b'{"user": "\xff\xfe"}', _JSON),
    "deep": _request(b"[" * 50_000, _JSON),
    "huge number": _request(b'{"user": ' + b"9" * 60_000 + b"}", _JSON),
    "large": _request(b"x" * 300_000, _JSON),
    "wrong types": _request(b'{"history": {"a": []}, "k": "x"}', _JSON),
    "unknown user": _request(b'{"user": "nobody"}', _JSON),
    "unknown items": _request(b'{"history": [' + b'"zz",' * 900 + b'"zz"]}', _JSON),
    "form": _request(b"user=1", "Content-Type: application/x-www-form-urlencoded"),
    "method": _request(b"", method="DELETE"),
    "path": _request(b"", path="/../../etc/passwd%00", method="GET"),
    "address": _request(b"", path="/recommend?" + "k=1&" * 8000, method="GET"),
}
REFUSALS = {400, 404, 405, 408, 413, 414, 415, 422, 431}


def misbehave(where: str, counts: Counter[int]) -> Callable[..., None]:
    """Client n sends the n-th malformed request, and leaves in one way or another."""
    payloads = list(MALFORMED.values())

    def work(number: int, dice: random.Random) -> None:
        with raw_connection(where) as raw, contextlib.suppress(ConnectionError):
            raw.settimeout(0.2)
            raw.sendall(payloads[number % len(payloads)])
            if dice.random() < 0.3:
                return  # without reading the answer
            with contextlib.suppress(TimeoutError):  # the server waits for the rest
                reply = read_all(raw)
                if reply:
                    status = int(reply.split()[1])
                    assert status in REFUSALS, reply[:300]
                    counts[status] += 1
        time.sleep(0.01)

    return work


def assault(folder: Path, seconds: float) -> tuple[int, int, Counter[int]]:
    """24 malformed clients beside 6 good ones: good and bad requests, and statuses of the bad."""
    model = make_model(DATA)
    with running(make_service(folder, timeout_ms=20_000)) as where:
        name = httpx.get(f"{where}/health").json()["model"]["id"]
        statuses: Counter[int] = Counter()
        with (
            Clients(24, misbehave(where, statuses)) as bad,
            Clients(6, asker(where, DATA, {name: model})) as good,
        ):
            time.sleep(seconds)
        health = httpx.get(f"{where}/health").json()
        assert health["status"] == "ok"
        metrics = httpx.get(f"{where}/metrics").text
        assert 'status="500"' not in metrics
        assert "adarec_queue_length 0.0" in metrics
    return good.done.total(), bad.done.total(), statuses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serving") / "run"
    make_run(path)
    return path


def test_good_clients_are_served_beside_24_malformed_ones(folder: Path) -> None:
    good, bad, statuses = assault(folder, 4.0)
    assert len(MALFORMED) == 24
    assert good > 20
    assert bad > 100
    assert {400, 404, 405, 413, 415, 422} <= set(statuses), statuses


@pytest.mark.slow
def test_good_clients_are_served_beside_24_malformed_ones_for_two_minutes(folder: Path) -> None:
    good, bad, statuses = assault(folder, 120.0)
    print(f"{good} good requests answered right, {bad} malformed ones: {dict(statuses)}")


@pytest.mark.slow
def test_the_openapi_schema_is_kept_under_generated_requests(folder: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    # A deadline of 1 ms may well be missed, so that "no server error" is asked of the metrics.
    checks = (
        "status_code_conformance,content_type_conformance,"
        "response_schema_conformance,unsupported_method"
    )
    with running(make_service(folder)) as where:
        done = subprocess.run(
            [
                sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()",
                "run", f"{where}/openapi.json",
                "--checks", checks, "--max-examples", "30", "--seed", "1", "--no-color",
            ],
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert 'status="500"' not in httpx.get(f"{where}/metrics").text
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "5 selected" in done.stdout


# ---------------------------------------------------------------------- models that change


def test_models_change_under_load_without_a_failed_request(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    models = [make_run(folder, seed=n) for n in (1, 2)]
    service = make_service(folder, watch=0.05)
    named = {service.model.id: models[1]}
    with running(service) as where:
        # What is about to be served must be known before it is.
        names = [service.model.id]
        for seed in (3, 4, 5):
            aside = tmp_path / f"aside-{seed}"
            named[load(service.source._replace(run_dir=prepared(aside, seed))).id] = make_model(
                DATA, seed
            )
        with Clients(6, asker(where, DATA, named)) as clients:
            for seed in (3, 4, 5):
                make_run(folder, seed)
                until = time.monotonic() + 20
                while httpx.get(f"{where}/health").json()["model"]["epoch"] != seed:
                    assert time.monotonic() < until
                    time.sleep(0.02)
                names.append(service.model.id)
                before = clients.done.total()
                while clients.done.total() < before + 20 and not clients.errors:
                    time.sleep(0.01)
        assert len(set(names)) == 4
        assert clients.done.total() > 60
        assert httpx.get(f"{where}/health").json()["reload"]["failed"] == 0


def another_catalogue() -> InteractionData:
    return synthetic(num_users=30, num_items=24, num_themes=3, subthemes_per_theme=2, seed=5)


def prepared(folder: Path, seed: int) -> Path:
    make_run(folder, seed)
    return folder


def test_a_link_may_be_pointed_at_a_run_with_another_catalogue(tmp_path: Path) -> None:
    other = another_catalogue()
    make_run(tmp_path / "a", 1)
    model = make_run(tmp_path / "b", 2, other)
    link = tmp_path / "current"
    link.symlink_to("a")
    service = make_service(link)
    with running(service) as where:
        assert httpx.get(f"{where}/health").json()["model"]["items"] == 40
        (tmp_path / "next").symlink_to("b")
        os.replace(tmp_path / "next", link)
        service.reloader.request()
        wait_for_reloads(where, 1)
        health = httpx.get(f"{where}/health").json()
        assert (health["model"]["items"], health["model"]["users"]) == (24, 30)
        ask = asker(where, other, {health["model"]["id"]: model})
        for n in range(10):
            ask(0, random.Random(n))


def wait_for_reloads(where: str, attempts: int) -> dict[str, Any]:
    until = time.monotonic() + 30
    while True:
        health: dict[str, Any] = httpx.get(f"{where}/health").json()
        if health["reload"]["attempts"] >= attempts:
            return health
        assert time.monotonic() < until, health
        time.sleep(0.02)


def _truncate(folder: Path) -> None:
    weights = folder / "best" / "model.safetensors"
    part = folder / "part"
    part.write_bytes(weights.read_bytes()[:200])
    os.replace(part, weights)  # one change, not two, to who watches


def _remove(folder: Path) -> None:
    shutil.rmtree(folder / "best")


def _swap_data(folder: Path) -> None:
    other = folder.with_name("other")
    make_run(other, 9, another_catalogue())
    # Written over in place: what is served must not lie in a map of the file.
    shutil.copy(other / "interactions.safetensors", folder)


def _break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize("harm", [_truncate, _remove, _swap_data, _break_config])
def test_a_broken_folder_leaves_the_old_model_serving(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    folder, spare = tmp_path / "run", tmp_path / "spare"
    model = make_run(folder, 1)
    shutil.copytree(folder, spare)
    service = make_service(folder)
    with running(service) as where:
        name = service.model.id
        ask = asker(where, DATA, {name: model})
        harm(folder)
        service.reloader.request()
        health = wait_for_reloads(where, 1)
        assert (health["status"], health["ready"]) == ("degraded", True)
        assert str(folder) in health["reload"]["error"]
        metrics = httpx.get(f"{where}/metrics").text
        assert "adarec_reload_failing 1.0" in metrics
        assert 'adarec_reloads_total{result="failed"} 1.0' in metrics
        for n in range(5):
            ask(0, random.Random(n))
        shutil.rmtree(folder)
        shutil.copytree(spare, folder)
        service.reloader.request()
        health = wait_for_reloads(where, 2)
        assert (health["status"], health["reload"]["error"]) == ("ok", None)
        assert "adarec_reload_failing 0.0" in httpx.get(f"{where}/metrics").text


def test_a_watched_folder_is_tried_once_for_each_change(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder, 1)
    service = make_service(folder, watch=0.02)
    reloader: Reloader = service.reloader
    with running(service) as where:
        time.sleep(0.3)
        assert reloader.status.attempts == 0
        _truncate(folder)
        wait_for_reloads(where, 1)
        time.sleep(0.3)
        assert reloader.status.attempts == 1
        (folder / "best").rename(folder / "gone")  # a moment of every replacement: no attempt
        time.sleep(0.3)
        assert reloader.status.attempts == 1
        make_run(folder, 2)
        assert wait_for_reloads(where, 2)["reload"]["error"] is None
        assert service.model.epoch == 2
    assert signature(service.source) is not None


# ---------------------------------------------------------------------- the process


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


def test_sighup_reloads_and_sigterm_finishes_what_is_under_way(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder, 1)
    with process(folder, "--timeout-ms", "20000") as (server, where):
        model = make_run(folder, 2)
        server.send_signal(signal.SIGHUP)
        health = wait_for_reloads(where, 1)
        assert health["model"]["epoch"] == 2
        asker(where, DATA, {health["model"]["id"]: model})(0, random.Random(0))
        body = b'{"user": "u00003", "k": 5}'
        head, gap = _request(body, _JSON).split(body)
        assert gap == b""
        raws = [raw_connection(where) for _ in range(5)]
        for raw in raws:
            raw.sendall(head + body[:9])
        time.sleep(0.2)
        server.send_signal(signal.SIGTERM)
        wait_until_closed(where)
        for raw in raws:
            raw.sendall(body[9:])
        for raw in raws:
            assert read_all(raw).startswith(b"HTTP/1.1 200")
        assert server.wait(20) == 0


def test_a_shutdown_is_bounded(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    options = ["--shutdown-timeout", "1", "--timeout-ms", "60000"]
    with process(tmp_path / "run", *options) as (server, where), raw_connection(where) as raw:
        raw.sendall(
            b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 50\r\n\r\n{"
        )
        time.sleep(0.2)
        begun = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert time.monotonic() - begun < 10


def test_a_port_is_free_again_at_once(folder: Path) -> None:
    with running(make_service(folder)) as where:
        port = int(where.rsplit(":", 1)[1])
    with running(make_service(folder, port=port)) as again:
        assert again == where

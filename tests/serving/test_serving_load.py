"""The service under load: batches, queue, deadlines, clients that leave, bodies without end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi_offline", reason="the extra [serve] is not installed")

import httpx
from helpers_serving import (
    USERS,
    assert_is,
    connected,
    error_of,
    expected,
    make_data,
    make_model,
    make_run,
    make_service,
    raw_connection,
    read_all,
    running,
)

from adarec_fast.serving import Service, batcher

DATA = make_data()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serving") / "run"
    make_run(path)
    return path


def test_requests_of_every_kind_at_once_have_the_answers_they_have_alone(folder: Path) -> None:
    model = make_model(DATA)
    requests: list[tuple[dict[str, Any], Any]] = []
    for user in range(USERS):
        history = DATA.items.decode(DATA.sequence(user))[: 1 + user % 9]
        k, seen = 1 + user % 25, user % 3 > 0
        body = {"history": history, "k": k, "exclude_seen": seen}
        wanted = expected(model, DATA, history, k + 2, seen)
        if user % 4 == 0:
            body["exclude"] = wanted[0][:2]
            wanted = (wanted[0][2:], wanted[1][2:], wanted[2])
        requests.append((body, (wanted[0][:k], wanted[1][:k], wanted[2])))
    service = make_service(folder, max_wait_ms=20)
    with running(service) as where, httpx.Client() as http, ThreadPoolExecutor(16) as pool:
        for _ in range(3):
            replies = pool.map(lambda one: http.post(f"{where}/recommend", json=one[0]), requests)
            for reply, (_, wanted) in zip(replies, requests, strict=True):
                assert reply.status_code == 200, reply.text
                assert_is(reply.json(), wanted)
    sizes = service.metrics.registry.get_sample_value
    assert sizes("adarec_batch_size_sum") == 3 * USERS
    assert sizes("adarec_batch_size_count") < 3 * USERS  # some were computed together


def test_a_bug_is_a_500_that_names_no_client(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(jobs: list[batcher.Job]) -> list[batcher.Answer]:
        raise ZeroDivisionError("a bug")

    with connected(make_service(folder)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(batcher, "rank", fail)
            error = error_of(client.get("/recommend?user=u00001"), 500)
        assert error["message"] == "the service failed; its log says why"
        assert "ZeroDivisionError: a bug" in caplog.text
        assert client.get("/recommend?user=u00001").status_code == 200


def test_one_bad_job_does_not_harm_its_batch(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    right = batcher.rank

    def fail(jobs: list[batcher.Job]) -> list[batcher.Answer]:
        if any(job.k == 13 for job in jobs):
            raise ZeroDivisionError("a bug")
        return right(jobs)

    monkeypatch.setattr(batcher, "rank", fail)
    with running(make_service(folder, max_wait_ms=50)) as where, ThreadPoolExecutor(8) as pool:
        codes = list(
            pool.map(
                lambda k: httpx.get(f"{where}/recommend?user=u00002&k={k}").status_code,
                [5, 13, 6, 7] * 8,
            )
        )
    assert codes == [200, 500, 200, 200] * 8


class Gate:
    """Stands in for the model: every batch waits until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.seen: list[int] = []
        right = batcher.rank

        def rank(jobs: list[batcher.Job]) -> list[batcher.Answer]:
            self.seen.append(len(jobs))
            self.entered.set()
            assert self.opened.wait(30)
            return right(jobs)

        monkeypatch.setattr(batcher, "rank", rank)


def value(service: Service, name: str, **labels: str) -> float:
    found = service.metrics.registry.get_sample_value(name, labels)
    assert found is not None, name
    return found


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_full_queue_refuses_and_recovers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    gate = Gate(monkeypatch)
    service = make_service(folder, max_queue=3, max_batch=2, timeout_ms=60_000)
    with running(service) as where, ThreadPoolExecutor(8) as pool:

        def ask() -> httpx.Response:
            return httpx.get(f"{where}/recommend?user=u00001", timeout=60)

        first = pool.submit(ask)
        assert gate.entered.wait(20)
        waiting = [pool.submit(ask) for _ in range(3)]
        wait_for(lambda: value(service, "adarec_queue_length") == 3)
        refused = ask()
        error = error_of(refused, 503)
        assert error["message"].startswith("3 requests are waiting, of at most 3")
        assert int(refused.headers["retry-after"]) >= 1
        gate.opened.set()
        assert [one.result().status_code for one in (first, *waiting)] == [200] * 4
        assert ask().status_code == 200
    assert max(gate.seen) == 2
    assert value(service, "adarec_dropped_total", reason="queue_full") == 1


def test_a_deadline_is_kept_and_frees_the_queue(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    gate = Gate(monkeypatch)
    service = make_service(folder, timeout_ms=60_000)
    with running(service) as where, ThreadPoolExecutor(2) as pool:
        address = f"{where}/recommend?user=u00001"
        first = pool.submit(httpx.get, address, timeout=60)
        assert gate.entered.wait(20)
        begun = time.monotonic()
        late = httpx.get(f"{address}&timeout_ms=80", timeout=60)
        assert 0.07 < time.monotonic() - begun < 10
        assert "not answered within 80 ms" in error_of(late, 504)["message"]
        gate.opened.set()
        assert first.result().status_code == 200
        assert httpx.get(address).status_code == 200
    assert gate.seen == [1, 1]  # the late one was never computed
    assert value(service, "adarec_dropped_total", reason="deadline") == 1


def test_a_client_that_left_is_not_computed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gate = Gate(monkeypatch)
    service = make_service(folder, timeout_ms=60_000)
    with running(service) as where, ThreadPoolExecutor(2) as pool:
        address = f"{where}/recommend?user=u00001"
        first = pool.submit(httpx.get, address, timeout=60)
        assert gate.entered.wait(20)
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(address, timeout=0.1)
        wait_for(lambda: value(service, "adarec_dropped_total", reason="disconnected") == 1)
        gate.opened.set()
        assert first.result().status_code == 200
        assert httpx.get(address).status_code == 200
    assert gate.seen == [1, 1]
    labels = {"endpoint": "/recommend", "status": "499"}
    assert value(service, "adarec_requests_total", **labels) == 1
    assert capfd.readouterr().err == ""  # it is no error of the service


def test_a_shutdown_answers_what_is_queued(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    gate = Gate(monkeypatch)
    service = make_service(folder, max_batch=2, timeout_ms=60_000)
    opening = threading.Timer(0.5, gate.opened.set)
    with ThreadPoolExecutor(6) as pool:
        with running(service) as where:
            address = f"{where}/recommend?user=u00001"
            replies = [pool.submit(httpx.get, address, timeout=60) for _ in range(6)]
            wait_for(lambda: sum(gate.seen) + value(service, "adarec_queue_length") == 6)
            opening.start()
        assert [reply.result().status_code for reply in replies] == [200] * 6
    assert not service.batcher.alive


def test_a_lonely_request_does_not_wait_for_others(folder: Path) -> None:
    service = make_service(folder, max_wait_ms=1000)
    with connected(service) as client:
        begun = time.monotonic()
        for _ in range(20):
            assert client.get("/recommend?user=u00001").status_code == 200
        # A second each if they waited.
        assert time.monotonic() - begun < 15


def test_batching_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    gate = Gate(monkeypatch)
    with running(make_service(folder, max_batch=1)) as where, ThreadPoolExecutor(6) as pool:
        replies = [pool.submit(httpx.get, f"{where}/recommend?user=u00001") for _ in range(6)]
        gate.opened.set()
        assert [reply.result().status_code for reply in replies] == [200] * 6
    assert gate.seen == [1] * 6


def test_a_slow_body_gets_a_408(folder: Path) -> None:
    with running(make_service(folder, timeout_ms=150)) as where, raw_connection(where) as raw:
        raw.sendall(
            b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 50\r\n\r\n{"
        )
        reply = read_all(raw)
    assert reply.startswith(b"HTTP/1.1 408")
    assert b"the body did not come within 0.15 s" in reply


def test_large_bodies_are_refused_whole_in_pieces_and_on_leave(folder: Path) -> None:
    service = make_service(folder, max_body=1000)
    header = {"content-type": "application/json"}

    def pieces() -> Iterator[bytes]:
        for _ in range(300):
            yield b"x" * 1000

    with running(service) as where, httpx.Client() as http:
        address = f"{where}/recommend"
        for content in (b"x" * 1001, b"x" * 500_000, pieces()):
            reply = http.post(address, content=content, headers=header)
            assert error_of(reply, 413)["code"] == "body_too_large"
        before = (
            b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
        )
        with raw_connection(where) as raw:
            raw.sendall(before)
            assert read_all(raw).startswith(b"HTTP/1.1 413")
        fits = b'{"user": "u00001"}'.ljust(1000)
        assert httpx.post(address, content=fits, headers=header).status_code == 200

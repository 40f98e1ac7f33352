"""The HTTP service: every path, every bound, every error, and the model's own answers."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
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
    ITEMS,
    USERS,
    expected,
    make_data,
    make_model,
    make_run,
    make_service,
    raw_connection,
    read_all,
    running,
)
from hypothesis import given
from hypothesis import strategies as st

from adarec_fast import ConfigError
from adarec_fast.serving import ServeConfig, Service, batcher
from adarec_fast.serving.errors import RequestError, shown
from adarec_fast.serving.requests import read_body, read_query, request_type

DATA = make_data()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serving") / "run"
    make_run(path)
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with connected(
        make_service(folder, max_k=30, max_history=25, max_exclude=5, max_body=2048)
    ) as made:
        yield made


@contextlib.contextmanager
def connected(service: Service) -> Iterator[httpx.Client]:
    with running(service) as where, httpx.Client(base_url=where, timeout=60) as made:
        yield made


def history_of(user: int) -> list[Any]:
    names: list[Any] = DATA.items.decode(DATA.sequence(user))
    return names


def assert_is(found: dict[str, Any], wanted: tuple[list[Any], list[float], int]) -> None:
    items, scores, depth = wanted
    assert [row["item"] for row in found["items"]] == items
    assert [row["score"] for row in found["items"]] == pytest.approx(scores, rel=1e-4, abs=1e-5)
    assert found["depth"] == depth


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"code", "argument", "value", "message"}
    return error


# ---------------------------------------------------------------------- answers


def test_users_and_histories_get_what_the_command_recommends(client: httpx.Client) -> None:
    model = make_model(DATA)
    for user in (0, 3, 59):
        name, history = DATA.users.decode([user])[0], history_of(user)
        wanted = expected(model, DATA, history, 7)
        for body in ({"user": name, "k": 7}, {"history": history, "k": 7}):
            if len(history) > 25 and "history" in body:
                continue
            found = client.post("/recommend", json=body).json()
            assert_is(found, wanted)
            assert found["user"] == body.get("user")
            assert found["history_length"] == len(history)
            assert found["ignored"] == []
        by_address = client.get("/recommend", params={"user": name, "k": 7}).json()
        assert_is(by_address, wanted)
        assert by_address["user"] == name


def test_lists_in_an_address(client: httpx.Client) -> None:
    history = history_of(5)[:4]
    wanted = expected(make_model(DATA), DATA, history, 3)
    joined = client.get("/recommend", params={"history": ",".join(history), "k": "3"})
    repeated = client.get("/recommend", params=[("history", h) for h in history] + [("k", "3")])
    assert joined.json() == repeated.json()
    assert_is(joined.json(), wanted)


def test_long_histories_count_whole_as_seen_but_their_end_is_read(client: httpx.Client) -> None:
    model = make_model(DATA)
    assert model.config.max_length == 10
    items = DATA.items.decode(range(1, 26))
    found = client.post("/recommend", json={"history": items, "k": 30}).json()
    assert len(found["items"]) == ITEMS - 25  # fewer than k: no more are left
    assert not {row["item"] for row in found["items"]} & set(items)
    assert_is(found, expected(model, DATA, items, 30))


def test_excluded_and_seen_items(client: httpx.Client) -> None:
    model, history = make_model(DATA), history_of(7)[:6]
    whole, scores, depth = expected(model, DATA, history, 12)
    body = {"history": history, "k": 5, "exclude": [whole[0], whole[3], whole[0]]}
    found = client.post("/recommend", json=body).json()
    left = [n for n in range(12) if n not in (0, 3)][:5]
    assert_is(found, ([whole[n] for n in left], [scores[n] for n in left], depth))
    again = client.post("/recommend", json={"history": history, "k": 30, "exclude_seen": False})
    assert_is(again.json(), expected(model, DATA, history, 30, exclude_seen=False))


def test_unknown_items_may_be_ignored(client: httpx.Client) -> None:
    history = history_of(2)[:3]
    body = {"history": ["no", *history, 12], "exclude": ["gone"], "unknown_items": "ignore"}
    found = client.post("/recommend", json=body).json()
    assert found["ignored"] == ["no", 12, "gone"]
    assert found["history_length"] == 3
    assert_is(found, expected(make_model(DATA), DATA, history, 20))
    nothing = client.post("/recommend", json={"history": ["no"], "unknown_items": "ignore"})
    assert "nothing to go by" in error_of(nothing, 422)["message"]


def test_k_is_twenty_or_what_the_catalogue_holds(folder: Path, client: httpx.Client) -> None:
    assert len(client.get("/recommend", params={"user": "u00001"}).json()["items"]) == 20
    with connected(make_service(folder)) as wide:
        error = error_of(wide.get("/recommend", params={"user": "u00001", "k": 41}), 422)
        assert error["message"] == "k=41 is more than the catalogue holds; 1..40"


def test_requests_of_every_kind_at_once_have_the_answers_they_have_alone(folder: Path) -> None:
    model = make_model(DATA)
    requests: list[tuple[dict[str, Any], Any]] = []
    for user in range(USERS):
        history = history_of(user)[: 1 + user % 9]
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


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "status", "argument", "message"),
    [
        (b"", 400, None, "not JSON: EOF"),
        (b"{", 400, None, "not JSON"),
        (b"\xff\xfe\x00", 400, None, "not JSON"),
        (b"[" * 2000, 400, None, "recursion limit"),
        (b'{"user": ' + b"9" * 2000 + b"}", 404, "user", "user=a huge integer is not among"),
        (b'{"user": "\\ud800"}', 400, None, "not JSON"),
        (b"[1]", 422, "body", "must be a JSON object"),
        (b"{}", 422, None, "either user or history; neither is there"),
        (b'{"user": 1, "history": ["a"]}', 422, None, "both"),
        (b'{"user": null}', 422, None, "neither"),
        (b'{"user": "nobody"}', 404, "user", "not among the 60 users of the training data, such"),
        (b'{"user": true}', 422, "user", "user=True: an id must be an integer or a string"),
        (b'{"user": {"a": 1}}', 422, "user", "an id must be"),
        (b'{"history": []}', 422, "history", "give at least 1 item"),
        (b'{"history": "abc"}', 422, "history", "should be a valid array"),
        (b'{"history": [1.5]}', 422, "history[0]", "an id must be"),
        (b'{"history": ["t0-s0-i000", "x"]}', 422, "history[1]", "not among the 40 items"),
        (json.dumps({"history": ["a"] * 26}).encode(), 422, "history", "at most 25 items, not 26"),
        (json.dumps({"history": ["a" * 1025]}).encode(), 422, "history[0]", "at most 1024"),
        (b'{"user": "u00001", "k": 0}', 422, "k", "k=0: should be greater than or equal to 1"),
        (b'{"user": "u00001", "k": 31}', 422, "k", "k=31: should be less than or equal to 30"),
        (b'{"user": "u00001", "k": "5"}', 422, "k", "should be a valid integer"),
        (b'{"user": "u00001", "k": NaN}', 422, "k", "k=nan"),
        (b'{"user": "u00001", "exclude": ["x"]}', 422, "exclude[0]", "unknown_items='ignore'"),
        (b'{"user": "u00001", "exclude": [1,2,3,4,5,6]}', 422, "exclude", "at most 5 items"),
        (b'{"user": "u00001", "exlude": []}', 422, "exlude", "did you mean 'exclude'?"),
        (b'{"user": "u00001", "exclude_seen": "no"}', 422, "exclude_seen", "boolean"),
        (b'{"user": "u00001", "unknown_items": "x"}', 422, "unknown_items", "or 'ignore'"),
        (b'{"user": "u00001", "timeout_ms": 5000}', 422, "timeout_ms", "or equal to 2000"),
        (b'{"user": "' + b"a" * 2048 + b'"}', 413, "body", "at most 2048 are read"),
    ],
)  # fmt: skip
def test_bad_bodies_are_named(
    client: httpx.Client, body: bytes, status: int, argument: str | None, message: str
) -> None:
    reply = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    error = error_of(reply, status)
    assert error["argument"] == argument
    assert message in error["message"]
    assert (error["value"] is None) == (argument is None)
    assert len(reply.content) < 600  # what was sent is not sent back at length


@pytest.mark.parametrize(
    ("query", "argument", "message"),
    [
        ("", None, "neither"),
        ("user=u00001&k=x", "k", "k='x': should be a valid integer"),
        ("user=u00001&k=" + "9" * 400, "k", "should be a valid integer"),
        ("user=u00001&k=1&k=2", "k", "k is given twice"),
        ("user=u00001&exclude_seen=maybe", "exclude_seen", "boolean"),
        ("user=u00001&limit=3", "limit", "unknown key 'limit'"),
        ("history=,,", "history", "give at least 1 item"),
        ("history=x", "history[0]", "not among"),
    ],
)
def test_bad_addresses_are_named(
    client: httpx.Client, query: str, argument: str | None, message: str
) -> None:
    error = error_of(client.get(f"/recommend?{query}"), 422)
    assert error["argument"] == argument
    assert message in error["message"]


def test_other_refusals_are_json_too(client: httpx.Client) -> None:
    form = client.post("/recommend", data={"user": "u00001"})
    assert "Content-Type: application/json" in error_of(form, 415)["message"]
    assert "/docs lists" in error_of(client.get("/nothing\ud7ff"), 404)["message"]
    wrong = client.put("/recommend", json={})
    assert error_of(wrong, 405)["code"] == "http"
    assert wrong.headers["allow"] == "GET, POST"


def test_a_bug_is_a_500_that_names_no_client(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(jobs: list[batcher.Job]) -> list[batcher.Answer]:
        raise ZeroDivisionError("a bug")

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


# ---------------------------------------------------------------------- load


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


def test_a_client_that_left_is_not_computed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
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
        assert time.monotonic() - begun < 1.0


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


# ---------------------------------------------------------------------- state


def test_health_ready_and_metrics(client: httpx.Client) -> None:
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert health["ready"] is True
    assert health["model"]["items"] == ITEMS
    assert health["model"]["users"] == USERS
    assert health["model"]["epoch"] == 0
    assert len(health["model"]["id"]) == 12
    assert health["reload"] == {"attempts": 0, "failed": 0, "error": None, "at": None}
    assert client.get("/ready").json() == {"ready": True}
    client.get("/recommend?user=u00001")
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(reply.text)}
    assert families["adarec_requests"].type == "counter"
    assert families["adarec_batch_size"].type == "histogram"
    (info,) = families["adarec_model_info"].samples
    assert info.labels["model"] == health["model"]["id"]
    answered = {
        (s.labels["endpoint"], s.labels["status"])
        for s in families["adarec_requests"].samples
        if s.name.endswith("_total")
    }
    assert ("/recommend", "200") in answered
    assert {endpoint for endpoint, _ in answered} <= {*("/recommend", "/health", "/ready"),
                                                     *("/metrics", "/docs", "/openapi.json"),
                                                     "other"}  # fmt: skip


def test_a_service_whose_thread_died_says_so(folder: Path) -> None:
    service = make_service(folder)
    with connected(service) as client:
        service.batcher.close(10)
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 503
        assert client.get("/health").json()["status"] == "broken"
        error_of(client.get("/recommend?user=u00001"), 503)


def test_the_openapi_page_needs_no_other_host(client: httpx.Client) -> None:
    import re

    page = client.get("/docs")
    assert page.status_code == 200
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) >= 3
    for link in links:
        assert link.startswith("/"), link
        assert client.get(link).status_code == 200
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/recommend", "/health", "/ready", "/metrics"}
    post = schema["paths"]["/recommend"]["post"]
    body = post["requestBody"]["content"]["application/json"]
    assert body["schema"]["properties"]["k"]["anyOf"][0]["maximum"] == 30
    assert set(post["responses"]) >= {"200", "400", "404", "413", "415", "422", "503", "504"}
    for example in body["examples"].values():
        assert client.post("/recommend", json=example["value"]).status_code == 200


# ---------------------------------------------------------------------- properties

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_IDS = st.lists(st.sampled_from(DATA.items.ids) | _JSON, max_size=6)
_BODIES = st.one_of(
    st.binary(max_size=80),
    _JSON.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {},
        optional={
            "user": st.sampled_from(DATA.users.ids) | _JSON, "history": _IDS, "exclude": _IDS,
            "k": st.integers(-2, 45) | _JSON, "exclude_seen": st.booleans() | _JSON,
            "unknown_items": st.sampled_from(["refuse", "ignore"]) | _JSON,
            "timeout_ms": st.floats(1, 2000) | _JSON, "other": _JSON,
        },
    ).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip


@given(body=_BODIES)
def test_any_body_gets_an_answer_or_a_refusal_in_json(client: httpx.Client, body: bytes) -> None:
    reply = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    if reply.status_code == 200:
        rows = reply.json()["items"]
        scores = [row["score"] for row in rows]
        assert scores == sorted(scores, reverse=True)
        assert len({row["item"] for row in rows}) == len(rows)
    else:
        assert reply.status_code in (400, 404, 413, 422)
        assert error_of(reply, reply.status_code)["message"]


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=4))
def test_any_address_is_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    try:
        read_query(request_type(ServeConfig()), pairs)
    except RequestError as error:
        json.loads(error.body())


def test_the_schema_and_the_checks_agree() -> None:
    kind = request_type(ServeConfig(max_k=5))
    assert read_body(kind, b'{"user": 3, "k": 5}').k == 5
    assert kind.model_json_schema()["properties"]["k"]["anyOf"][0]["maximum"] == 5


def test_values_are_shown_short_and_plain() -> None:
    assert shown("\ud800é") == r"'\ud800\xe9'"
    assert shown(10**5000) == "a huge integer"
    assert len(shown("x" * 10_000)) < 100


# ---------------------------------------------------------------------- the command


def test_bad_options_are_named() -> None:
    with pytest.raises(ConfigError, match="max_batch=0"):
        ServeConfig.create(max_batch=0)
    with pytest.raises(ConfigError, match="did you mean 'max_queue'"):
        ServeConfig.create(maxqueue=1)


def test_the_command_fails_before_it_loads_anything(folder: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from adarec_fast.cli import app

    def run(*arguments: str) -> tuple[int, str]:
        shown = CliRunner().invoke(app, ["serve", *arguments], env={"COLUMNS": "200"})
        return shown.exit_code, shown.output

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, output = run(str(folder), "--port", port)
        assert (code, "Address already in use" in output) == (2, True), output
    code, output = run(str(tmp_path), "--port", "0")
    assert (code, "holds no run" in output) == (2, True), output
    code, output = run(str(folder), "--max-k", "0")
    assert (code, "max_k=0" in output) == (2, True), output
    code, output = run(str(folder), "--host", "no such host")
    assert (code, "host='no such host'" in output) == (2, True), output


def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["uvicorn"] = None
from adarec_fast.cli import app
app(["serve", "nowhere"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "serving needs uvicorn: pip install adarec_fast[serve]" in done.stderr

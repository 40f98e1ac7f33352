"""The HTTP service: every path, every bound, every error, and the model's own answers."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi_offline", reason="the extra [serve] is not installed")

import httpx
from helpers_serving import (
    ITEMS,
    USERS,
    assert_is,
    connected,
    error_of,
    expected,
    make_data,
    make_model,
    make_run,
    make_service,
)
from hypothesis import given
from hypothesis import strategies as st

from adarec_fast import ConfigError, load
from adarec_fast.serving import ServeConfig
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


def history_of(user: int) -> list[Any]:
    names: list[Any] = DATA.items.decode(DATA.sequence(user))
    return names


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


def test_users_that_preprocessing_dropped_are_told(tmp_path: Path) -> None:
    lists = {f"u{u}": [f"i{(u + j) % ITEMS}" for j in range(5)] for u in range(ITEMS)}
    data = load({**lists, "short": ["i3", "i4"]})
    model = make_run(tmp_path / "run", data=data)
    with connected(make_service(tmp_path / "run")) as http:
        found = http.get("/recommend?user=short&k=3").json()
        assert_is(found, expected(model, data, ["i3", "i4"], 3))
        assert (found["user"], found["note"]) == (
            "short",
            "user 'short' is in the data, with 2 items, and was dropped by min_length=3; answered "
            "by those in the catalogue",
        )
        assert http.get("/recommend?user=u3").json()["note"] is None
        assert http.get("/recommend?history=i3").json()["note"] is None
        error_of(http.get("/recommend?user=shorty"), 404)


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
        (b'{"user": 1, "users": [1]}', 422, None, "user and users, both, is there"),
        (b'{"user": null}', 422, None, "neither"),
        (b'{"users": ["u00001", "nobody"]}', 404, "users[1]", "users[1]='nobody' is not among"),
        (b'{"users": []}', 422, "users", "give at least 1 item"),
        (b'{"user": "u00001", "allow": ["x"]}', 422, "allow[0]", "unknown_items='ignore'"),
        (b'{"user": "u00001", "allow": []}', 422, "allow", "give at least 1 item"),
        (b'{"user": "u00001", "allow": ["x"], "unknown_items": "ignore"}', 422, "allow",
         "nothing to choose from"),
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
        ('history="x,1', "history", "double quote without its second"),
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
    assert wrong.headers["allow"] == "GET, HEAD, POST"


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
    assert set(schema["paths"]) == {"/recommend", "/similar", "/health", "/ready", "/metrics"}
    post = schema["paths"]["/recommend"]["post"]
    body = post["requestBody"]["content"]["application/json"]
    assert body["schema"]["properties"]["k"]["anyOf"][0]["maximum"] == 30
    assert set(post["responses"]) >= {"200", "400", "404", "413", "415", "422", "503", "504"}
    for path in ("/recommend", "/similar"):
        body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for example in body["examples"].values():
            assert client.post(path, json=example["value"]).status_code == 200


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
            "timeout_ms": st.floats(1, 2000) | _JSON, "other": _JSON, "allow": _IDS,
            "users": st.lists(st.sampled_from(DATA.users.ids) | _JSON, max_size=3),
        },
    ).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip


@given(body=_BODIES)
def test_any_body_gets_an_answer_or_a_refusal_in_json(client: httpx.Client, body: bytes) -> None:
    reply = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    if reply.status_code == 200:
        for answer in reply.json().get("answers", [reply.json()]):
            rows = answer["items"]
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


def run(*arguments: str) -> tuple[int, str]:
    """The exit code of ``serve``, and what it said."""
    from typer.testing import CliRunner

    from adarec_fast.cli import app

    shown = CliRunner().invoke(app, ["serve", *arguments], env={"COLUMNS": "200"})
    return shown.exit_code, shown.output


def test_the_command_fails_before_it_loads_anything(folder: Path, tmp_path: Path) -> None:
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


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a process that has not served: what imports uvicorn is imported anew.
    for name in ("process", "server"):
        monkeypatch.delitem(sys.modules, f"adarec_fast.serving.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, output = run("nowhere")
    assert (code, "serving needs uvicorn: pip install adarec_fast[serve]" in output) == (2, True)

"""The service behind a proxy and in other programs: HEAD, prefixes, redirects, repeated keys."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from helpers_serving import connected, error_of, make_run, make_service, source

from adarec_fast import ConfigError
from adarec_fast.serving import ServeConfig, serve


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proxied") / "run"
    make_run(folder)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with connected(make_service(folder)) as made:
        yield made


@pytest.fixture(scope="module")
def below(folder: Path) -> Iterator[httpx.Client]:
    """A service told that it lies below ``/rec``."""
    with connected(make_service(folder, root_path="/rec")) as made:
        yield made


PATHS = ["/ready", "/health", "/metrics", "/docs", "/openapi.json", "/recommend?user=u00001&k=2"]


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_a_body(client: httpx.Client, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_head_of_what_is_refused(client: httpx.Client) -> None:
    for path, status in (("/recommend?user=nobody", 404), ("/nothing", 404)):
        head = client.head(path)
        assert (head.status_code, head.content) == (status, b"")
    refused = client.delete("/recommend")
    assert refused.headers["allow"] == "GET, HEAD, POST"
    assert client.get("/ready").json() == {"ready": True}  # on the same connection


@pytest.mark.parametrize("path", ["/recommend/", "/ready/", "/docs/"])
def test_a_slash_too_many_leads_back_by_a_relative_path(client: httpx.Client, path: str) -> None:
    answer = client.get(f"{path}?user=u1%26&k=2", headers={"Host": "shop.example"})
    assert answer.status_code == 307
    assert answer.headers["location"] == f"..{path[:-1]}?user=u1%26&k=2"
    assert "location" not in client.get("/nothing/").headers
    led = client.post("/recommend/", json={"user": "u00001", "k": 1}, follow_redirects=True)
    assert led.status_code == 200
    assert led.url.path == "/recommend"


@pytest.mark.parametrize("prefix", ["", "/rec"], ids=["stripped", "kept"])
def test_a_prefix_that_a_proxy_strips_or_keeps(below: httpx.Client, prefix: str) -> None:
    assert below.get(f"{prefix}/ready").status_code == 200
    assert len(below.get(f"{prefix}/recommend?user=u00001&k=2").json()["items"]) == 2
    page = below.get(f"{prefix}/docs").text
    assert "'/rec/openapi.json'" in page
    places = [word for word in page.replace('"', "'").split("'") if word.startswith("/")]
    places.remove("/docs/oauth2-redirect")  # of a login, which there is not
    assert places
    assert [place for place in places if not place.startswith("/rec/")] == []
    for place in places:
        assert below.get(place if prefix else place.removeprefix("/rec")).status_code == 200
    described = below.get(f"{prefix}/openapi.json").json()
    assert described["servers"] == [{"url": "/rec"}]
    error = error_of(below.get(f"{prefix}/nothing"), 404)
    assert "/rec/docs lists" in error["message"]
    assert below.get(f"{prefix}/recommend/").headers["location"] == "../recommend"
    text = below.get(f"{prefix}/metrics").text
    assert 'endpoint="/recommend"' in text


def test_prefixes_are_checked() -> None:
    for wrong in ("rec", "/rec/", "/", "/a b", "//a", "/a?b"):
        with pytest.raises(ConfigError, match=r"root_path=.*must begin with / and not end with it"):
            ServeConfig.create(root_path=wrong)
    assert ServeConfig.create(root_path="/a/b").root_path == "/a/b"


@pytest.mark.parametrize(
    "body",
    [
        b'{"user": "u00001", "user": "u00002", "k": 1}', b'{"user": "u00001", "k": 1, "k": 2}',
        b'{"user": "u00001", "nothing": {"a": 1, "a": 2}}', b'{"k": "x", "k": 1}',
        b'{"user": "u00001", "us\\u0065r": "u00002"}',
    ],
)  # fmt: skip
def test_a_repeated_key_is_refused(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/recommend", content=body, headers={"Content-Type": "application/json"})
    error = error_of(answer, 400)
    assert error["code"] == "repeated"
    assert "is given twice" in error["message"]


def test_serve_says_where_it_cannot_run(folder: Path) -> None:
    told: list[str] = []

    def call() -> None:
        try:
            serve(source(folder / "absent"), ServeConfig.create(port=0))
        except ConfigError as error:
            told.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(10)

    async def cell() -> None:
        call()

    asyncio.run(cell())
    assert [text.split(",")[0] for text in told] == [
        "serve() was called in a thread",
        "serve() was called where an event loop runs already",
    ]
    assert all("create_app(Service(source, config))" in text for text in told)

"""Downloads against a server on loopback that misbehaves in every way we could think of."""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from adarec_fast.data import DataError, download
from adarec_fast.data.download import FILES, RemoteFile

# The package re-exports the function under the name of its module.
MODULE = importlib.import_module("adarec_fast.data.download")
CONTENT = b"".join(b"%d 1 2 3\n" % n for n in range(1, 30_001))
HTML = b"<!DOCTYPE html><title>Log in</title>"

Respond = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers every request with the next of ``server.plan``; its last one stays."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        plan = self.server.plan
        respond = plan.pop(0) if len(plan) > 1 else plan[0]
        respond(self)

    def head(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.plan: list[Respond] = [ok]

    def handle_error(self, *_: object) -> None:
        pass  # a client that hung up is part of the tests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"


def ok(handler: Handler) -> None:
    asked = handler.headers.get("Range")
    if asked is None:
        handler.head(200, len(CONTENT))
        handler.wfile.write(CONTENT)
        return
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    if start >= len(CONTENT):
        handler.head(416, 0, Content_Range=f"bytes */{len(CONTENT)}")
        return
    span = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
    handler.head(206, len(CONTENT) - start, Content_Range=span)
    handler.wfile.write(CONTENT[start:])


def ignores_range(handler: Handler) -> None:
    handler.head(200, len(CONTENT))
    handler.wfile.write(CONTENT)


def truncates(handler: Handler) -> None:
    handler.head(200, len(CONTENT))
    handler.wfile.write(CONTENT[:100_000])


def truncates_unnoticed(handler: Handler) -> None:
    handler.head(200, None)
    handler.wfile.write(CONTENT[:100_000])


def stalls(handler: Handler) -> None:
    handler.head(200, len(CONTENT))
    handler.wfile.write(CONTENT[:100_000])
    handler.wfile.flush()
    time.sleep(1.0)


def never_answers(handler: Handler) -> None:
    time.sleep(1.0)


def trickles(handler: Handler) -> None:
    handler.head(200, len(CONTENT))
    for start in range(0, len(CONTENT), 50_000):
        handler.wfile.write(CONTENT[start : start + 50_000])
        handler.wfile.flush()
        time.sleep(0.05)


def html(handler: Handler) -> None:
    handler.head(200, len(HTML), Content_Type="text/html; charset=utf-8")
    handler.wfile.write(HTML)


def html_as_text(handler: Handler) -> None:
    handler.head(200, len(HTML), Content_Type="text/plain")
    handler.wfile.write(HTML)


def html_500(handler: Handler) -> None:
    handler.head(500, len(HTML), Content_Type="text/html")
    handler.wfile.write(HTML)


def missing(handler: Handler) -> None:
    handler.head(404, 0)


def tampered(handler: Handler) -> None:
    handler.head(200, len(CONTENT))
    handler.wfile.write(CONTENT[:-2] + b"9\n")


def other_range(handler: Handler) -> None:
    if handler.headers.get("Range") is None:
        ok(handler)
        return
    handler.head(206, 10, Content_Range=f"bytes 0-9/{len(CONTENT)}")
    handler.wfile.write(CONTENT[:10])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    remote = RemoteFile("Beauty.txt", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(FILES, "beauty", remote)
    monkeypatch.setattr(MODULE, "_BACKOFF_SECONDS", 0.01)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_good_server(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = tmp_path / "new" / "folder"
    path = download("beauty", folder, base_url=server.url, progress=lambda *a: seen.append(a))
    assert path == folder / "Beauty.txt"
    assert path.read_bytes() == CONTENT
    assert files(folder) == ["Beauty.txt"]
    assert server.requests == [("/data/Beauty.txt", None)]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    # It is there already: no request, even to a server that is gone.
    assert download("beauty", folder, base_url="http://127.0.0.1:1") == path
    assert len(server.requests) == 1


def test_the_base_address_comes_from_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAREC_FAST_DATA_URL", server.url + "/")
    assert download("beauty", tmp_path).read_bytes() == CONTENT
    assert server.requests[0][0] == "/data/Beauty.txt"


def test_resumes_what_is_there(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Beauty.txt.part").write_bytes(CONTENT[:1234])
    assert download("beauty", tmp_path, base_url=server.url).read_bytes() == CONTENT
    assert server.requests == [("/data/Beauty.txt", "bytes=1234-")]
    assert files(tmp_path) == ["Beauty.txt"]


def test_a_complete_part_only_needs_its_checksum(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Beauty.txt.part").write_bytes(CONTENT)
    assert download("beauty", tmp_path, base_url=server.url).read_bytes() == CONTENT


@pytest.mark.parametrize("rest", [ignores_range, other_range])
def test_starts_over_when_ranges_do_not_work(server: Server, tmp_path: Path, rest: Respond) -> None:
    (tmp_path / "Beauty.txt.part").write_bytes(CONTENT[:1234])
    server.plan = [rest]
    assert download("beauty", tmp_path, base_url=server.url).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [1234, len(CONTENT), len(CONTENT) + 5])
def test_starts_over_when_the_part_is_spoilt(server: Server, tmp_path: Path, size: int) -> None:
    (tmp_path / "Beauty.txt.part").write_bytes(b"x" * size)
    assert download("beauty", tmp_path, base_url=server.url).read_bytes() == CONTENT
    assert server.requests[-1] == ("/data/Beauty.txt", None)
    assert files(tmp_path) == ["Beauty.txt"]


@pytest.mark.parametrize("bad", [truncates, stalls])
def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path, bad: Respond) -> None:
    server.plan = [bad, ok]
    path = download("beauty", tmp_path, base_url=server.url, timeout=0.2)
    assert path.read_bytes() == CONTENT
    assert server.requests[1] == ("/data/Beauty.txt", "bytes=100000-")


@pytest.mark.parametrize("bad", [html_500, never_answers])
def test_passing_failures_are_retried(server: Server, tmp_path: Path, bad: Respond) -> None:
    server.plan = [bad, bad, ok]
    path = download("beauty", tmp_path, base_url=server.url, timeout=0.2)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_a_slow_server_is_waited_for(server: Server, tmp_path: Path) -> None:
    server.plan = [trickles]
    path = download("beauty", tmp_path, base_url=server.url, timeout=0.4)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("bad", "message", "requests", "left"),
    [
        (html_500, r"answered 500 .*\(gave up after 2 tries\)", 2, []),
        (never_answers, r"no answer for 0\.2 s \(gave up after 2 tries\)", 2, []),
        (truncates, r"ended after 100000 of \d+ bytes .*is kept", 2, ["Beauty.txt.part"]),
        (missing, "answered 404", 1, []),
        (html, "sent an HTML page instead of the data: '<!DOCTYPE html>", 1, []),
        (html_as_text, "sent an HTML page", 1, []),
        (truncates_unnoticed, "wrong content: SHA-256 .* deleted", 1, []),
    ],
)
def test_failures_that_stay(
    server: Server, tmp_path: Path, bad: Respond, message: str, requests: int, left: list[str]
) -> None:
    server.plan = [bad]
    with pytest.raises(DataError, match=message):
        download("beauty", tmp_path, base_url=server.url, timeout=0.2, retries=1)
    assert len(server.requests) == requests
    assert files(tmp_path) == left


def test_an_error_page_does_not_spoil_a_part(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "Beauty.txt.part"
    part.write_bytes(CONTENT[:1234])
    server.plan = [html]
    with pytest.raises(DataError, match="HTML page"):
        download("beauty", tmp_path, base_url=server.url)
    assert part.read_bytes() == CONTENT[:1234]


def test_a_wrong_checksum_shows_both_sums(server: Server, tmp_path: Path) -> None:
    server.plan = [tampered]
    with pytest.raises(DataError, match="wrong content") as caught:
        download("beauty", tmp_path, base_url=server.url)
    assert hashlib.sha256(CONTENT).hexdigest() in str(caught.value)
    assert hashlib.sha256(CONTENT[:-2] + b"9\n").hexdigest() in str(caught.value)
    assert files(tmp_path) == []


def test_another_file_in_the_place_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Beauty.txt").write_text("mine")
    with pytest.raises(DataError, match="there is another file of this name"):
        download("beauty", tmp_path, base_url=server.url)
    assert (tmp_path / "Beauty.txt").read_text() == "mine"
    assert server.requests == []


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"refused.*gave up after 1 try"):
        download("beauty", tmp_path, base_url="http://127.0.0.1:1", retries=0)


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.RawIOBase):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plain_open = Path.open

    def open_full(path: Path, mode: str = "r") -> object:
        return Full() if mode in ("wb", "ab") else plain_open(path, mode)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(DataError, match=r"Beauty\.txt: cannot be written: No space left on device"):
        download("beauty", tmp_path, base_url=server.url)
    assert len(server.requests) == 1
    assert files(tmp_path) == []


def test_the_folder_is_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        download("beauty", tmp_path / "file", base_url=server.url)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("books", {}, "name='books' must be one of 'beauty', 'sports', 'toys', 'yelp'"),
        ("beauty", {"base_url": "ftp://x"}, "base_url='ftp://x' must begin with http"),
        ("beauty", {"base_url": "file:///etc"}, "must begin with http"),
        ("beauty", {"retries": -1}, "retries=-1"),
        ("beauty", {"timeout": 0}, "timeout=0"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, name: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        download(name, tmp_path, **arguments)  # type: ignore[arg-type]
    assert files(tmp_path) == []


def test_the_four_files() -> None:
    assert {name: remote.file for name, remote in FILES.items()} == {
        "beauty": "Beauty.txt",
        "sports": "Sports_and_Outdoors.txt",
        "toys": "Toys_and_Games.txt",
        "yelp": "Yelp.txt",
    }
    assert all(len(bytes.fromhex(remote.sha256)) == 32 for remote in FILES.values())

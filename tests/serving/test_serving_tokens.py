"""Who is let in, and what becomes of the file of tokens while the service runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi_offline", reason="the extra [serve] is not installed")

from helpers_serving import (
    JSON_TYPE,
    connected,
    error_of,
    make_run,
    make_service,
    post_request,
    raw_connection,
    read_all,
    source,
)

from adarec_fast import ConfigError
from adarec_fast.serving import ServeConfig, serve
from adarec_fast.serving.errors import RequestError
from adarec_fast.serving.tokens import Tokens

FIRST, SECOND = "first-token-0123456789", "second+token/0123456789=="


def written(path: Path, *lines: str) -> Path:
    aside = path.with_name("aside")
    aside.write_text("".join(f"{line}\n" for line in lines))
    aside.chmod(0o600)
    os.replace(aside, path)
    return path


def bearer(token: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {token}"}


def test_a_token_lets_in_and_nothing_else_does(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    file = written(tmp_path / "tokens", FIRST, "", SECOND)
    with connected(make_service(tmp_path / "run", token_file=str(file))) as client:
        asked = "/recommend?user=u00001"
        for token in (FIRST, SECOND):
            assert client.get(asked, headers=bearer(token)).status_code == 200
        assert client.get(asked, headers=bearer(f" {FIRST}", "bEARER")).status_code == 200
        # Without one, every path but the probe's, those that are not there included.
        for path in (asked, "/health", "/metrics", "/docs", "/openapi.json", "/similar", "/x"):
            refused = client.get(path)
            assert error_of(refused, 401)["code"] == "no_token"
            assert refused.headers["www-authenticate"] == 'Bearer realm="adarec_fast"'
        assert client.get("/ready").json() == {"ready": True}
        wrong = (FIRST[:-1], FIRST + "0", FIRST.upper(), SECOND.rstrip("="), "\u00e9" * 20)
        for token in wrong:
            refused = client.get(asked, headers={
                "Authorization": f"Bearer {token}".encode("latin-1")
            })  # fmt: skip
            assert error_of(refused, 401)["code"] == "wrong_token"
            assert token not in refused.text
        refused = client.post("/recommend", json={"user": "u00001"}, headers=bearer("x" * 20))
        assert refused.headers["www-authenticate"].endswith('error="invalid_token"')
        for headers in (bearer(FIRST, "Basic"), {"Authorization": FIRST}):
            assert error_of(client.get(asked, headers=headers), 401)["code"] == "no_token"
        both = [("Authorization", f"Bearer {FIRST}")] * 2
        assert error_of(client.get(asked, headers=both), 401)["code"] == "no_token"
        assert client.head(asked).status_code == 401
        counted = client.get("/metrics", headers=bearer(FIRST)).text
        assert 'adarec_requests_total{endpoint="/similar",status="401"} 1.0' in counted
        # A body that was sent is read, and one that waits for leave is not sent.
        where = str(client.base_url)
        with raw_connection(where) as raw:
            raw.sendall(post_request(b"x" * 50_000, JSON_TYPE))
            assert read_all(raw).startswith(b"HTTP/1.1 401")
        with raw_connection(where) as raw:
            whole = post_request(b'{"user": "u00001"}', JSON_TYPE, "Expect: 100-continue")
            raw.sendall(whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
            assert read_all(raw).startswith(b"HTTP/1.1 401")


def refused(tokens: Tokens, token: str) -> bool:
    refusal = tokens.refusal([(b"authorization", f"Bearer {token}".encode())])
    assert refusal is None or isinstance(refusal, RequestError)
    return refusal is not None


def test_a_file_that_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path / "tokens", FIRST)
    tokens = Tokens(file)
    assert not refused(tokens, FIRST)
    written(file, FIRST, SECOND)
    assert not refused(tokens, SECOND)
    written(file, SECOND)
    assert refused(tokens, FIRST)
    for harm in ("short", ""):
        file.write_text(harm)
        assert not refused(tokens, SECOND)
        assert "the old tokens stay in force" in caplog.messages[-1]
    file.unlink()
    assert not refused(tokens, SECOND)
    written(file, FIRST)
    assert refused(tokens, SECOND)
    assert not refused(tokens, FIRST)
    assert FIRST not in caplog.text
    assert SECOND not in caplog.text


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no token"),
        (b"\n \n", "holds no token"),
        (b"ok-token-0123456789\nshort\n", r"tokens:2: no token; it must have 16"),
        (b"has a blank within it 123\n", r"tokens:1: no token"),
        ("\u00fc".encode() * 20, r"tokens:1: no token"),
        (b"a" * 70_000, "more than 65536 bytes"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as found:
        Tokens(file)
    assert "short" not in str(found.value).split("no token")[0]


def test_a_file_that_is_not_there_is_said_before_the_model_is_loaded(tmp_path: Path) -> None:
    config = ServeConfig(token_file=str(tmp_path / "none"), port=0)
    with pytest.raises(ConfigError, match=r"token_file='.*none': No such file"):
        serve(source(tmp_path / "no-run"), config)


def test_a_file_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    file = written(tmp_path / "tokens", FIRST)
    tokens = Tokens(file)
    for mode, said in (
        (0o600, None), (0o400, None), (0o640, None), (0o644, "every user .* may read"),
        (0o620, "its group .* may change"), (0o602, "every user .* may change"),
    ):  # fmt: skip
        file.chmod(mode)
        warning = tokens.too_open()
        if said is None:
            assert warning is None
        else:
            assert warning is not None
            assert re.search(said, warning)
            assert warning.endswith(f"chmod 600 {file}")

"""Fuzz the service over its socket: ``python tests/serving/fuzz_requests.py SECONDS [SEED]``.

The service wants a token, which most requests have; some have another, half of it, or none.

Requests are drawn at random, or drawn and then broken in their bytes. A finding is an answer of
500, one that is no HTTP or whose error lacks a field, a list that does not keep what was asked, no
answer within ten seconds, or a service that does not answer rightly at the end. The first finding
is printed with its seed and its bytes, and the exit code is 1.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "support")]

from helpers_serving import (
    ITEMS,
    expected,
    make_data,
    make_run,
    make_service,
    raw_connection,
    running,
)

from adarec_fast.serving import Service
from adarec_fast.serving.errors import ErrorBody

DATA = make_data()
USERS, CATALOGUE = DATA.users.decode(range(DATA.num_users)), DATA.items.decode(range(1, ITEMS + 1))
SLOWEST_SECONDS = 10.0
STATUSES = {200, 307, 400, 401, 404, 405, 408, 413, 415, 422, 503, 504}

TOKEN = "a-token-of-this-fuzzer"
WRONG = (
    "Authorization: Bearer", f"Authorization: Bearer {TOKEN[:-1]}", f"Authorization: {TOKEN}",
    f"Authorization: Bearer {TOKEN}, Bearer {TOKEN}", f"Authorization: Bearer \u00e9{TOKEN}",
    f"X-Authorization: Bearer {TOKEN}", f"Authorization: Bearer {'a' * 5000}",
)
REFUSED = "refused"  # in the place of fields: a request that must not be let in

ODD: list[str] = [  # JSON texts
    "null", "true", "0", "-1", "1", "7", "1.0", "1e3", "1e999", "-0", "NaN", "Infinity", '""',
    '"x"', '"\\ud800"', '"\\u0000"', '"\\u00e9\\ud83d\\ude00"', "9" * 19, "9" * 400, "9" * 5000,
    "[]", "{}", "[[]]", "[null]", "[1,1]", '{"user":1}', "[" * 90 + "]" * 90,
    "[" * 3000 + "]" * 3000, f'"{"a" * 1025}"', f"[{'1,' * 2000}1]", '"refuse"', '"ignore"', "0.5",
    "1" * 18 + ".5", '" i1"', "00", "+1", "'x'", "\x00", "\x7f",
]  # fmt: skip
NAMES = ("user", "history", "k", "exclude", "exclude_seen", "unknown_items", "timeout_ms")
PATHS = (
    "/recommend", "/recommend", "/recommend", "/recommend/", "/health", "/ready", "/metrics",
    "/docs", "/openapi.json", "/", "", "//recommend", "/recommend/../health", "/%2e%2e/recommend",
    "/recommend%00", "/recommend%2f", "/Recommend", "/static-offline-docs/x", "/docs/oauth2",
    "/static-offline-docs/../app.py", "/static-offline-docs/%2e%2e%2f%2e%2e%2fapp.py", "*",
    "http://elsewhere/recommend", "/" + "a" * 5000, "/recommend;x=1", "/\u00e9", "/recommend#x",
)  # fmt: skip
HEADERS = (
    "X-Forwarded-Prefix: /rec", "X-Forwarded-Proto: https", "X-Forwarded-For: ::1, x", "Cookie: a",
    "Expect: 100-continue", "Accept: text/html", "Accept-Encoding: gzip", "Range: bytes=0-1",
    "Content-Encoding: gzip", "X-Http-Method-Override: DELETE", "Origin: null", "If-None-Match: *",
    "Authorization: Basic x", "Host: shop.example", "X: " + "y" * 3000,
)  # fmt: skip
TYPES = (
    "application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "text/plain", "",
    "application/x-www-form-urlencoded", "application/json; charset=utf-16", "\x01",
)  # fmt: skip


class Finding(AssertionError):
    """Something that the service must not do."""


def value(dice: random.Random, name: str) -> str:
    """A JSON text for a field: mostly one that fits."""
    if dice.random() < 0.2:
        return dice.choice(ODD)
    if name == "user":
        return json.dumps(dice.choice([*USERS, "nobody"]))
    if name in ("history", "exclude"):
        items = dice.choices(CATALOGUE, k=dice.choice((0, 1, 2, 5, 30)))
        if dice.random() < 0.1:
            items.append(dice.choice(["new", 5, -1, "I1"]))
        return json.dumps(items)
    if name == "k":
        return str(dice.choice((1, 2, 5, ITEMS, ITEMS + 1, 0)))
    if name == "exclude_seen":
        return dice.choice(("true", "false"))
    if name == "unknown_items":
        return dice.choice(('"ignore"', '"refuse"'))
    return dice.choice(("1000", "1000.5", "1", "0", "1e9"))


def fields(dice: random.Random) -> list[tuple[str, str]]:
    """Names and JSON texts of a request."""
    names = [dice.choice(("user", "history"))]
    names += [name for name in NAMES[2:] if dice.random() < 0.25]
    if dice.random() < 0.1:
        names.append(dice.choice([*NAMES, "users", "K", ""]))
    dice.shuffle(names)
    return [(name, value(dice, name)) for name in names]


def request(dice: random.Random) -> tuple[bytes, str, dict[str, Any] | None]:
    """Bytes, method, and the fields where the request is whole and its body one JSON object; or
    ``REFUSED`` as their only name."""
    method = dice.choice(("POST",) * 6 + ("GET",) * 4 + ("HEAD", "PUT", "OPTIONS", "DELETE", "X"))
    path = "/recommend" if dice.random() < 0.7 else dice.choice(PATHS)
    pairs, asked, body, lines = fields(dice), None, b"", []
    if method == "POST":
        text = "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in pairs) + "}"
        if dice.random() < 0.05:
            text = dice.choice(ODD)
        body = text.encode("utf-8", "surrogatepass")
        if dice.random() < 0.05:
            body = text.encode("utf-16")
        kind = TYPES[0] if dice.random() < 0.9 else dice.choice(TYPES)
        lines.append(f"Content-Type: {kind}")
        if path == "/recommend" and kind == TYPES[0]:
            asked = as_object(body)
    elif dice.random() < 0.9:
        path += "?" + "&".join(f"{quote(n)}={query(dice, text)}" for n, text in pairs)
    lines += dice.sample(HEADERS, dice.choice((0, 0, 0, 1, 2)))
    right = f"Authorization: Bearer {TOKEN}"
    if dice.random() < 0.9:
        lines.append(right)
    elif dice.random() < 0.5:
        lines.append(dice.choice(WRONG))
    given = [line for line in lines if line.startswith("Authorization:")]
    if given != [right] and path.partition("?")[0] != "/ready":
        asked = {REFUSED: True}
    if body or dice.random() < 0.2:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""])
    return head.encode("utf-8", "surrogatepass") + body, method, asked


def query(dice: random.Random, text: str) -> str:
    plain = text.strip('[]"').replace('", "', ",")
    return plain if dice.random() < 0.1 else quote(plain, safe=dice.choice(("", ",", "/")))


def as_object(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body.decode())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def broken(dice: random.Random, content: bytes) -> bytes:
    """Some bytes of a request changed, left out, doubled or cut off."""
    for _ in range(dice.choice((1, 1, 2, 5))):
        place, size = dice.randrange(len(content) + 1), dice.choice((0, 1, 1, 4, 40))
        new = dice.choice((b"", b"\r\n", b"\x00", bytes([dice.randrange(256)]), content[:size]))
        content = content[:place] + new + content[place + size :]
    return content[: dice.randrange(len(content) + 1)] if dice.random() < 0.1 else content


def send(where: str, content: bytes, method: str, whole: bool) -> tuple[int, bytes, str] | None:
    """Status, body and type of the answer; None where there is none, as to half a request."""
    with raw_connection(where) as raw:
        raw.settimeout(SLOWEST_SECONDS if whole else 0.1)
        raw.sendall(content)
        for last in (whole, True):
            answer = http.client.HTTPResponse(raw, method=method)
            try:
                answer.begin()
                return answer.status, answer.read(), answer.headers.get("content-type", "")
            except TimeoutError:
                if last:
                    raise Finding(f"no answer within {SLOWEST_SECONDS:g} s") from None
                raw.shutdown(socket.SHUT_WR)  # it waited for the rest
                raw.settimeout(SLOWEST_SECONDS)
            except (http.client.HTTPException, ConnectionError) as error:
                if whole or not isinstance(error, (ConnectionError, http.client.BadStatusLine)):
                    raise Finding(f"no HTTP: {error!r}") from None
                return None
    return None


def check(found: tuple[int, bytes, str], method: str, asked: dict[str, Any] | None) -> None:
    """Raise a Finding for an answer that must not be."""
    status, body, kind = found
    if status not in STATUSES:
        raise Finding(f"status {status}: {body[:300]!r}")
    if asked == {REFUSED: True}:
        # What is no HTTP has its answer before a token is looked for.
        if status not in (400, 401, 408, 413):
            raise Finding(f"let in without a token: {status}: {body[:300]!r}")
        asked = None
    if method == "HEAD":
        if body:
            raise Finding(f"HEAD has a body: {body[:100]!r}")
        return
    if kind != "application/json":
        return
    told = json.loads(body)
    if status != 200:
        ErrorBody.model_validate(told)
    elif asked is not None:
        check_list(told, asked)


def check_list(told: dict[str, Any], asked: dict[str, Any]) -> None:
    """A 200 keeps what a JSON request asked."""
    unknown = set(asked) - set(NAMES)
    if unknown:
        raise Finding(f"answered in spite of {unknown}")
    items, scores = ([row[name] for row in told["items"]] for name in ("item", "score"))
    history = asked.get("history")
    if history is None:
        history = DATA.items.decode(DATA.history_of(asked["user"]))
    barred = set(asked.get("exclude") or ())
    if asked.get("exclude_seen", True):
        barred |= set(history)
    if len(items) > (asked.get("k") or 20) or len(set(items)) < len(items) or barred & set(items):
        raise Finding(f"not what was asked: {items}")
    if not all(map(math.isfinite, scores)) or scores != sorted(scores, reverse=True):
        raise Finding(f"scores do not fall: {scores}")


def fuzz(where: str, seconds: float, seed: int, most: int | None = None) -> Counter[str]:
    """Send requests; counts them by what came of them."""
    until, counts = time.monotonic() + seconds, Counter[str]()
    while time.monotonic() < until and (most is None or counts.total() < most):
        number = counts.total()
        dice = random.Random(f"{seed}/{number}")
        content, method, asked = request(dice)
        whole = dice.random() < 0.8
        if not whole:
            content, asked = broken(dice, content), None
            method = "HEAD" if content.startswith(b"HEAD ") else "GET"
        try:
            found = send(where, content, method, whole)
            if found is not None:
                check(found, method, asked)
        except Exception as error:
            which = f"request {number} of seed {seed}, {content[:3000]!r}"
            raise Finding(f"{which}: {error}") from error
        counts["no answer" if found is None else str(found[0])] += 1
    return counts


def fuzzed_service(folder: Path) -> Service:
    """A service over a run folder, which lets in who has the token."""
    tokens = folder / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    return make_service(folder, token_file=str(tokens))


def main() -> int:
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        model = make_run(Path(folder))
        with running(fuzzed_service(Path(folder))) as where:
            try:
                counts = fuzz(where, seconds, seed)
                history = CATALOGUE[:3]
                text = json.dumps({"history": history, "k": 5}).encode()
                head = f"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPES[0]}\r\n"
                head += f"Authorization: Bearer {TOKEN}\r\n"
                content = f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text
                last = send(where, content, "POST", True)
                assert last is not None
                found = [row["item"] for row in json.loads(last[1])["items"]]
                if found != expected(model, DATA, history, 5)[0]:
                    raise Finding(f"at the end the service answers {last[1][:500]!r}")
            except Finding as finding:
                print(finding)
                return 1
    print(f"{counts.total():,} requests in {seconds:g} s, nothing found: {dict(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

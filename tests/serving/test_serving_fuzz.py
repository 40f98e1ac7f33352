"""A few hundred drawn and broken requests; ``fuzz_requests.py`` sends them for as long as asked."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi_offline", reason="the extra [serve] is not installed")

from fuzz_requests import DATA, REFUSED, Finding, check, check_list, fuzz, fuzzed_service
from helpers_serving import make_run, running


def test_requests_drawn_at_random(tmp_path: Path) -> None:
    make_run(tmp_path)
    with running(fuzzed_service(tmp_path)) as where:
        counts = fuzz(where, 30.0, seed=3, most=150)
    assert {"200", "400", "401", "404", "422"} <= set(counts)


def test_what_would_be_a_finding() -> None:
    item, other = DATA.items.decode([1, 2])
    rows = [{"item": item, "score": 1.0}, {"item": other, "score": 0.5}]
    asked = {"history": ["another"], "k": 2}
    check_list({"items": rows}, asked)
    for wrong, request in (
        (rows[::-1], asked), (rows, {**asked, "k": 1}), (rows, {**asked, "exclude": [item]}),
        (rows, {"history": [item]}), ([rows[0]] * 2, asked), (rows, {**asked, "users": 1}),
    ):  # fmt: skip
        with pytest.raises(Finding):
            check_list({"items": wrong}, request)
    for answer in ((500, b"", "text/plain"), (200, b"x", "text/plain")):
        with pytest.raises(Finding):
            check(answer, "HEAD", None)
    with pytest.raises(Finding, match="let in without a token"):
        check((200, b"{}", "application/json"), "GET", {REFUSED: True})

"""The load figures of the service: how they are taken, and that a page shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("fastapi_offline", reason="the extra [serve] is not installed")

from helpers_serving import make_run

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from bench import records, serving  # noqa: E402


def test_load_is_measured_in_both_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(serving, "_WARM", 0.1)
    make_run(tmp_path / "run")
    rows = serving.measure(tmp_path / "run", (1, 8), 0.5, 1)
    assert [(row["clients"], row["mode"]) for row in rows] == [
        (1, "batched"), (1, "one at a time"), (8, "batched"), (8, "one at a time"),
    ]  # fmt: skip
    for row in rows:
        assert row["requests"] >= 5
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["requests_per_second"] == pytest.approx(row["requests"] / 0.5)
        assert (row["mean_batch"] == 1) == (row["mode"] == "one at a time" or row["clients"] == 1)


def test_the_page_shows_the_newest_figures() -> None:
    found = [json.loads(path.read_text()) for path in records.FOLDER.glob("serving-*.json")]
    newest = max(found, key=lambda record: record["date"])
    assert serving.table(newest) in (ROOT / "bench" / "README.md").read_text()

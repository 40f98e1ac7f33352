"""Measured tiles, with a timer that is told what to find; run by test_triton_interpreter.py."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "these kernels run interpreted; test_triton_interpreter.py starts this file with "
        "TRITON_INTERPRET=1",
        allow_module_level=True,
    )

pytest.importorskip("triton")

from adarec_fast import rng
from adarec_fast.kernels import _autotune, dropout, hda_trajectory
from adarec_fast.kernels._heuristics import Key, Tile, choosing, tile
from adarec_fast.kernels._launch import recording
from adarec_fast.ops._library import implementation

SIZE = 16


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAREC_FAST_CACHE", str(tmp_path / "cache"))


def inputs(tokens: int = 5) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(tokens)
    shapes = [(2 * SIZE, SIZE), (3, 2 * SIZE), (SIZE, 2 * SIZE), (SIZE,)]
    return (
        torch.randn(tokens, SIZE, generator=g), torch.tensor([0, tokens]), torch.tensor([3]),
        torch.tensor([1.0, 0.8, 0.5, 0.2]), *(torch.randn(s, generator=g) for s in shapes),
        rng.at_place(rng.as_seed(3)), None,
    )


class Timer:
    """Milliseconds by the rows of a tile that the call launches; 64 are the best."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, call: Callable[[], object]) -> float:
        with recording(86) as launches:
            call()
        self.rows.append(launches[0].arguments["ROWS"])
        return 1.0 + abs(math.log2(self.rows[-1] / 64))


def entries(tuner: _autotune.Tuner) -> dict[str, dict[str, Any]]:
    found = json.loads(tuner.tiles.path.read_text())["tiles"]
    assert isinstance(found, dict)
    return found


def test_first_call_measures_and_later_ones_use_it() -> None:
    timer = Timer()
    tuner = _autotune.Tuner("GPU", timer)
    plain = hda_trajectory.fwd(*inputs())
    first = tuner.run(hda_trajectory.fwd, *inputs())
    assert all(torch.equal(a, b) for a, b in zip(plain, first, strict=True))
    (key,) = entries(tuner)
    assert key == "hda_forward/sm_86/16/ieee/64 rows"
    assert entries(tuner)[key]["rows"] == 64
    assert timer.rows[0] == tile("hda_forward", SIZE, "ieee", 86).rows == 32
    timed = len(timer.rows)
    assert entries(tuner)[key]["timed"] == timed > 5

    for again in (tuner, _autotune.Tuner("GPU", timer)):
        with recording(86) as launches:
            again.run(hda_trajectory.fwd, *inputs())
        assert launches[0].arguments["ROWS"] == 64
        # The result is the same but for rounding.
        for a, b in zip(plain, again.run(hda_trajectory.fwd, *inputs()), strict=True):
            torch.testing.assert_close(a, b)
    assert len(timer.rows) == timed


def test_buckets_and_gpus_are_measured_apart() -> None:
    timer = Timer()
    tuner = _autotune.Tuner("GPU", timer)
    with recording(86):
        for tokens in (1, 64, 65, 128, 129):
            tuner.run(hda_trajectory.fwd, *inputs(tokens))
        assert sorted(entries(tuner)) == [
            f"hda_forward/sm_86/16/ieee/{rows} rows" for rows in (128, 256, 64)
        ]
        other = _autotune.Tuner("another GPU", timer)
        assert other.tiles.path != tuner.tiles.path
        timed = len(timer.rows)
        other.run(hda_trajectory.fwd, *inputs(1))
        assert len(timer.rows) > timed


def test_each_kernel_of_an_op_is_measured() -> None:
    def timer(call: Callable[[], object]) -> float:
        call()
        return 1.0

    tuner = _autotune.Tuner("GPU", timer)
    arguments = (torch.zeros(4, 5, SIZE), torch.zeros(5), *inputs())
    with recording(86):
        tuner.run(hda_trajectory.bwd, *arguments)
    assert sorted(k.split("/")[0] for k in entries(tuner)) == ["hda_backward", "mlp_weights"]
    for entry in entries(tuner).values():
        assert entry["milliseconds"] == entry["fixed_milliseconds"] == 1.0


def test_an_op_without_tiles_is_left_alone() -> None:
    tuner = _autotune.Tuner("GPU", lambda call: pytest.fail("nothing to measure"))
    x, seed = torch.ones(3, SIZE), rng.at_place(rng.as_seed(1))
    assert torch.equal(tuner.run(dropout.fwd, x, seed, 0.5, 0), dropout.fwd(x, seed, 0.5, 0))
    assert not tuner.tiles.path.exists()


def test_nothing_is_measured_during_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer()
    tuner = _autotune.Tuner("GPU", timer)
    with recording(86) as launches:
        monkeypatch.setattr(_autotune, "_capturing", lambda: True)
        tuner.run(hda_trajectory.fwd, *inputs())
        assert launches[-1].arguments["ROWS"] == 32
        assert not timer.rows
        monkeypatch.setattr(_autotune, "_capturing", lambda: False)
    tuner.run(hda_trajectory.fwd, *inputs())
    timed = len(timer.rows)
    monkeypatch.setattr(_autotune, "_capturing", lambda: True)
    with recording(86) as launches:
        tuner.run(hda_trajectory.fwd, *inputs())
        assert launches[-1].arguments["ROWS"] == 64
    assert len(timer.rows) == timed > 0


BROKEN = {
    "no JSON": lambda document: "{",
    "a list": lambda document: "[]",
    "no tiles": lambda document: json.dumps({k: v for k, v in document.items() if k != "tiles"}),
    "another GPU": lambda document: json.dumps({**document, "gpu": "another"}),
    "other sources": lambda document: json.dumps({**document, "sources": "0"}),
    "a missing field": lambda document: json.dumps({**document, "tiles": {"x": {"rows": 16}}}),
    "a senseless tile": lambda document: json.dumps(
        {**document, "tiles": {k: {**v, "rows": "64"} for k, v in document["tiles"].items()}}
    ),
    "a tile too large": lambda document: json.dumps(
        {**document, "tiles": {k: {**v, "chunk": 4096} for k, v in document["tiles"].items()}}
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_is_not_ours_is_ignored(broken: Callable[[Any], str]) -> None:
    tuner = _autotune.Tuner("GPU", Timer())
    tuner.run(hda_trajectory.fwd, *inputs())
    good = json.loads(tuner.tiles.path.read_text())
    tuner.tiles.path.write_text(broken(good))
    timer = Timer()
    with pytest.warns(RuntimeWarning, match=r"triton-tiles-.*ignored"):
        other = _autotune.Tuner("GPU", timer)
    assert other.known == {}
    with pytest.warns(RuntimeWarning, match="ignored"):
        other.run(hda_trajectory.fwd, *inputs())
    assert timer.rows
    assert json.loads(tuner.tiles.path.read_text()) == good


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADAREC_FAST_CACHE", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="ignored"):
        tuner = _autotune.Tuner("GPU", Timer())
    with recording(86) as launches:
        with pytest.warns(RuntimeWarning, match="cannot be kept"):
            tuner.run(hda_trajectory.fwd, *inputs())
        tuner.run(hda_trajectory.fwd, *inputs())
    assert launches[-1].arguments["ROWS"] == 32


def test_who_comes_later_waits_and_reads() -> None:
    measured: list[str] = []

    def slow(call: Callable[[], object]) -> float:
        measured.append(threading.current_thread().name)
        time.sleep(0.02)
        return 1.0

    # As many tuners as processes would have; the lock is on the file.
    tuners = [_autotune.Tuner("GPU", slow) for _ in range(4)]
    key, fixed = Key("kernel", 86, 64, "tf32", 64), Tile(32, 32, 4)

    def op() -> Tile:
        return tile("hda_forward", SIZE, "ieee", 86, 5)

    threads = [threading.Thread(target=tuner.run, args=(op,)) for tuner in tuners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(measured)) == 1
    assert all(len(tuner.known) == 1 for tuner in tuners)
    assert not list(tuners[0].tiles.path.parent.glob("*.json.*"))
    # What one measures does not undo what another did.
    for number, tuner in enumerate(tuners):
        tuner._measure(key._replace(size=number), fixed, lambda: None)
    assert len(entries(tuners[0])) == 1 + len(tuners)


def test_search_goes_on_while_it_pays_and_skips_what_does_not_fit() -> None:
    def milliseconds(tile: Tile) -> float:
        if tile.rows > 64:
            raise _autotune.OutOfResources(200000, 101376, "shared memory")
        return 100.0 / tile.rows + tile.num_stages

    best, timed = _autotune.search(Tile(16, 32, 8, 3), milliseconds)
    assert best == Tile(64, 32, 8, 2)
    assert math.inf in timed.values()
    flat, timed = _autotune.search(Tile(16, 32, 8), lambda tile: 1.0 - 0.001 * tile.num_stages)
    assert flat == Tile(16, 32, 8)
    assert len(timed) == 1 + len(_autotune.neighbours(flat))
    with pytest.raises(ZeroDivisionError):
        _autotune.search(Tile(16, 32, 8), lambda tile: 1 / (tile.rows - 32))


@pytest.mark.parametrize(
    "start", [Tile(16, 16, 1, 1), Tile(128, 256, 16, 4), Tile(32, 32, 8, 2, 255)]
)
def test_neighbours_can_be_kept(start: Tile) -> None:
    found = _autotune.neighbours(start)
    assert found
    assert start not in found
    for one in found:
        assert sum(a != b for a, b in zip(one, start, strict=True)) == 1
        assert _autotune.tile_of(one._asdict()) == one


def test_device_time_leaves_the_host_out(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    elapsed = iter([9.0, 1.0, 5.0, 2.0, 3.0, 8.0, 4.0])

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("record")

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return next(elapsed)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda clocks: done.append("sleep"), raising=False)
    assert _autotune.device_time(lambda: done.append("call")) == 4.0
    assert done == ["call", *["sleep", "record", "call", "record", "wait"] * _autotune.REPEATS]


@pytest.fixture
def _fresh_implementations() -> Iterator[None]:
    implementation.cache_clear()
    yield
    implementation.cache_clear()


@pytest.mark.usefixtures("_fresh_implementations")
def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_autotune.ENVIRONMENT, raising=False)
    assert implementation("hda_trajectory", "triton").fwd is hda_trajectory.fwd
    implementation.cache_clear()
    monkeypatch.setenv(_autotune.ENVIRONMENT, "1")
    fwd, bwd, *_ = implementation("hda_trajectory", "triton")
    assert (fwd.__wrapped__, bwd.__wrapped__) == (hda_trajectory.fwd, hda_trajectory.bwd)
    # Off a GPU there is nothing to measure.
    monkeypatch.setattr(_autotune, "_tuner", lambda gpu: pytest.fail("no GPU"))
    for a, b in zip(fwd(*inputs()), hda_trajectory.fwd(*inputs()), strict=True):
        assert torch.equal(a, b)


def test_fixed_tiles_are_the_same_for_all_rows() -> None:
    assert tile("moe", 64, "tf32", 86, 1) == tile("moe", 64, "tf32", 86, 1 << 20)
    seen = []
    with choosing(lambda key, fixed: seen.append(key.rows) or fixed):
        for rows in (0, 1, 64, 65, 4096, 4097):
            tile("moe", 64, "tf32", 86, rows)
    assert seen == [64, 64, 64, 128, 4096, 8192]

"""The service while its models change, and its process under signals."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi_offline", reason="the extra [serve] is not installed")

import httpx
from helpers_serving import (
    JSON_TYPE,
    Clients,
    asker,
    make_data,
    make_model,
    make_run,
    make_service,
    post_request,
    process,
    raw_connection,
    read_all,
    running,
    wait_for_reloads,
    wait_until_closed,
)

from adarec_fast import InteractionData, synthetic
from adarec_fast.serving.served import load, signature

DATA = make_data()


def test_models_change_under_load_without_a_failed_request(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    models = [make_run(folder, seed=n) for n in (1, 2)]
    service = make_service(folder, watch=0.05)
    named = {service.model.id: models[1]}
    with running(service) as where:
        # What is about to be served must be known before it is.
        names = [service.model.id]
        for seed in (3, 4, 5):
            aside = tmp_path / f"aside-{seed}"
            named[load(service.source._replace(run_dir=prepared(aside, seed))).id] = make_model(
                DATA, seed
            )
        with Clients(6, asker(where, DATA, named)) as clients:
            for seed in (3, 4, 5):
                make_run(folder, seed)
                until = time.monotonic() + 20
                while httpx.get(f"{where}/health").json()["model"]["epoch"] != seed:
                    assert time.monotonic() < until
                    time.sleep(0.02)
                names.append(service.model.id)
                before = clients.done.total()
                while clients.done.total() < before + 20 and not clients.errors:
                    time.sleep(0.01)
        assert len(set(names)) == 4
        assert clients.done.total() > 60
        assert httpx.get(f"{where}/health").json()["reload"]["failed"] == 0


def another_catalogue() -> InteractionData:
    return synthetic(num_users=30, num_items=24, num_themes=3, subthemes_per_theme=2, seed=5)


def prepared(folder: Path, seed: int) -> Path:
    make_run(folder, seed)
    return folder


def test_a_link_may_be_pointed_at_a_run_with_another_catalogue(tmp_path: Path) -> None:
    other = another_catalogue()
    make_run(tmp_path / "a", 1)
    model = make_run(tmp_path / "b", 2, other)
    link = tmp_path / "current"
    link.symlink_to("a")
    service = make_service(link)
    with running(service) as where:
        assert httpx.get(f"{where}/health").json()["model"]["items"] == 40
        (tmp_path / "next").symlink_to("b")
        os.replace(tmp_path / "next", link)
        service.reloader.request()
        wait_for_reloads(where, 1)
        health = httpx.get(f"{where}/health").json()
        assert (health["model"]["items"], health["model"]["users"]) == (24, 30)
        ask = asker(where, other, {health["model"]["id"]: model})
        for n in range(10):
            ask(0, random.Random(n))


def _truncate(folder: Path) -> None:
    weights = folder / "best" / "model.safetensors"
    part = folder / "part"
    part.write_bytes(weights.read_bytes()[:200])
    os.replace(part, weights)  # one change, not two, to who watches


def _remove(folder: Path) -> None:
    shutil.rmtree(folder / "best")


def _swap_data(folder: Path) -> None:
    other = folder.with_name("other")
    make_run(other, 9, another_catalogue())
    # Written over in place: what is served must not lie in a map of the file.
    shutil.copy(other / "interactions.safetensors", folder)


def _break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize("harm", [_truncate, _remove, _swap_data, _break_config])
def test_a_broken_folder_leaves_the_old_model_serving(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    folder, spare = tmp_path / "run", tmp_path / "spare"
    model = make_run(folder, 1)
    shutil.copytree(folder, spare)
    service = make_service(folder)
    with running(service) as where:
        name = service.model.id
        ask = asker(where, DATA, {name: model})
        harm(folder)
        service.reloader.request()
        health = wait_for_reloads(where, 1)
        assert (health["status"], health["ready"]) == ("degraded", True)
        assert str(folder) in health["reload"]["error"]
        metrics = httpx.get(f"{where}/metrics").text
        assert "adarec_reload_failing 1.0" in metrics
        assert 'adarec_reloads_total{result="failed"} 1.0' in metrics
        for n in range(5):
            ask(0, random.Random(n))
        shutil.rmtree(folder)
        shutil.copytree(spare, folder)
        service.reloader.request()
        health = wait_for_reloads(where, 2)
        assert (health["status"], health["reload"]["error"]) == ("ok", None)
        assert "adarec_reload_failing 0.0" in httpx.get(f"{where}/metrics").text


def test_a_watched_folder_is_tried_once_for_each_change(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder, 1)
    service = make_service(folder, watch=0.02)
    reloader = service.reloader
    with running(service) as where:
        time.sleep(0.3)
        assert reloader.status.attempts == 0
        _truncate(folder)
        wait_for_reloads(where, 1)
        time.sleep(0.3)
        assert reloader.status.attempts == 1
        (folder / "best").rename(folder / "gone")  # a moment of every replacement: no attempt
        time.sleep(0.3)
        assert reloader.status.attempts == 1
        make_run(folder, 2)
        assert wait_for_reloads(where, 2)["reload"]["error"] is None
        assert service.model.epoch == 2
    assert signature(service.source) is not None


def test_closing_waits_for_a_model_that_is_being_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread inside torch when the interpreter ends is an abort."""
    make_run(tmp_path / "run")
    for ends in (True, False):
        begun, gate = threading.Event(), threading.Event()

        def slow(source: Any, begun: Any = begun, gate: Any = gate) -> Any:
            begun.set()
            gate.wait(20)
            return load(source)

        service = make_service(tmp_path / "run", shutdown_timeout=1)
        monkeypatch.setattr("adarec_fast.serving.reload.load", slow)
        service.start()
        service.reloader.request()
        assert begun.wait(20)
        if ends:
            threading.Timer(0.1, gate.set).start()
        assert service.close() == ends
        assert gate.is_set() == ends
        gate.set()


# ---------------------------------------------------------------------- the process


def test_sighup_reloads_and_sigterm_finishes_what_is_under_way(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder, 1)
    with process(folder, "--timeout-ms", "20000") as (server, where):
        model = make_run(folder, 2)
        server.send_signal(signal.SIGHUP)
        health = wait_for_reloads(where, 1)
        assert health["model"]["epoch"] == 2
        asker(where, DATA, {health["model"]["id"]: model})(0, random.Random(0))
        body = b'{"user": "u00003", "k": 5}'
        head, gap = post_request(body, JSON_TYPE).split(body)
        assert gap == b""
        raws = [raw_connection(where) for _ in range(5)]
        for raw in raws:
            raw.sendall(head + body[:9])
        time.sleep(0.2)
        server.send_signal(signal.SIGTERM)
        wait_until_closed(where)
        for raw in raws:
            raw.sendall(body[9:])
        for raw in raws:
            assert read_all(raw).startswith(b"HTTP/1.1 200")
        assert server.wait(20) == 0


def test_a_shutdown_is_bounded(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    options = ["--shutdown-timeout", "1", "--timeout-ms", "60000"]
    with process(tmp_path / "run", *options) as (server, where), raw_connection(where) as raw:
        raw.sendall(
            b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 50\r\n\r\n{"
        )
        time.sleep(0.2)
        begun = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert time.monotonic() - begun < 10


def test_a_port_is_free_again_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder)
    with running(make_service(folder)) as where:
        port = int(where.rsplit(":", 1)[1])
    with running(make_service(folder, port=port)) as again:
        assert again == where

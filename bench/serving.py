"""The HTTP service under load: latency and throughput for 1, 8 and 64 clients.

    python -m bench.serving [--run-dir DIR] [--clients N,N] [--seconds S] [--save-results]

Starts ``adarec-fast serve`` twice, as it is and with batching off (``--max-batch 1``), over a model
as large as Beauty's (12,101 items, D = 64, T = 8; random weights, as time does not depend on them)
or over a run of your own. Each client sends its next request when it has its answer, over one
connection, with the histories of the ``serve-1024`` workload in the body. Clients run in this
process, on the same machine as the service, and take their share of it. All is measured in turns,
several rounds of them, and medians of the rounds are given. The first answers are compared with
the model's own. ``--table FILE`` prints a result file as Markdown instead.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import itertools
import json
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adarec_fast import ADARec, Recommender, TrainConfig, synthetic
from adarec_fast.models.pretrained import write
from adarec_fast.training import load_run, run_folder
from adarec_fast.training.checkpoint import save_checkpoint
from adarec_fast.training.origin import describe_origin

from . import records
from .machine import describe, slug
from .workloads import MAX_DEPTH, MAX_LENGTH, NUM_ITEMS, histories

_SIZE, _K, _WARM, _COMPARED = 64, 20, 0.3, 64
MODES = {"batched": [], "one at a time": ["--max-batch", "1"]}
_PACKAGES = ("fastapi", "uvicorn", "httptools")


def make_run(folder: Path) -> None:
    """A run folder with a model that was never trained, on data of Beauty's size."""
    data = synthetic(4096, NUM_ITEMS, num_themes=40, subthemes_per_theme=5, seed=0)
    model = ADARec(
        num_items=NUM_ITEMS, hidden_size=_SIZE, max_depth=MAX_DEPTH, max_length=MAX_LENGTH
    )
    model.item_vocabulary = data.items
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_config(folder, model.config, TrainConfig(), data, None)
    run_folder.write_data(folder, data)
    about = describe_origin(folder / run_folder.CONFIG, model.config, TrainConfig())
    save_checkpoint(folder, "best", lambda target: write(model, target), {"epoch": 0, **about})


@contextlib.contextmanager
def service(run_dir: Path, options: Sequence[str]) -> Iterator[int]:
    """The service as a process of its own; gives its port, and asserts that it ends well."""
    command = "from adarec_fast.cli import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", str(run_dir), "--port", "0", *options],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        lines = []
        while not (lines and " on http://" in lines[-1]):
            lines.append(process.stderr.readline())
            if not lines[-1]:
                raise RuntimeError("the service did not start:\n" + "".join(lines))
        yield int(lines[-1].split(" on http://127.0.0.1:")[1].split(",")[0])
        process.terminate()
        assert process.wait(30) == 0, "the service did not end well"
    finally:
        process.kill()
        process.communicate()


class _Client(asyncio.Protocol):
    """One connection: the next request follows the answer at once."""

    def __init__(self, requests: Sequence[bytes], first: int, until: float) -> None:
        self._requests, self._next, self._until = requests, first, until
        self._received = b""
        self._missing = -1
        self.times: list[tuple[float, float]] = []
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._begun = time.perf_counter()
        if self._begun >= self._until:
            self._transport.close()
            self.finished.set_result(None)
            return
        self._transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._missing < 0:
            head, gap, body = self._received.partition(b"\r\n\r\n")
            if not gap:
                return
            assert head.startswith(b"HTTP/1.1 200"), self._received[:400]
            length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            self._missing, self._received = int(length), body
        if len(self._received) >= self._missing:
            self._received, self._missing = b"", -1
            self.times.append((self._begun, time.perf_counter()))
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.finished.done():
            self.finished.set_exception(error or ConnectionError("the service closed"))


async def _drive(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> np.ndarray:
    """Latencies in seconds of what was asked and answered within ``seconds``, after warming up."""
    loop = asyncio.get_running_loop()
    begun = time.perf_counter()
    until = begun + _WARM + seconds
    made = []
    for n in range(clients):
        first = n * len(requests) // clients
        _, client = await loop.create_connection(
            lambda first=first: _Client(requests, first, until), "127.0.0.1", port
        )
        made.append(client)
    await asyncio.gather(*(client.finished for client in made))
    spans = np.array([span for client in made for span in client.times])
    kept = spans[(spans[:, 0] >= begun + _WARM) & (spans[:, 1] <= until)]
    return np.asarray(kept[:, 1] - kept[:, 0])


def _http(port: int, body: bytes) -> bytes:
    head = (
        f"POST /recommend HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _batches(port: int) -> tuple[float, float]:
    """Batches and requests computed so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("adarec_batch_size_"))
    return float(values["adarec_batch_size_count"]), float(values["adarec_batch_size_sum"])


def _compare(port: int, bodies: Sequence[bytes], run_dir: Path) -> None:
    """The first answers against the model's own."""
    run = load_run(run_dir)
    recommender = Recommender(run.model)
    for body in bodies[:_COMPARED]:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/recommend", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked) as reply:
            found = [row["item"] for row in json.load(reply)["items"]]
        history = run.data.items.encode(json.loads(body)["history"]).tolist()
        ranking = recommender.recommend([history], _K)
        # A history that holds nearly all items leaves fewer than k.
        wanted = ranking.items[0][ranking.scores[0].isfinite()]
        assert found == run.data.items.decode(wanted), "the service differs from the model"


def measure(
    run_dir: Path, clients: Sequence[int], seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """A row for each number of clients and each mode, medians over the rounds."""
    (drawn,) = histories("serve-1024")
    run = load_run(run_dir)
    offsets = drawn.offsets.tolist()
    # The workload's lengths and popularity, over whatever catalogue is served.
    items = (drawn.item_ids - 1) % run.data.num_items + 1
    names = run.data.items.decode(items)
    bodies = [
        json.dumps({"history": names[low:high], "k": _K}).encode()
        for low, high in itertools.pairwise(offsets)
    ]
    with contextlib.ExitStack() as stack:
        ports = {
            mode: stack.enter_context(service(run_dir, options)) for mode, options in MODES.items()
        }
        for port in ports.values():
            _compare(port, bodies, run_dir)
        turns = list(itertools.product(clients, ports))
        found: dict[tuple[int, str], list[dict[str, float]]] = {turn: [] for turn in turns}
        for number in range(rounds):
            # There and back: nothing always comes after the same other thing.
            for count, mode in reversed(turns) if number % 2 else turns:
                port = ports[mode]
                one = _once(port, [_http(port, body) for body in bodies], count, seconds)
                found[count, mode].append(one)
    return [
        {"clients": count, "mode": mode}
        | {name: float(np.median([one[name] for one in every])) for name in every[0]}
        for (count, mode), every in found.items()
    ]


def _once(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> dict[str, float]:
    before = _batches(port)
    latencies = asyncio.run(_drive(port, requests, clients, seconds))
    after = _batches(port)
    p50, p99 = np.percentile(latencies, (50, 99)) * 1e3
    return {
        "requests": len(latencies),
        "requests_per_second": len(latencies) / seconds,
        "p50_ms": p50,
        "p99_ms": p99,
        "mean_batch": (after[1] - before[1]) / (after[0] - before[0]),
    }


def table(record: dict[str, Any]) -> str:
    """A result as Markdown; ``python -m bench.report`` puts it into a page."""
    lines = [
        "| clients | mode | requests/s | p50 | p99 | mean batch |",
        "| --: | --- | --: | --: | --: | --: |",
    ]
    lines += [
        f"| {row['clients']} | {row['mode']} | {row['requests_per_second']:,.0f} | "
        f"{row['p50_ms']:.3g} ms | {row['p99_ms']:.3g} ms | {row['mean_batch']:.1f} |"
        for row in record["rows"]
    ]
    machine = record["machine"]
    lines += [
        "",
        f"{machine['cpu']}, {machine['cores']} cores; torch {record['versions']['torch']}; "
        f"{record['date']}; `{record['command']}`.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, print and perhaps save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, help="a run of your own")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=1.2, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--table", type=Path, metavar="FILE", help="print a result file")
    parser.add_argument(
        "--save-results", action="store_true",
        help="write bench/results/serving-<machine>-<date>.json",
    )  # fmt: skip
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    counts = options.clients.split(",")
    if not all(count.isdigit() and int(count) for count in counts):
        parser.error(f"--clients {options.clients} must be numbers of at least 1, such as 1,8,64")
    if options.seconds <= 0:
        parser.error(f"--seconds {options.seconds} must be above 0")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} must be at least 1")
    facts = describe("cpu")
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts["versions"][name] = importlib.metadata.version(name)
    with tempfile.TemporaryDirectory() as temporary:
        run_dir = options.run_dir or Path(temporary) / "run"
        if options.run_dir is None:
            make_run(run_dir)
        rows = measure(run_dir, [int(count) for count in counts], options.seconds, options.rounds)
    result: dict[str, Any] = {
        "kind": "serving",
        "device": "cpu",
        "slug": f"serving-{slug('cpu')}",
        "date": records.now(),
        "command": shlex.join(["python", "-m", "bench.serving", *sys.argv[1:]]),
        **facts,
        "items": NUM_ITEMS if options.run_dir is None else None,
        "hidden_size": _SIZE if options.run_dir is None else None,
        "k": _K,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "rows": rows,
    }
    print(table(result))
    if options.save_results:
        print(f"written to {records.write(result, records.FOLDER)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command line of ``python -m bench.gpu``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import __doc__ as about
from .plan import GROUPS, PHASES, chosen
from .prepare import DESCRIPTION
from .run import Settings, run
from .use import NotPrepared, use

_RESULTS = Path(__file__).parents[1] / "results"
_BUDGET = 600.0  # seconds
_NO_DEVICE = 2


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    phases = "\n".join(f"    {phase.name:12s} {phase.about}" for phase in PHASES)
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=about, epilog=f"phases, in order:\n{phases}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--prepare", type=Path, metavar="DIR", help="fill DIR, without a GPU, and end"
    )
    parser.add_argument("--arch", metavar="SM", help="with --prepare: sm_86, sm_90, ...")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes that compile")
    parser.add_argument(
        "--limit", type=float, metavar="MIB", default=float("inf"),
        help="with --prepare: the most that DIR may hold; kernels of the last phases are left out",
    )  # fmt: skip
    parser.add_argument("--use", type=Path, metavar="DIR", help="a folder that was prepared")
    parser.add_argument(
        "--rehearse", action="store_true",
        help="with --use, without a GPU: look everything up that the run will ask for, and end",
    )  # fmt: skip
    parser.add_argument(
        "--phases", default="all", metavar="NAMES",
        help=f"comma-separated, of the list below or {', '.join(GROUPS)}; default %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, default=_BUDGET, metavar="SECONDS",
        help="for the whole run, unpacking included; default %(default)g",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", default=os.environ.get("OUT"),
        help="for the result file, the trace and the log; default $OUT, else bench/results "
        "for the file and a temporary folder for the rest",
    )  # fmt: skip
    parser.add_argument(
        "--merge", action="store_true",
        help="keep what today's file of the same card has and this run does not measure",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="interactions for the phase beauty"
    )
    options = parser.parse_args(arguments)
    try:
        options.phases = chosen(options.phases)
    except ValueError as error:
        parser.error(str(error))
    if (options.prepare is None) != (options.arch is None):
        parser.error("--prepare and --arch go together: --prepare DIR --arch sm_90")
    if options.rehearse and options.use is None:
        parser.error("--rehearse looks into a prepared folder: --use DIR --rehearse")
    if options.budget <= 0:
        parser.error(f"--budget {options.budget:g} must be more than 0 seconds")
    if options.limit <= 0:
        parser.error(f"--limit {options.limit:g} must be more than 0 MiB")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs {options.jobs} must be at least 1")
    if options.data is not None and not options.data.is_file():
        parser.error(f"--data {options.data} is no file")
    return options


def main(arguments: list[str] | None = None) -> int:
    """0 if every phase ended by itself, 1 if not, 2 without a CUDA device or for bad arguments."""
    started = time.monotonic()
    options = _arguments(arguments)
    if options.prepare is not None:
        return _prepare(options)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "bench.gpu", *given])
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch, _asked() as question:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if options.use is not None:
            try:
                environment, complaints = use(options.use, Path(scratch))
            except NotPrepared as error:
                print(f"error: --use: {error}", file=sys.stderr)
                return _NO_DEVICE
            for complaint in complaints:
                print(f"warning: {complaint}", flush=True)
            print(f"unpacked in {time.monotonic() - started:.1f} s", flush=True)
        reason = _no_device(question)
        if options.rehearse:
            names = ",".join(phase.name for phase in options.phases)
            return _rehearse(options.use, names, environment, started)
        if reason is not None:
            print(f"error: {reason}", file=sys.stderr)
            return _NO_DEVICE
        folder = options.out or _RESULTS
        settings = Settings(
            out=str(options.out or Path(scratch) / "out"), record="",
            data=None if options.data is None else str(options.data.resolve()),
        )  # fmt: skip
        record = run(
            options.phases, options.budget, folder, settings, command=command,
            merge=options.merge, environment=environment, started=started,
        )  # fmt: skip
    return 0 if all(p["status"] == "done" for p in record["phases"].values()) else 1


def _prepare(options: argparse.Namespace) -> int:
    from .prepare import prepare

    try:
        prepare(options.prepare, options.arch, options.phases, options.jobs, options.limit)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _rehearse(folder: Path, names: str, environment: dict[str, str], started: float) -> int:
    arch = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["architecture"]
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu.rehearse", names, arch, str(started)],
        env=environment, check=False,
    ).returncode  # fmt: skip


@contextlib.contextmanager
def _asked() -> Iterator[subprocess.Popen[str]]:
    """A process that tells what torch sees, while this one unpacks."""
    question = (
        "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", question], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        yield process
        process.kill()


def _no_device(question: subprocess.Popen[str]) -> str | None:
    """Why there is nothing to run on."""
    said, wrong = question.communicate()
    if question.returncode:
        return f"torch cannot be imported: {wrong.strip().splitlines()[-1:]}"
    version, cuda, available = said.split()[-3:]
    if available == "True":
        return None
    return (
        f"no CUDA device: torch {version} (CUDA {cuda}) sees none, so there is nothing to run; "
        "--prepare DIR --arch sm_90 fills a folder for a machine that has one, and the CPU's "
        "benchmarks are `pytest bench/ --benchmark-only`"
    )

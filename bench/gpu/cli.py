"""The command line of ``python -m bench.gpu``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
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
        help="for the whole run; default %(default)g",
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
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs {options.jobs} must be at least 1")
    if options.data is not None and not options.data.is_file():
        parser.error(f"--data {options.data} is no file")
    return options


def main(arguments: list[str] | None = None) -> int:
    """0 if every phase ended by itself, 1 if not, 2 without a CUDA device or for bad arguments."""
    options = _arguments(arguments)
    if options.prepare is not None:
        return _prepare(options)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "bench.gpu", *given])
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if options.use is not None:
            try:
                environment, complaints = use(options.use, Path(scratch))
            except NotPrepared as error:
                print(f"error: --use: {error}", file=sys.stderr)
                return _NO_DEVICE
            for complaint in complaints:
                print(f"warning: {complaint}: kernels will be compiled here", flush=True)
        if options.rehearse:
            names = ",".join(phase.name for phase in options.phases)
            return _rehearse(options.use, names, environment)
        reason = _no_device(environment)
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
            merge=options.merge, environment=environment,
        )  # fmt: skip
    return 0 if all(p["status"] == "done" for p in record["phases"].values()) else 1


def _prepare(options: argparse.Namespace) -> int:
    from .prepare import prepare

    try:
        prepare(options.prepare, options.arch, options.phases, options.jobs)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _rehearse(folder: Path, names: str, environment: dict[str, str]) -> int:
    arch = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["architecture"]
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu.rehearse", names, arch], env=environment, check=False
    ).returncode


def _no_device(environment: dict[str, str]) -> str | None:
    """Why there is nothing to run on; asked in a process of its own, which the run's resemble."""
    question = (
        "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    )
    done = subprocess.run(
        [sys.executable, "-c", question], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        return f"torch cannot be imported: {done.stderr.strip().splitlines()[-1:]}"
    version, cuda, available = done.stdout.split()[-3:]
    if available == "True":
        return None
    return (
        f"no CUDA device: torch {version} (CUDA {cuda}) sees none, so there is nothing to run; "
        "--prepare DIR --arch sm_90 fills a folder for a machine that has one, and the CPU's "
        "benchmarks are `pytest bench/ --benchmark-only`"
    )

"""Where a training step or a recommendation spends its time: ``python -m bench.profile``.

Runs some steps under torch's profiler, with a range around every op, and writes into a folder

    trace.json      for https://ui.perfetto.dev or chrome://tracing
    roofline.png    every op under the peaks that this machine was measured to reach
    profile.json    all figures

Printed are the costs, the roofline as a table, launches and gaps of a step, a sentence for each of
the five largest costs, and, on CUDA, the commands of Nsight for one op. ``--ranges-only`` runs
the same steps without torch's profiler, which cannot share a process with Nsight's.

On CUDA a cost is the time of its kernels, on a CPU the time on the calling thread. FLOPs and
bytes are those of ``bench/test_bench_<op>.py`` for the depths that were drawn. Everything runs op
by op: no captured step, and ``model.recommend`` instead of a ``Recommender``, which binds its ops
beforehand; what these take is printed beside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from adarec_fast import Recommender, TrainConfig
from adarec_fast.training.captured import make_stepper
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.statistics import EpochStatistics

from . import ranges, records, roofline
from .costs import Profile, figures, milliseconds, read
from .machine import describe, measure_peaks, slug, synchronize
from .model_case import ModelCase
from .workloads import WORKLOADS, Histories

_BATCHES = {"large": 2}  # of the others four
_TOP, _K, _WARM = 5, 20, 3
_SHOWN = 0.005  # share of a step; what costs less is summed up in a line


class Steps:
    """The steps that are profiled: an optimizer step a batch, or a recommendation a batch."""

    def __init__(self, workload: str, size: int, device: str) -> None:
        batches = _BATCHES.get(workload, 4)
        self.training = WORKLOADS[workload].training
        self.case = ModelCase(workload, size, "step", device, batches=batches)
        self.data = self.case.data
        self.taken: list[Histories] = []
        model = self.case.model
        if self.training:
            target = torch.device(device)
            self._stepper = Stepper(model.train(), TrainConfig(), target)
            self._statistics = EpochStatistics(model.diagnostics(), target)
            self._batches = [batch.as_batch() for batch in self.data]
        else:
            model.eval()

    def __call__(self) -> None:
        """One step, with the next batch."""
        number = len(self.taken) % len(self.data)
        self.taken.append(self.data[number])
        if self.training:
            self._stepper.step(self._batches[number], len(self.taken), self._statistics)
        else:
            batch = self.data[number]
            self.case.model.recommend((batch.item_ids, batch.offsets), k=_K)

    def as_used(self) -> Callable[[], object] | None:
        """What users run in place of this: a captured CUDA graph or a recommender, else None."""
        if not self.training:
            recommender = Recommender(self.case.copy())
            histories = itertools.cycle((b.item_ids, b.offsets) for b in self.data)
            return lambda: recommender.recommend(next(histories), _K)
        model = self.case.copy().train()
        device = model.noise_seed.device
        stepper = make_stepper(model, TrainConfig(), device)
        if type(stepper) is Stepper:
            return None
        sums = EpochStatistics(model.diagnostics(), device)
        return lambda: stepper.step(self._batches[0], 1, sums)


def wall(step: Callable[[], object], steps: int, device: str) -> float:
    """Median seconds of a step, nothing measuring but the clock."""
    seconds = []
    for _ in range(steps):
        synchronize(device)
        started = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def profile(workload: str, size: int, device: str, steps: int, folder: Path) -> Profile:
    """Profile ``steps`` steps and write ``trace.json`` into the folder."""
    step = Steps(workload, size, device)
    for _ in range(max(_WARM, len(step.data))):  # kernels are compiled, Adam's state is made
        step()
    seconds = wall(step, max(steps, 3), device)
    as_used = step.as_used()
    used_seconds = None
    if as_used is not None:
        for _ in range(max(_WARM, 2 * len(step.data))):  # a graph is captured at its second use
            as_used()
        used_seconds = wall(as_used, max(steps, 3), device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    step.taken.clear()
    with ranges.marked() as marks, torch.profiler.profile(activities=activities) as profiler:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        profiled = (time.perf_counter() - started) / steps
    _write(folder / "trace.json", lambda path: profiler.export_chrome_trace(str(path)))
    counts = figures(marks, step.taken, size, training=step.training)
    found = read(
        profiler.events(), marks, counts, steps=steps, device=device, wall=profiled * steps
    )
    return found._replace(
        seconds=seconds, profiled_seconds=profiled, used_seconds=used_seconds
    )


def _write(path: Path, export: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    try:
        export(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def ranges_only(workload: str, size: int, steps: int) -> None:
    """Steps for Nsight on CUDA: warmed up outside, marked inside, the capture range."""
    step = Steps(workload, size, "cuda")
    for _ in range(max(_WARM, len(step.data))):
        step()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    with ranges.marked():
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


def nsight(title: str, workload: str, size: int, folder: Path) -> dict[str, str]:
    """The commands that look at the kernels of one range, e.g. ``Eq 4-5 hda_trajectory forward``.

    Nsight Compute: https://docs.nvidia.com/nsight-compute/NsightComputeCli (NVTX filtering: a
    push-pop range ends with a slash). Nsight Systems: https://docs.nvidia.com/nsight-systems.
    """
    name = title.replace(" ", "-").lower()
    run = [
        "python", "-m", "bench.profile", "--ranges-only", "--device", "cuda", "--steps", "1",
        "--workload", workload, "--hidden-size", str(size),
    ]  # fmt: skip
    ncu = [
        "ncu", "--profile-from-start", "off", "--nvtx", "--nvtx-include", f"{title}/",
        "--set", "full", "--import-source", "yes", "--force-overwrite",
        "--export", str(folder / name), *run,
    ]  # fmt: skip
    nsys = [
        "nsys", "profile", "--trace", "cuda,nvtx,cublas,osrt", "--capture-range",
        "cudaProfilerApi", "--capture-range-end", "stop", "--force-overwrite", "true",
        "--output", str(folder / name), *run,
    ]  # fmt: skip
    return {"ncu": shlex.join(ncu), "nsys": shlex.join(nsys)}


def print_report(found: Profile, peaks: dict[str, float], device: str) -> None:
    """Costs with their places under the roofline, launches and gaps, and the five largest."""
    console = Console(highlight=False)
    if console.width < 140:
        console = Console(highlight=False, width=140)
    table = Table(box=box.SIMPLE_HEAD, title="costs of a step")
    for heading in ("", "backend"):
        table.add_column(heading)
    for heading in ("calls", "launches", "ms", "share", "GFLOP/s", "GB/s", "FLOP/byte",
                    "of the roofline"):  # fmt: skip
        table.add_column(heading, justify="right")
    shown = [cost for cost in found.costs if cost.use or cost.share >= _SHOWN]
    for cost in shown:
        point = cost.point
        rates = [""] * 4 if point is None else [
            f"{point.gflops:.3g}", f"{point.gbps:.3g}", f"{point.intensity:.3g}",
            f"{point.share(peaks):.0%}",
        ]  # fmt: skip
        table.add_row(
            cost.name, cost.backend or "", f"{cost.calls:g}",
            f"{cost.launches:g}" if device == "cuda" else "–",
            milliseconds(cost.seconds).removesuffix(" ms"),
            f"{cost.share:.1%}", *rates,
        )  # fmt: skip
    console.print(table)
    rest = [cost for cost in found.costs if cost not in shown]
    console.print(
        f"{len(rest)} other ops of PyTorch, {sum(cost.calls for cost in rest):.0f} calls: "
        f"{sum(cost.share for cost in rest):.1%} together"
    )
    console.print(
        f"all of them: {milliseconds(sum(cost.seconds for cost in found.costs))} of a step of "
        f"{milliseconds(found.profiled_seconds)}"
    )
    console.print("peaks measured first: " + ", ".join(f"{k} {v:g}" for k, v in peaks.items()))
    console.print(found.summary(device))
    console.print("\nthe five largest costs")
    for number, cost in enumerate(found.costs[:_TOP], start=1):
        console.print(f"{number}. {cost.sentence(peaks, device)}", soft_wrap=True)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.profile", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--workload", choices=WORKLOADS, default="train")
    parser.add_argument("--hidden-size", type=int, default=64, metavar="D")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda if there is a device"
    )
    parser.add_argument("--steps", type=int, default=10, metavar="N")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/profile"), metavar="FOLDER",
        help="where the files are written; default %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--save-results", metavar="NAME",
        help="also write the figures to bench/results, NAME at the end of the file's name",
    )  # fmt: skip
    parser.add_argument(
        "--op", choices=sorted(ranges.EQUATIONS), metavar="NAME",
        help="print Nsight's commands for this op instead of the costliest one",
    )  # fmt: skip
    parser.add_argument(
        "--ranges-only", action="store_true", help="only run the steps, for Nsight (CUDA)"
    )
    options = parser.parse_args(arguments)
    for name in ("hidden_size", "steps"):
        if getattr(options, name) < 1:
            parser.error(
                f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1"
            )
    if options.save_results is not None and not re.fullmatch(r"[\w.-]+", options.save_results):
        parser.error(f"--save-results {options.save_results!r} must be letters, digits, . and -")
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if options.ranges_only and options.device != "cuda":
        parser.error("--ranges-only is for Nsight and so for --device cuda")
    return options


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    options = _arguments(arguments)
    workload, size, device = options.workload, options.hidden_size, options.device
    if options.ranges_only:
        ranges_only(workload, size, options.steps)
        return 0
    peaks = measure_peaks(device)
    found = profile(workload, size, device, options.steps, options.output)
    print_report(found, peaks, device)
    points = [cost.point for cost in found.costs if cost.point is not None]
    title = f"{workload}, D={size}, {describe(device)['machine'].get('gpu', 'CPU')}"
    try:
        roofline.draw(points, peaks, title, options.output / "roofline.png")
    except ImportError:
        print("no roofline.png: matplotlib is missing; pip install 'adarec_fast[viz]'")
    commands = {}
    if device == "cuda":
        wanted = [c for c in found.costs if c.use and options.op in (None, c.use)]
        if wanted:
            commands = nsight(wanted[0].name, workload, size, options.output)
            print(f"\nNsight, for {wanted[0].name}:\n{commands['ncu']}\n{commands['nsys']}")
        else:
            print(f"{options.op} did not run in this step", file=sys.stderr)
    given = sys.argv[1:] if arguments is None else arguments
    record = {
        "command": shlex.join(["python", "-m", "bench.profile", *given]),
        "date": records.now(), **describe(device),
        "instructions": torch.backends.cpu.get_cpu_capability(), "workload": workload,
        "hidden_size": size, "steps": options.steps, "peaks": peaks,
        **found.as_record(peaks), **commands,
    }  # fmt: skip
    text = json.dumps(records.rounded(record), indent=1) + "\n"
    _write(options.output / "profile.json", lambda path: path.write_text(text))
    if options.save_results:
        name = f"profile-{slug(device)}-{record['date'][:10]}-{options.save_results}.json"
        _write(records.FOLDER / name, lambda path: path.write_text(text))
    print(f"\nwritten to {options.output}: " + ", ".join(
        sorted(p.name for p in options.output.iterdir() if not p.name.startswith("."))
    ))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

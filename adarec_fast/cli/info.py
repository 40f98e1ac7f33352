"""``adarec-fast info`` and ``adarec-fast build``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from .console import command, err, hint, out, said, tell, waiting

_PACKAGES = ("adarec_fast", "torch", "triton", "numpy", "polars", "pandas", "tensorboard")


@command
def info(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show versions, devices, compilers, and which backend each op would use and why."""
    with waiting("looking at this machine"):
        facts = gather()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for title in ("versions", "machine", "compilers"):
        for index, (name, value) in enumerate(facts[title].items()):
            found = Text("not found", "dim") if value is None else Text(str(value))
            table.add_row(title if index == 0 else "", Text(f"{name} ") + found)
    for index, device in enumerate(facts["devices"]):
        table.add_row("devices" if index == 0 else "", Text(device))
    for trouble in facts["trouble"]:
        table.add_row("", Text(trouble, "yellow"))
    out.print(table)

    devices = {row["device"] for row in facts["ops"]}
    for device in sorted(devices, reverse=True):
        ops = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        ops.add_column(f"op on {device}", no_wrap=True)
        ops.add_column("backend", no_wrap=True)
        ops.add_column("others", overflow="fold")
        ops.add_column("why", overflow="fold")
        for row in facts["ops"]:
            if row["device"] == device:
                others = ", ".join(name for name in row["available"] if name != row["backend"])
                backend = Text(row["backend"], "green")
                ops.add_row(row["op"], backend, others, Text(row["reason"]))
        out.print(ops)


def gather() -> dict[str, Any]:
    """Everything that ``info`` shows, as JSON-able values."""
    import torch

    from ..ops import backend_report, extension
    from ..ops._driver import why_no_cuda, why_no_launcher

    devices = [f"cpu: {_processor()}"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            f"cuda:{index}: {properties.name}, sm_{properties.major}{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB"
        )
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            "CUDA of torch": torch.version.cuda,
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "torch threads": torch.get_num_threads(),
            "C++ extension": extension.loaded("cpp"),
        },
        "compilers": {name: _first_line(program) for name, program in _compilers().items()},
        "devices": devices,
        "trouble": list(filter(None, (
            _cuda(why_no_cuda()), why_no_launcher() if torch.cuda.is_available() else None
        ))),
        "ops": [
            {"device": device, **row}
            for device in (["cuda"] if torch.cuda.is_available() else []) + ["cpu"]
            for row in backend_report(device)
        ],
    }


@command
def build(
    hidden_size: Annotated[int, typer.Option(min=1, help="D that kernels are compiled for.")] = 64,
    max_depth: Annotated[int, typer.Option(min=1, help="T_max.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 256,
    kernels: Annotated[
        bool, typer.Option(help="Compile the Triton kernels for CUDA as well.")
    ] = True,
    wheel: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a wheel there that carries the C++ extension for all processors of this "
            "machine's family, and do nothing else; from a checkout.",
        ),
    ] = None,
) -> None:
    """Compile now what would else be compiled on first use.

    The C++ extension always; where torch is a CUDA build, the CUDA extension (if nvcc is there) and
    the Triton kernels of a model's training and serving: for the devices of this machine, or, with
    or without one, for what TORCH_CUDA_ARCH_LIST names, e.g. "8.6 9.0".
    """
    import torch

    from ..ops import extension
    from ..ops._toolkit import requested_architectures

    if wheel is not None:
        from ..ops._wheel import build_wheel

        with waiting("building a wheel"):
            print(build_wheel(wheel))
        return
    with waiting("compiling the C++ extension"):
        cpp = extension.build("cpp")
    print(cpp)
    requested = requested_architectures()
    if torch.version.cuda is None and not requested:
        return
    try:
        # A machine looks for the library of its own devices, so that each kind gets one.
        for name in requested:
            print(extension.build("cuda", architectures=(name,)))
        if not requested:
            print(extension.build("cuda"))
    except extension.NotForThisMachine as reason:
        if requested:
            raise
        tell(f"adarec_fast: cpp was built, cuda was not: {reason}", err)
    if kernels:
        _compile_kernels(requested, hidden_size, max_depth, batch_size)


def _compile_kernels(
    requested: tuple[str, ...], hidden_size: int, max_depth: int, batch_size: int
) -> None:
    """Compile what training and serving launch, with a bar."""
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..config import TrainConfig
    from ..models.registry import create_config
    from ..ops._toolkit import device_architectures
    from ..training.prewarm import collect_run, compile_run

    elsewhere = not torch.cuda.is_available()
    if not requested and elsewhere:
        return  # said before: there is no device
    if importlib.util.find_spec("triton") is None:
        hint("adarec_fast: no kernels were compiled: triton is not installed")
        return
    config = create_config({
        "num_items": 12_101, "hidden_size": hidden_size, "max_depth": max_depth
    })  # the catalogue's size matters little: see collect_run
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=err, disable=said.quiet) as progress:
        for name in requested or device_architectures():
            task = progress.add_task(f"kernels for sm_{name}", total=None)
            collected = collect_run(
                config, TrainConfig.create(batch_size=batch_size), int(name), ("prefix", "all")
            )
            compile_run(
                collected,
                lambda ready, total, task=task: progress.update(  # type: ignore[misc]
                    task, completed=ready, total=total
                ),
                elsewhere=elsewhere,
            )
    from ..kernels._prewarm import cache_folder

    print(cache_folder())


def _cuda(reason: str | None) -> str | None:
    return None if reason is None else f"no cuda: {reason}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compilers() -> dict[str, str]:
    from ..ops._plans import compiler
    from ..ops._toolkit import find_nvcc
    from ..ops.extension import ExtensionError

    found = {"C++": "c++", "CUDA": "nvcc", "ninja": "ninja"}
    for name, find in (("C++", lambda: compiler()[0]), ("CUDA", lambda: str(find_nvcc()))):
        with contextlib.suppress(ExtensionError):
            found[name] = find()
    return found


def _first_line(program: str) -> str | None:
    """The path and version of a program, None where it is not installed."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=10,
            check=False,
        ).stdout.split("\n")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} (does not run: {error})"
    # nvcc says its release on the fourth line, the others on the first.
    line = next((line for line in answer if "release" in line), answer[0])
    return f"{path} ({line.strip()})"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the platform module says what it knows
    return platform.processor() or platform.machine()

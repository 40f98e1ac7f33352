"""An extension's build: the file that ninja reads, and running it."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from . import _plans, _toolkit
from ._plans import Plan, Unit, compiler, content, digest, host_compiler
from ._toolkit import ExtensionError

_NINJA_RULES = """\
ninja_required_version = 1.5
rule compile
  command = $tool $flags -c $in -o $out # $content
rule link
  command = $cxx $in -o $out $flags
"""


def _ninja() -> str:
    # The package's binary need not be on PATH, e.g. when python is started by its full name.
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        candidate = Path(ninja.BIN_DIR) / "ninja"
        if candidate.exists():
            return str(candidate)
    found = shutil.which("ninja")
    if found is None:
        raise ExtensionError("ninja is not there; pip install ninja")
    return found


def _escape(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _in_ninja(words: list[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _object(unit: Unit) -> str:
    return f"objects/{digest(unit.flags)[:8]}/{unit.source.parent.name}_{unit.source.name}.o"


def _edge(unit: Unit) -> str:
    # The contents' hash is part of the command, so ninja does not depend on file times.
    return (
        f"build {_object(unit)}: compile {_escape(unit.source)}\n"
        f"  tool = ${unit.tool}\n"
        f"  flags = {unit.flags} -I{shlex.quote(str(_plans.SOURCES))}\n"
        f"  content = {content(unit.source)}\n"
    )


def _ninja_file(libraries: Mapping[str, Plan]) -> str:
    words = compiler()
    # Each once: libraries for several targets share what is for all.
    units = list(dict.fromkeys(unit for plan in libraries.values() for unit in plan.units))
    lines = [f"cxx = {_in_ninja(words)}\n"]
    if any(unit.tool == "nvcc" for unit in units):
        host = host_compiler(words)
        kit = _toolkit.toolkit(tuple(host))
        lines.append(f"host = {_in_ninja(host)}\n")
        includes = (f"-isystem {shlex.quote(str(folder))}" for folder in kit.includes)
        lines.append(f"nvcc = {shlex.quote(str(kit.nvcc))}\n")
        lines.append(f"cuda_includes = {' '.join(includes)}\n")
        lines.append(f"cuda_runtime = {shlex.quote(str(kit.runtime))}\n")
    lines.append(_NINJA_RULES)
    lines += [_edge(unit) for unit in units]
    for name, plan in libraries.items():
        objects = " ".join(_object(unit) for unit in plan.units)
        lines.append(f"build {name}: link {objects}\n  flags = {plan.link_flags}\n")
    return "".join(lines)


def _run(line: list[str], progress: Callable[[int], None]) -> tuple[int, list[str]]:
    """Run ninja; its exit status and what it said. ``progress`` hears of every quarter done."""
    environment = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
    output, quarters = [], 0
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env=environment,
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            output.append(text.rstrip("\n"))
            found = re.match(r"\[(\d+)/(\d+)\] ", text)
            now = 4 * int(found[1]) // int(found[2]) if found else 0
            if quarters < now < 4:
                quarters = now
                progress(25 * quarters)
    return process.returncode, output


def compile_plans(
    libraries: Mapping[Path, Plan], folder: Path, progress: Callable[[int], None]
) -> None:
    """Run ninja in ``folder``; each library appears under its name whole or not at all.

    ``progress`` is told the per cent that are done, now and then.
    """
    folder.mkdir(exist_ok=True)
    named = {f"{number}/{plan.name}.so": plan for number, plan in enumerate(libraries.values())}
    (folder / "build.ninja").write_text(_ninja_file(named), encoding="utf-8")
    status, said = _run([_ninja(), "-C", str(folder)], progress)
    if status != 0:
        lines = ([s for s in said if re.search("error|fatal", s.lower())] or said)[:12]
        raise ExtensionError("the compiler failed:\n  " + "\n  ".join(lines))
    for made, library in zip(named, libraries, strict=True):
        staged = library.with_name(f"{library.name}.{os.getpid()}")
        shutil.copyfile(folder / made, staged)
        os.replace(staged, library)

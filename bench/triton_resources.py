"""What every Triton kernel costs on chip, compiled without a GPU, and the floor its time has.

    python -m bench.triton_resources                 measure every row with the installed triton
    python -m bench.triton_resources --stale         only rows of kernels that were changed
    python -m bench.triton_resources --check         fail if a kernel got worse than the table says
    python -m bench.triton_resources --arch 86 --size 64 --precision tf32 ...   some of it

sm_86, whose limits are the tightest, has a row for every size, precision and variant of
``bench/triton_examples.py``. The other targets show that each kernel compiles there and what it
takes: default configurations at D = 64, where sm_80, sm_89 and gfx942 leave out TF32.
``cuobjdump`` of triton's own package reads registers and stack from each cubin; for AMD's gfx942
(most ops) the code object says them. ``source`` is a hash of all that the compiler saw.

Compilers differ, so ``bench/results/triton-resources.json`` has a set of rows for each triton; a
run measures, and compares with, those of the installed one. ``--check`` looks at the other sets
without compiling: they too must break no limit of sm_86, and be of today's source code.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adarec_fast.kernels._launch import Launch

from .triton_examples import EXAMPLES, fingerprint, launches
from .triton_table import Row, Rows, complaints, looked_up, read, replace

ARCHITECTURES = (80, 86, 89, 90)
GFX942 = 94  # compute capability 9.4, as torch reports it
# Triton's AMD pipeline ends with an error in the attention, and has no 3xTF32 for the other.
NOT_FOR_GFX942 = ("encoder_layer", "fused_trajectory")
SIZES = (32, 64, 128, 256)
PRECISIONS = ("half", "tf32", "ieee")
WHOLE = 86  # the target with rows for every size, precision and variant; others have
OTHER_SIZES = (64,)
WITH_TF32 = (86, 90)
SECONDS = 30.0  # between two writings of the table


class Processor(NamedTuple):
    """Limits of a multiprocessor (CUDA C++ Programming Guide, technical specifications)."""

    registers: int
    shared: int
    warps: int
    blocks: int


PROCESSORS = {
    80: Processor(65536, 164 * 1024, 64, 32),
    86: Processor(65536, 100 * 1024, 48, 16),
    89: Processor(65536, 100 * 1024, 48, 24),
    90: Processor(65536, 228 * 1024, 64, 32),
}


class Key(NamedTuple):
    """A row's name."""

    op: str
    kernel: str
    size: int
    precision: str
    architecture: int

    @property
    def target(self) -> str:
        return "gfx942" if self.architecture == GFX942 else f"sm_{self.architecture}"

    def __str__(self) -> str:
        return f"{self.op}/{self.kernel}/{self.size}/{self.precision}/{self.target}"


_POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64",
    torch.int32: "*i32", torch.uint8: "*u8", torch.float64: "*fp64",
}
ALIGNED = [["tt.divisibility", 16]]


def _source(launch: Launch) -> ASTSource:
    names = launch.kernel.arg_names
    constants: dict[str, Any] = {}
    signature: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    declared = {p.name for p in launch.kernel.params if p.is_constexpr}
    for position, name in enumerate(names):
        value = launch.arguments[name]
        if name in declared or value is None:
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = _type_name(value)
            if isinstance(value, Tensor):
                attributes[(position,)] = ALIGNED
            elif isinstance(value, tuple):
                tensors = [i for i, v in enumerate(value) if isinstance(v, Tensor)]
                attributes |= {(position, i): ALIGNED for i in tensors}
    return ASTSource(launch.kernel, signature, constants, attributes)


def _type_name(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_type_name, value))
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i64" if abs(value) >= 2**31 else "i32"


def _tool(name: str) -> str:
    return os.path.join(triton.__path__[0], "backends", "nvidia", "bin", name)


def compile_launch(launch: Launch, architecture: int) -> dict[str, int]:
    """Registers, stack and shared memory in bytes, warps, and blocks a multiprocessor."""
    options = {**launch.options, "enable_fp_fusion": True}
    if architecture == GFX942:
        target = GPUTarget("hip", "gfx942", 64)
        return _amd(triton.compile(_source(launch), target=target, options=options))
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(_source(launch), target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [_tool("cuobjdump"), what, file.name], capture_output=True, text=True, check=True
            ).stdout
            for what in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resources: {usage!r}")
    registers, stack = map(int, found.groups())
    warps, shared = launch.options["num_warps"], int(compiled.metadata.shared)
    limits = PROCESSORS[architecture]
    # Registers are given out in units of 256 a warp; each block reserves 1 KiB of shared memory.
    by_registers = limits.registers // (-(-registers * 32 // 256) * 256) // warps
    blocks = min(by_registers, limits.shared // (shared + 1024), limits.warps // warps,
                 limits.blocks)
    return {
        "registers": registers,
        "spill_instructions": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "stack_bytes": stack,
        "shared_bytes": shared,
        "warps": warps,
        "blocks_per_multiprocessor": blocks,
        "occupancy_percent": round(100 * blocks * warps / limits.warps),
    }


def _amd(compiled: Any) -> dict[str, int]:
    """The same as far as a code object for AMD says it; a warp has 64 lanes there."""

    def said(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", compiled.asm["amdgcn"])
        if found is None:
            raise RuntimeError(f"the code object does not say {name}")
        return int(found.group(1))

    return {
        "registers": said("vgpr_count"),
        "spill_instructions": said("vgpr_spill_count"),
        "stack_bytes": said("private_segment_fixed_size"),
        "shared_bytes": int(compiled.metadata.shared),
        "warps": compiled.metadata.num_warps,
    }


def expected(
    ops: Sequence[str] = tuple(EXAMPLES),
    architectures: Sequence[int] = (*ARCHITECTURES, GFX942),
    sizes: Sequence[int] = SIZES,
    precisions: Sequence[str] = PRECISIONS,
    variants: bool = True,
) -> Iterator[tuple[Key, Launch]]:
    """The rows that a table has, with what to compile for each."""
    for op, architecture, size, precision in product(ops, architectures, sizes, precisions):
        if architecture == GFX942 and op in NOT_FOR_GFX942:
            continue
        if precision == "tf32" and architecture not in WITH_TF32:
            continue
        if architecture != WHOLE and size not in OTHER_SIZES:
            continue
        found = launches(op, size, precision, architecture, variants and architecture == WHOLE)
        for name, launch in found.items():
            yield Key(op, name, size, precision, architecture), launch


def measure(
    wanted: Sequence[tuple[Key, Launch]], known: Rows, save: Callable[[Rows], None]
) -> Rows:
    """Rows of ``wanted``; what has a known row of the same source and target is not compiled.

    Args:
        wanted: as ``expected`` gives them.
        known: rows that are good as far as their sources are today's.
        save: is given what there is so far, now and then.
    """
    rows: Rows = {}
    # A kernel that depends on neither D nor precision has one source for many rows.
    compiled = {(name.rpartition("/")[2], row["source"]): row for name, row in known.items()}
    last = time.monotonic()
    for key, launch in wanted:
        source = fingerprint(launch)
        row: Row | None = compiled.get((key.target, source))
        if row is None:
            row = {**compile_launch(launch, key.architecture), "source": source}
            compiled[key.target, source] = row
            print(key, row, flush=True)
        rows[str(key)] = row
        if time.monotonic() - last > SECONDS:
            save(rows)
            last = time.monotonic()
    return rows


def write(rows: Rows, complete: bool = True) -> None:
    """Merge rows into the installed triton's, and drop what no longer exists when complete."""
    merged = {**read().get(triton.__version__, {}), **rows}
    if complete:
        wanted = {str(key) for key, _ in expected()}
        merged = {name: row for name, row in merged.items() if name in wanted}
    replace(triton.__version__, torch.__version__, merged)


def check(rows: Rows) -> list[str]:
    """What is wrong with rows just measured, and with the same rows of other tritons."""
    table = read()
    mine = table.pop(triton.__version__, None)
    if mine is None:
        print(f"nothing is compared: the table has no rows of triton {triton.__version__}")
    tightest = {name: row["source"] for name, row in rows.items() if name.endswith("/sm_86")}
    return complaints(rows, mine) + looked_up(tightest, table, table)


def main(arguments: list[str] | None = None) -> int:
    """Compile, then check or write; the exit status."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("TRITON_INTERPRET=1 is set: there is nothing to compile", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(prog="python -m bench.triton_resources")
    parser.add_argument("--check", action="store_true", help="compare with the table")
    parser.add_argument("--stale", action="store_true",
                        help="compile only rows that the table lacks or has of other source code")
    parser.add_argument("--no-variants", action="store_true", help="default configurations only")
    parser.add_argument("--op", nargs="+", choices=sorted(EXAMPLES), default=list(EXAMPLES))
    parser.add_argument("--arch", nargs="+", type=int, choices=(*ARCHITECTURES, GFX942),
                        default=[*ARCHITECTURES, GFX942], help="86 for sm_86; 94 is gfx942")
    parser.add_argument("--size", nargs="+", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    chosen = parser.parse_args(arguments)
    wanted = list(expected(
        chosen.op, chosen.arch, chosen.size, chosen.precision, not chosen.no_variants
    ))  # fmt: skip
    known = read().get(triton.__version__, {}) if chosen.stale else {}
    if not chosen.check:
        write(measure(wanted, known, lambda rows: write(rows, complete=False)))
        return 0
    found = check(measure(wanted, known, lambda rows: None))
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What every Triton kernel costs on chip, compiled without a GPU, and the floor its time has.

    python -m bench.triton_resources                 rewrite the table
    python -m bench.triton_resources --stale         only rows of kernels that were changed
    python -m bench.triton_resources --check         fail if a kernel got worse than the table says
    python -m bench.triton_resources --arch 86 --size 64 --precision tf32 ...   some of it

Rows are ``op/kernel[what it is specialised on]/D/precision/target``: every default configuration
for every target, and for sm_86, whose limits are the tightest, the variants of
``bench/triton_examples.py`` too. ``cuobjdump`` of triton's own package reads registers and stack
from each cubin; for AMD's gfx942 (D = 64, bfloat16 and IEEE float32, most ops) the code object says
them. ``source`` is a hash of all that the compiler saw. Figures of another triton than the table's
are not compared with it. Results: ``bench/results/triton-resources.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adarec_fast.kernels._launch import Launch

from .triton_examples import EXAMPLES, fingerprint, launches
from .triton_model import PEAKS, floors

TABLE = Path(__file__).parent / "results" / "triton-resources.json"
ARCHITECTURES = (80, 86, 89, 90)
GFX942 = 94  # compute capability 9.4, as torch reports it
GFX942_SIZES = (64,)
# Triton's AMD pipeline ends with an error in the attention, and has no 3xTF32 for the other.
NOT_FOR_GFX942 = ("encoder_layer", "fused_trajectory")
SIZES = (32, 64, 128, 256)
PRECISIONS = ("half", "tf32", "ieee")
SHARED_LIMIT_SM86 = 99 * 1024
# Bytes and instructions that must not grow; occupancy must not fall.
COSTS = ("stack_bytes", "spill_instructions", "shared_bytes")


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

    def __str__(self) -> str:
        target = "gfx942" if self.architecture == GFX942 else f"sm_{self.architecture}"
        return f"{self.op}/{self.kernel}/{self.size}/{self.precision}/{target}"


_POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64",
    torch.int32: "*i32",
}


def _source(launch: Launch) -> ASTSource:
    names = launch.kernel.arg_names
    constants: dict[str, Any] = {}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    declared = {p.name for p in launch.kernel.params if p.is_constexpr}
    for position, name in enumerate(names):
        value = launch.arguments[name]
        if name in declared or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i64" if abs(value) >= 2**31 else "i32"
    return ASTSource(launch.kernel, signature, constants, attributes)


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
        if architecture == GFX942 and (
            op in NOT_FOR_GFX942 or size not in GFX942_SIZES or precision == "tf32"
        ):
            continue
        found = launches(op, size, precision, architecture, variants and architecture == 86)
        for name, launch in found.items():
            yield Key(op, name, size, precision, architecture), launch


def complaints(rows: dict[str, dict[str, Any]], table: dict[str, Any]) -> list[str]:
    """What breaks sm_86's limits, is missing in the table, or is worse than it says."""
    found = []
    known_rows = table["kernels"]
    comparable = table["versions"]["triton"] == triton.__version__
    if not comparable:
        print(f"not compared: the table is of triton {table['versions']['triton']}")
    for key, row in rows.items():
        if key.endswith("sm_86"):
            if row["stack_bytes"] or row["spill_instructions"]:
                found.append(f"{key} spills: {row}")
            if row["shared_bytes"] > SHARED_LIMIT_SM86:
                found.append(f"{key} asks for {row['shared_bytes']} bytes of shared memory")
        if key not in known_rows:
            found.append(f"{key} is not in the table; write it with --stale")
        elif comparable:
            known = known_rows[key]
            for name in COSTS:
                if row[name] > known[name]:
                    found.append(f"{key}: {name} {row[name]}, {known[name]} in the table")
            occupancy = "blocks_per_multiprocessor"
            if occupancy in row and row[occupancy] < known[occupancy]:
                found.append(f"{key}: fewer blocks a multiprocessor than in the table: {row}")
    return found


def write(rows: dict[str, dict[str, Any]]) -> None:
    """Merge rows into the table, drop what no longer exists, and add the static model.

    Raises:
        RuntimeError: the table is of another triton, and these rows are not all there are.
    """
    wanted = {str(key) for key, _ in expected()}
    before = json.loads(TABLE.read_text()) if TABLE.exists() else {"kernels": {}}
    merged = {k: v for k, v in {**before["kernels"], **rows}.items() if k in wanted}
    made_by = before.get("versions", {}).get("triton", triton.__version__)
    if made_by != triton.__version__ and not wanted <= set(rows):
        raise RuntimeError(
            f"{TABLE} is of triton {made_by}, this is {triton.__version__}: write all of it"
        )
    document = {
        "command": "python -m bench.triton_resources",
        "versions": {"triton": triton.__version__, "torch": torch.__version__},
        "kernels": dict(sorted(merged.items())),
        "model": {"unit": "microseconds", "peaks": PEAKS, "floors": floors()},
    }
    TABLE.parent.mkdir(exist_ok=True)
    partial = TABLE.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(partial, TABLE)


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
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {"kernels": {}}
    rows: dict[str, dict[str, Any]] = {}
    for key, launch in expected(
        chosen.op, chosen.arch, chosen.size, chosen.precision, not chosen.no_variants
    ):
        known, source = table["kernels"].get(str(key), {}), fingerprint(launch)
        if chosen.stale and known.get("source") == source:
            rows[str(key)] = known
            continue
        rows[str(key)] = {**compile_launch(launch, key.architecture), "source": source}
        print(key, rows[str(key)], flush=True)
    if not chosen.check:
        write(rows)
        return 0
    found = complaints(rows, table)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())

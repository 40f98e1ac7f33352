"""What every Triton kernel costs on chip, compiled without a GPU, and the floor its time has.

    python -m bench.triton_resources                 rewrite the table
    python -m bench.triton_resources --check         fail if a kernel got worse than the table says
    python -m bench.triton_resources --arch 86 --size 64 --precision tf32 ...   some of it

The launchers themselves say what to compile: they run with their launches recorded instead of
started, so exactly the default configurations are looked at. ``cuobjdump`` of triton's own package
reads registers and stack from each cubin. Results: ``bench/results/triton-resources.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adarec_fast import rng
from adarec_fast.kernels._launch import Launch, recording
from adarec_fast.ops._library import OPS, implementation

from .triton_model import PEAKS, floors

TABLE = Path(__file__).parent / "results" / "triton-resources.json"
ARCHITECTURES = (80, 86, 89, 90)
SIZES = (32, 64, 128, 256)
PRECISIONS = ("half", "tf32", "ieee")
SHARED_LIMIT_SM86 = 99 * 1024
LEVELS = 9


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


def _batch(size: int) -> dict[str, Tensor]:
    offsets = torch.tensor([0, 5, 11, 40])
    return {
        "offsets": offsets,
        "depth": torch.tensor([3, 0, 8]),
        "e": torch.zeros(48, size),
        "x": torch.zeros(LEVELS, 48, size),
        "z": torch.zeros(LEVELS, 3, size),
        "seed": rng.at_place(rng.as_seed(1)),
    }


def _hda(size: int) -> tuple[list[Any], list[Any]]:
    b, hidden = _batch(size), 2 * size
    inputs = [
        b["e"], b["offsets"], b["depth"], torch.ones(LEVELS), torch.zeros(hidden, size),
        torch.zeros(LEVELS - 1, hidden), torch.zeros(size, hidden), torch.zeros(size), b["seed"],
        None,
    ]
    return inputs, [b["x"], torch.zeros(48), *inputs]


def _mlp(size: int) -> tuple[list[Any], list[Any]]:
    b, hidden = _batch(size), 2 * size
    inputs = [
        b["x"], b["offsets"], b["depth"], torch.zeros(hidden, size), torch.zeros(hidden),
        torch.zeros(size, hidden), torch.zeros(size), torch.ones(size), torch.zeros(size),
        1e-12, 0.1, b["seed"], rng.STREAM_COARSE_MLP, False,
    ]
    return inputs, [b["x"], *inputs]


def _moe(size: int) -> tuple[list[Any], list[Any]]:
    b = _batch(size)
    inputs = [
        b["z"], b["z"], b["z"], b["depth"], torch.ones(LEVELS, 3), torch.zeros(size, size),
        torch.zeros(LEVELS, size), torch.zeros(size), torch.zeros(1), torch.zeros(size, size),
        torch.zeros(size),
    ]
    saved = [torch.zeros(3, size), torch.zeros(LEVELS, 3), torch.zeros(3, size),
             torch.zeros(3, size)]
    return inputs, [*saved, *inputs]


def _pool(size: int) -> tuple[list[Any], list[Any]]:
    b = _batch(size)
    return (
        [b["x"], b["offsets"], b["depth"], False],
        [b["z"], b["offsets"], b["depth"], False, 48],
    )


def _encoder(size: int) -> tuple[list[Any], list[Any]]:
    b, inner = _batch(size), 4 * size
    shapes = [(3 * size, size), (3 * size,), (size, size), (size,), (size,), (size,),
              (inner, size), (inner,), (size, inner), (size,), (size,), (size,)]
    inputs = [
        b["x"], b["offsets"], b["depth"], *(torch.zeros(shape) for shape in shapes),
        2, 1e-12, 0.1, 0.1, b["seed"], rng.STREAM_FINE_EXPERT, False, 48,
    ]
    return inputs, [b["x"], *inputs]


def _dropout(size: int) -> tuple[list[Any], None]:
    b = _batch(size)
    return [b["e"], b["seed"], 0.1, rng.STREAM_EMBEDDING], None


def _controller(size: int) -> tuple[list[Any], list[Any]]:
    b, gates = _batch(size), 3 * size
    inputs = [
        b["e"], b["offsets"], torch.zeros(3, gates), torch.zeros(gates, size),
        torch.zeros(gates, size), torch.zeros(gates), torch.zeros(LEVELS, size),
        torch.zeros(LEVELS), 40,
    ]
    return inputs, [torch.zeros(3, LEVELS), b["e"], *inputs]


def _infonce(size: int) -> tuple[list[Any], list[Any]]:
    b = _batch(size)
    inputs = [b["z"], b["depth"], torch.arange(3), 0.07]
    return inputs, [torch.ones(()), torch.zeros(LEVELS - 1, 3), *inputs]


def _topk(size: int) -> tuple[list[Any], None]:
    # More than one round, so that the kernels keep as much as they ever do.
    b = _batch(size)
    return [
        torch.zeros(3, size), torch.zeros(1001, size), torch.ones(40, dtype=torch.int64),
        b["offsets"], 100, 0.0,
    ], None


# Example inputs of fwd and bwd by op; shapes matter only where a kernel is specialised on them.
EXAMPLES: dict[str, Callable[[int], tuple[list[Any], list[Any] | None]]] = {
    "hda_trajectory": _hda,
    "mlp_expert": _mlp,
    "moe_aggregate": _moe,
    "level_pool": _pool,
    "encoder_layer": _encoder,
    "dropout": _dropout,
    "depth_controller": _controller,
    "level_infonce": _infonce,
    "score_topk": _topk,
}


@contextmanager
def _precision(kind: str) -> Iterator[None]:
    """Autocast for "half"; torch's switch for "tf32" and "ieee"."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "half"):
            yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def default_launches(op: str, size: int, precision: str, architecture: int) -> list[Launch]:
    """What forward and backward would launch on an architecture."""
    forward, backward = EXAMPLES[op](size)
    code = implementation(op, "triton")
    with recording(architecture) as launches, _precision(precision):
        code.fwd(*forward)
        if backward is not None:
            code.bwd(*backward)
    return launches


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
    compiled = triton.compile(
        _source(launch), target=GPUTarget("cuda", architecture, 32), options=options
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [_tool("cuobjdump"), "-res-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout
        code = subprocess.run(
            [_tool("cuobjdump"), "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
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


def measure(
    ops: list[str], architectures: list[int], sizes: list[int], precisions: list[str]
) -> dict[str, dict[str, Any]]:
    """Compile every default configuration; keys ``op/kernel/D/precision/sm_XX``."""
    rows: dict[str, dict[str, Any]] = {}
    for op in ops:
        for size in sizes:
            for precision in precisions:
                for architecture in architectures:
                    for launch in default_launches(op, size, precision, architecture):
                        name = launch.kernel.__name__.strip("_")
                        key = f"{op}/{name}/{size}/{precision}/sm_{architecture}"
                        rows[key] = compile_launch(launch, architecture)
                        print(key, rows[key], flush=True)
    return rows


def complaints(rows: dict[str, dict[str, Any]], table: dict[str, dict[str, Any]]) -> list[str]:
    """Spills or too much shared memory on sm_86, and figures worse than the table's."""
    found = []
    for key, row in rows.items():
        if key.endswith("sm_86"):
            if row["stack_bytes"] or row["spill_instructions"]:
                found.append(f"{key} spills: {row}")
            if row["shared_bytes"] > SHARED_LIMIT_SM86:
                found.append(f"{key} asks for {row['shared_bytes']} bytes of shared memory")
        if key not in table:
            found.append(f"{key} is not in the table; run `python -m bench.triton_resources`")
            continue
        known = table[key]
        for name in ("stack_bytes", "spill_instructions", "shared_bytes"):
            if row[name] > known[name]:
                found.append(f"{key}: {name} {row[name]}, {known[name]} in the table")
        if row["blocks_per_multiprocessor"] < known["blocks_per_multiprocessor"]:
            found.append(f"{key}: fewer blocks a multiprocessor than in the table: {row}")
    return found


def write(rows: dict[str, dict[str, Any]]) -> None:
    """Merge rows into the table, drop what no longer exists, and add the static model."""
    before = json.loads(TABLE.read_text())["kernels"] if TABLE.exists() else {}
    merged = {k: v for k, v in {**before, **rows}.items() if k.split("/")[0] in EXAMPLES}
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
    known = sorted(set(EXAMPLES) & set(OPS))
    parser = argparse.ArgumentParser(prog="python -m bench.triton_resources")
    parser.add_argument("--check", action="store_true", help="compare with the table")
    parser.add_argument("--op", nargs="+", choices=known, default=known)
    parser.add_argument("--arch", nargs="+", type=int, choices=ARCHITECTURES,
                        default=list(ARCHITECTURES))
    parser.add_argument("--size", nargs="+", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    chosen = parser.parse_args(arguments)
    rows = measure(chosen.op, chosen.arch, chosen.size, chosen.precision)
    if not chosen.check:
        write(rows)
        return 0
    found = complaints(rows, json.loads(TABLE.read_text())["kernels"])
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())

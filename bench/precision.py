"""What the precision of the products does to a training: ``python -m bench.precision``.

A GPU's tensor cores take operands of float32 as TF32 (10 bits behind the point) or bf16 (7), add up
in float32, and leave everything else as it is. Here packed PyTorch does the same on a CPU: every
operand of a matrix product is rounded to nearest first, in forward and backward passes. Runs that
differ in nothing else are trained side by side, and two seeds in full precision show how far apart
two runs are anyway. One line an epoch goes into the result file as it ends; the same command goes
on where it was stopped, at the last whole epoch of a run.

    python -m bench.precision --epochs 8                        the data of ``adarec-fast train``
    python -m bench.precision --data Beauty.txt --epochs 8
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adarec_fast import ADARecConfig, TrainConfig, synthetic
from adarec_fast.data import load
from adarec_fast.training import Reporter, train

from . import records
from .machine import describe

_aten = torch.ops.aten
# Product and the places of its operands; what is added is not rounded.
_PRODUCTS = {
    _aten.mm.default: (0, 1), _aten.bmm.default: (0, 1), _aten.addmm.default: (1, 2),
    _aten.baddbmm.default: (1, 2), _aten.mv.default: (0, 1), _aten.linear.default: (0, 1),
}  # fmt: skip
_BITS = {"tf32": 13, "bf16": 16}  # of float32's 23 that are rounded away
RUNS = (("ieee", 0), ("tf32", 0), ("bf16", 0), ("ieee", 1), ("tf32", 1))


def round_to(x: Tensor, bits: int) -> Tensor:
    """Float32 without its last ``bits``, to nearest, ties away from zero as ``cvt.rna`` does."""
    if x.dtype != torch.float32:
        return x
    words = x.contiguous().view(torch.int32)
    return ((words + (1 << (bits - 1))) & -(1 << bits)).view(torch.float32)


class Rounded(TorchDispatchMode):
    """Rounds the operands of every matrix product."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.bits = _BITS[precision]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        places = _PRODUCTS.get(func)
        if places is not None:
            args = tuple(
                round_to(a, self.bits) if n in places else a for n, a in enumerate(args)
            )
        elif func.namespace == "adarec_fast":  # the op's own code, each product of which is ours
            from adarec_fast.ops._library import implementation

            name, _, suffix = func._schema.name.partition("::")[2].rpartition("_")
            run = getattr(implementation(name, args[-1]), suffix)
            with self:
                return run(*args[:-1])
        return func(*args, **(kwargs or {}))


class _Epochs(Reporter):
    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path, self.key, self.started = path, key, time.monotonic()

    def epoch(self, metrics: Mapping[str, Any], is_best: bool) -> None:
        kept = {k: v for k, v in metrics.items() if isinstance(v, (int, float, dict))}
        record = json.loads(self.path.read_text(encoding="utf-8"))
        same = [r for r in record["rows"] if all(r[k] == v for k, v in self.key.items())]
        if metrics["epoch"] not in [row["epoch"] for row in same]:
            record["rows"].append({**self.key, **kept})
        _write(self.path, record)
        print(f"{self.key} epoch {metrics['epoch']}: loss {metrics['loss']:.5f} "
              f"{time.monotonic() - self.started:.0f} s", flush=True)  # fmt: skip


def _write(path: Path, record: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    text = json.dumps(record, indent=1) + "\n"  # losses differ in the sixth digit
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def main(arguments: list[str] | None = None) -> int:
    """Train each of ``RUNS``, an epoch of one after an epoch of the other."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.precision", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="FILE",
        help="interactions; default: the synthetic ones of adarec-fast train",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=8, metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the result file")
    parser.add_argument("--runs", type=Path, default=Path("runs/precision"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs {options.epochs} must be at least 1")
    data = synthetic() if options.data is None else load(options.data)
    name = f"precision-{data.name.lower()}-{options.epochs}-epochs-{records.now()[:10]}.json"
    path = options.output or records.FOLDER / name
    if not path.exists():
        given = sys.argv[1:] if arguments is None else arguments
        command = " ".join(["python -m bench.precision", *map(str, given)])
        _write(path, {
            "kind": "adarec_fast precision of products", "date": records.now(),
            "command": command if options.data is None
            else command.replace(str(options.data), options.data.name),
            **describe("cpu"), "data": data.name, "rows": [],
        })  # fmt: skip
    model = ADARecConfig.create(
        num_items=data.num_items, supervision="all", backend="packed"
    )
    for epochs in range(1, options.epochs + 1):
        for precision, seed in RUNS:
            key = {"precision": precision, "seed": seed}
            folder = options.runs / f"{precision}-{seed}"
            rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            if any(r["epoch"] == epochs and all(r[k] == v for k, v in key.items()) for r in rows):
                continue
            settings = TrainConfig.create(
                epochs=epochs, seed=seed, patience=options.epochs, device="cpu"
            )
            with contextlib.nullcontext() if precision == "ieee" else Rounded(precision):
                train(
                    model.replace(seed=seed), settings, data, folder,
                    resume=(folder / "config.json").exists(), reporter=_Epochs(path, key),
                )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Each op's kernels against packed PyTorch on the same card: outputs and every gradient.

The packed op in float64 is what is right, the same op in the precision at hand what may be off.
Both draw the noise of the contract, so that they are compared as they train.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...harness import ours_tiny
from ...op_case import OpCase, Tensors
from ...workloads import WORKLOADS
from ..phase import Results
from ..work import PRECISIONS, attempt, backends, computing, label, op_cases

_SIZES = (64, 128)
# Of bf16 two roundings of the greatest value: an output's own, and one of what went into it.
_TINY = {"ieee": 0.0, "tf32": 0.0, "bf16": 2.0**-8}


def run(results: Results) -> None:
    """One row an op, size, backend, precision and tensor; the worst of each op is printed."""
    bad: list[str] = []
    rows = 0
    for size in _SIZES:
        for case in _cases(size, results.settings.device):
            for drawn in dict.fromkeys((False, case.stochastic and case.training)):
                gold = case.evaluate("packed", torch.float64, drawn)
                for precision in PRECISIONS:
                    for backend in backends(case.name, case.device):
                        key = {
                            "op": case.name, "form": case.form, "hidden_size": size,
                            "backend": backend, "precision": precision, "drawn": drawn,
                        }  # fmt: skip
                        error = attempt(_compare, results, key, case, gold)
                        if error is not None:
                            results.add("errors", {**key, "error": error})
                            bad.append(f"{label(case)} {backend} {precision}: {error}")
                wrong = [r for r in results.found.get("errors", [])[rows:] if not r.get("ok")]
                rows = len(results.found.get("errors", []))
                text = ", ".join(
                    f"{r['precision']} {r.get('tensor', '')} {r.get('error')}" for r in wrong[:3]
                )
                results.say(f"{label(case)} D={size} drawn={drawn}: {text or 'ok'}")
                bad += [f"{label(case)} {r['precision']}" for r in wrong if "ok" in r]
                results.put(summary=f"{len(bad)} wrong of {rows}: {', '.join(bad[:4])}")


def _cases(size: int, device: str) -> list[OpCase]:
    made = []
    for kind in op_cases():
        workload = "serve-1024" if kind.serving_only else "train"
        direction = WORKLOADS[workload].directions[-1]
        made.append(kind(workload, size, direction, device))
    return made


def _compare(results: Results, key: dict[str, Any], case: OpCase, gold: Tensors) -> None:
    backend, precision, drawn = key["backend"], key["precision"], key["drawn"]
    with computing(precision, case.device):
        ours = case.evaluate(backend, torch.float32, drawn)
        plain = case.evaluate("packed", torch.float32, drawn)
    terms = max(case.batch.level_tokens, 4 * case.size)
    tiny = ours_tiny(case.device, terms) + _TINY[precision]
    for name, right in gold.items():
        scale = float(right.abs().max())
        error, allowed = (_off(found[name], right) for found in (ours, plain))
        bound = 2 * allowed + tiny * scale
        # Relative to the tensor's greatest value.
        results.add("errors", {
            **key, "tensor": name, "error": error / max(scale, 1e-30),
            "packed_error": allowed / max(scale, 1e-30), "ok": bool(error <= bound),
        })  # fmt: skip


def _off(found: Tensor, right: Tensor) -> float:
    return float((found.double().cpu() - right.double().cpu()).abs().max())


def kernels(device: str) -> None:
    """Every launch of :func:`run`."""
    for size in _SIZES:
        for case in _cases(size, device):
            for precision in PRECISIONS:
                for drawn in dict.fromkeys((False, case.stochastic and case.training)):
                    with computing(precision, device):
                        case.run("triton", torch.float32, drawn)

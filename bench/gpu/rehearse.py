"""All of a prepared run but the card: ``python -m bench.gpu --use DIR --rehearse``.

In the environment that the run will have, on a machine without a GPU: every phase is imported,
every kernel is looked up in the carried cache, both extensions are loaded. What is found missing
here would be compiled, or fail, on the device.
"""

from __future__ import annotations

import importlib
import sys
import time

from .plan import PHASES, Phase, chosen
from .prepare import architecture


def rehearse(phases: tuple[Phase, ...], arch: str, started: float) -> list[str]:
    """What is missing, in sentences; empty if all is there.

    ``started``: when the run began, of ``time.monotonic``; the times printed count from there.
    """
    missing: list[str] = []

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

    for phase in PHASES:
        try:
            importlib.import_module(f"bench.gpu.phases.{phase.name}")
        except ImportError as error:
            missing.append(f"phase {phase.name} cannot be imported: {error}")
    say("every phase is imported")
    missing += _extensions(architecture(arch))
    say("extensions are loaded")
    from .kernels import compile_phase

    for phase in phases:
        results = compile_phase(phase, architecture(arch))
        if results is None:
            continue
        missing += [f"{phase.name}, kernel {r.kernel}: {r.error}" for r in results if r.error]
        missing += [f"{phase.name}, kernel {r.kernel} was compiled, not found"
                    for r in results if not r.found]  # fmt: skip
        say(f"{phase.name}: {len(results)} kernels looked up")
    return missing


def _extensions(number: int) -> list[str]:
    import torch

    from adarec_fast.ops import _plans, extension

    missing = []
    plans = (("cpp", None), ("cuda", (str(number),)))
    for backend, architectures in plans:
        library = extension._library(_plans.make_plan(backend, architectures))
        if not library.exists():
            missing.append(f"the {backend} extension {library.name} is not there")
            continue
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            missing.append(f"the {backend} extension does not load: {error}")
    return missing


if __name__ == "__main__":
    found = rehearse(chosen(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
    print("\n".join(found) or "nothing is missing")
    sys.exit(1 if found else 0)

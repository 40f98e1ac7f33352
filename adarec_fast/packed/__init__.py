"""The ops in plain PyTorch on packed tokens: what runs where no extension could be built.

Only tokens and levels that exist are computed, so cost grows with the work and not with the
padding; sizes are read on the host, which is free on a CPU. Each module has ``fwd`` and, where the
op has a gradient, ``bwd``, with the arguments of the op's schemas. Backward recomputes the forward
pass, so that nothing but the inputs is kept.
"""

from __future__ import annotations

import importlib

from ..ops._library import Implementation, of_module, provide


def _load(name: str) -> Implementation:
    return of_module(importlib.import_module(f"{__name__}.{name}"))


def _parts_by_cpp(name: str) -> Implementation:
    found: Implementation = importlib.import_module(f"{__name__}.{name}").in_parts("cpp")
    return found


provide("packed", _load)
# The C++ ops have no code of their own for this one: it is run in parts, by those of its stages.
provide("cpp", _parts_by_cpp, op="fused_trajectory")

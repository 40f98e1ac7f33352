"""The backend ``triton``: where its code is, and what it may lack."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings

import torch

from . import _driver
from ._library import Implementation, interpreting, of_module, provide


def _load(name: str) -> Implementation:
    found = of_module(importlib.import_module(f"adarec_fast.kernels.{name}"))
    autotune = importlib.import_module("adarec_fast.kernels._autotune")
    return Implementation(*map(autotune.tuned, found)) if autotune.enabled() else found


@functools.cache
def missing() -> str | None:
    """Why the kernels cannot run here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreting():
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    reason = _driver.why_no_launcher()
    if reason is not None:  # a card is there, and the slow fallback would run on it unseen
        warnings.warn(
            f"adarec_fast: the triton kernels are not used, plain PyTorch runs instead: {reason}",
            RuntimeWarning, stacklevel=2,
        )  # fmt: skip
    return reason


provide("triton", _load, missing)

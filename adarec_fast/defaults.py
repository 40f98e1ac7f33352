"""What a program has set in torch for all that it makes, and we do not follow; the ground floor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Tensors that name no device are made on the CPU, whatever torch's default device is.

    For a block, or as a decorator. It is not for generators, whose callers would be in it, too.
    """
    if torch.get_default_device().type == "cpu":
        yield
        return
    with torch.device("cpu"):
        yield

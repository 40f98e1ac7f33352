"""``gradient_norm``: the norm of all gradients as one vector, in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._library import check_shape, choose, define, require


def _fake_forward(gradients: Sequence[Tensor], done: Tensor, backend: str) -> Tensor:
    dtype = gradients[0].dtype if gradients else torch.float32
    return done.new_empty((), dtype=dtype)


define(
    "gradient_norm",
    "(Tensor[] gradients, Tensor(a!) done) -> Tensor",
    None,
    _fake_forward,
    None,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    note="training calls it where a kernel runs it, and torch's functions elsewhere",
    waits=False,
)


def check_done(done: Tensor) -> None:
    """Raise ValueError unless this is the counter that the kernels of a step share."""
    check_shape("done", done)
    require(done.dtype == torch.int32, lambda: f"done has dtype {done.dtype}; not torch.int32")


def gradient_norm(gradients: Sequence[Tensor], done: Tensor, *, backend: str = "auto") -> Tensor:
    """The square root of the sum of all squares, summed in a fixed order.

    Args:
        gradients: float tensors.
        done: int32 0-dim on their device, 0 before and after; counts the programs that have ended.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        0-dim.

    Raises:
        ValueError: ``done`` is something else.
        BackendError: the backend cannot run here.
    """
    check_done(done)
    dtype = gradients[0].dtype if gradients else torch.float32
    chosen = choose("gradient_norm", backend, done.device.type, dtype)
    if chosen == "reference":
        return torch.nn.utils.get_total_norm(gradients)
    whole = [gradient.contiguous() for gradient in gradients]
    norm: Tensor = torch.ops.adarec_fast.gradient_norm_fwd(whole, done, chosen)
    return norm

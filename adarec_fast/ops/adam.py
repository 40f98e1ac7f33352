"""``adam``: clipping and Adam's update of all parameters, in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.adam import adam as reference
from ._library import check_shape, choose, define
from .gradient_norm import check_done


def _fake_forward(*_: Any) -> None:
    return None


define(
    "adam",
    "(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] firsts, Tensor(c!)[] seconds, "
    "Tensor(d!)[] steps, Tensor(e!) done, Tensor norm, Tensor found, Tensor lr, float beta1, "
    "float beta2, float eps, float weight_decay, float max_norm) -> ()",
    None,
    _fake_forward,
    None,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    note="training calls it where a kernel runs it, and torch's fused Adam elsewhere",
    waits=False,
)


def adam(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    steps: Sequence[Tensor],
    done: Tensor,
    norm: Tensor,
    found: Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    max_norm: float,
    backend: str = "auto",
) -> None:
    """What torch's clip_grads_with_norm_ and Adam do, in place; gradients are left unclipped.

    Args:
        parameters, gradients, firsts, seconds: float, each with its gradient and moments, all
            contiguous.
        steps: float32 0-dim, how many steps each parameter has taken.
        done: int32 0-dim on their device, 0 before and after; counts the programs that have ended.
        norm: 0-dim, of all gradients.
        found: 0-dim; if it is not 0, nothing is changed.
        lr: the step size; a number, or float32 0-dim on their device, which a captured step reads
            anew at each replay.
        betas, eps, weight_decay: torch.optim.Adam's.
        max_norm: gradients of a larger norm are scaled to it; 0 for none.
        backend: see :mod:`adarec_fast.ops`.

    Raises:
        ValueError: lists of different lengths or shapes, a tensor that is not contiguous, a
            rate of more than one number.
        BackendError: the backend cannot run here.
    """
    check_done(done)
    dtype = parameters[0].dtype if parameters else torch.float32
    rate = lr if isinstance(lr, Tensor) else torch.full((), lr, dtype=dtype, device=done.device)
    check_shape("lr", rate)
    chosen = choose("adam", backend, done.device.type, dtype)
    if chosen != "cpp":  # whose binding checks the same in a tenth of the time
        for name, tensors in zip(
            ("gradients", "firsts", "seconds", "steps"), (gradients, firsts, seconds, steps),
            strict=True,
        ):  # fmt: skip
            _check(name, tensors, parameters)
    numbers = rate, *betas, eps, weight_decay, max_norm
    if chosen == "reference":
        reference(parameters, gradients, firsts, seconds, steps, norm, found, *numbers)
        return
    torch.ops.adarec_fast.adam_fwd(
        list(parameters), list(gradients), list(firsts), list(seconds), list(steps), done, norm,
        found, *numbers, chosen,
    )  # fmt: skip
    # As torch's own optimizers do: whoever keeps what follows from a parameter asks its version.
    torch.autograd.graph.increment_version(parameters)


def _check(name: str, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    """Raise ValueError unless there is a contiguous tensor of each parameter's shape, of steps a
    0-dim one."""
    if len(tensors) != len(parameters):
        raise ValueError(f"{name} are {len(tensors)} for {len(parameters)} parameters")
    for place, (tensor, parameter) in enumerate(zip(tensors, parameters, strict=True)):
        wanted = torch.Size() if name == "steps" else parameter.shape
        if tensor.shape != wanted or not tensor.is_contiguous():
            raise ValueError(
                f"{name}[{place}] has shape {list(tensor.shape)} and strides "
                f"{list(tensor.stride())}; it must be {list(wanted)}, contiguous"
            )

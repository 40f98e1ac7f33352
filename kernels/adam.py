"""``adam`` in Triton: clipping and Adam's update of all parameters in one launch.

What bounds it is memory: parameters and moments are read and written, gradients read: 30 MB at
D = 64 and 12,101 items, 9 us on an H100 and 32 us on an RTX 3090.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch
from ._tensors import BLOCK, CHUNK, groups, part_of, tensor_of


@triton.jit
def _adam_kernel(
    parameters, gradients, firsts, seconds, steps, table, norm_ptr, found_ptr, lr_ptr,
    done_ptr, log_beta1, log_beta2, beta1, beta2, rest1, rest2, eps, weight_decay, max_norm,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, CLIP: tl.constexpr, DECAY: tl.constexpr,
):
    if tl.load(found_ptr) != 0.0:
        return  # leaves everything as it is
    program = tl.program_id(0)
    begin, size = part_of(program, table, CHUNK)
    parameter_ptr = tensor_of(program, parameters, table)
    gradient_ptr = tensor_of(program, gradients, table)
    first_ptr = tensor_of(program, firsts, table)
    second_ptr = tensor_of(program, seconds, table)
    # 1 - beta^step, of which a float32 power would leave four digits.
    step = (tl.load(tensor_of(program, steps, table)) + 1.0).to(tl.float64)
    rate = tl.load(lr_ptr) / (1.0 - tl.exp(step * log_beta1)).to(tl.float32)
    root = tl.sqrt((1.0 - tl.exp(step * log_beta2)).to(tl.float32))
    scale = 1.0
    if CLIP:
        scale = tl.minimum(max_norm / (tl.load(norm_ptr) + 1e-6), 1.0)
    for start in range(0, CHUNK, BLOCK):
        at = begin + start + tl.arange(0, BLOCK)
        mask = at < size
        gradient = tl.load(gradient_ptr + at, mask=mask, other=0.0) * scale
        parameter = tl.load(parameter_ptr + at, mask=mask, other=0.0)
        if DECAY:
            gradient += weight_decay * parameter
        first = tl.load(first_ptr + at, mask=mask, other=0.0) * beta1 + rest1 * gradient
        second = tl.load(second_ptr + at, mask=mask, other=0.0) * beta2
        second += rest2 * gradient * gradient
        parameter -= rate * first / (tl.sqrt(second) / root + eps)
        tl.store(first_ptr + at, first, mask=mask)
        tl.store(second_ptr + at, second, mask=mask)
        tl.store(parameter_ptr + at, parameter, mask=mask)
    # Every program has read its step when the last one counts them.
    if tl.atomic_add(done_ptr, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(done_ptr, 0)
        for entry in tl.static_range(len(table)):
            tl.store(steps[entry], tl.load(steps[entry]) + 1.0)


def fwd(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], firsts: Sequence[Tensor],
    seconds: Sequence[Tensor], steps: Sequence[Tensor], done: Tensor, norm: Tensor, found: Tensor,
    lr: Tensor, beta1: float, beta2: float, eps: float, weight_decay: float, max_norm: float,
) -> None:
    """``adam_fwd`` of the op's schema."""
    options = {
        "log_beta1": math.log(beta1), "log_beta2": math.log(beta2), "beta1": beta1,
        "beta2": beta2, "rest1": 1.0 - beta1, "rest2": 1.0 - beta2, "eps": eps,
        "weight_decay": weight_decay, "max_norm": max_norm, "CLIP": max_norm > 0,
        "DECAY": weight_decay != 0, "CHUNK": CHUNK, "BLOCK": BLOCK,
    }
    for part, table, programs in groups(parameters):
        launch(_adam_kernel, (programs,), {
            **options, "parameters": tuple(parameters[part]),
            "gradients": tuple(gradients[part]), "firsts": tuple(firsts[part]),
            "seconds": tuple(seconds[part]), "steps": tuple(steps[part]), "table": table,
            "norm_ptr": norm, "found_ptr": found, "lr_ptr": lr, "done_ptr": done,
        }, {"num_warps": 8})

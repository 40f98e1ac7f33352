"""``gradient_norm`` in Triton: one launch over all gradients, whose last program adds up.

What bounds it is memory: 4 MB at D = 64 and 12,101 items, 1.3 us on an H100, 5 us on an RTX 3090.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch
from ._tensors import BLOCK, CHUNK, groups, part_of, tensor_of


@triton.jit(do_not_specialize=["before", "programs"])
def _norm_kernel(gradients, table, partial_ptr, done_ptr, norm_ptr, before, programs,
                 CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """``before``: programs of earlier launches, of all that there are."""
    program = tl.program_id(0)
    gradient_ptr = tensor_of(program, gradients, table)
    begin, size = part_of(program, table, CHUNK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, CHUNK, BLOCK):
        at = begin + start + tl.arange(0, BLOCK)
        gradient = tl.load(gradient_ptr + at, mask=at < size, other=0.0)
        total += gradient * gradient
    tl.store(partial_ptr + before + program, tl.sum(total))
    # A release of this program's sum and an acquire of all others' before it.
    if tl.atomic_add(done_ptr, 1, sem="acq_rel") == programs - 1:
        tl.store(done_ptr, 0)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, programs, BLOCK):
            at = start + tl.arange(0, BLOCK)
            # From where all multiprocessors see it: not from this one's first cache.
            total += tl.load(partial_ptr + at, mask=at < programs, other=0.0, cache_modifier=".cg")
        tl.store(norm_ptr, tl.sqrt(tl.sum(total)))


def fwd(gradients: Sequence[Tensor], done: Tensor) -> Tensor:
    """``gradient_norm_fwd`` of the op's schema."""
    launches = list(groups(gradients))
    programs, before = sum(count for *_, count in launches), 0
    wide = {"dtype": torch.float32, "device": done.device}
    if not programs:
        return torch.zeros((), **wide)
    norm, partial = torch.empty((), **wide), torch.empty(programs, **wide)
    for part, table, count in launches:
        launch(_norm_kernel, (count,), {
            "gradients": tuple(gradients[part]), "table": table, "partial_ptr": partial,
            "done_ptr": done, "norm_ptr": norm, "before": before, "programs": programs,
            "CHUNK": CHUNK, "BLOCK": BLOCK,
        }, {"num_warps": 8})
        before += count
    return norm

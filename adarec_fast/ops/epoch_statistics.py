"""``epoch_statistics``: a training step's numbers added to the running sums of its epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.epoch_statistics import WATCHED
from ..reference.epoch_statistics import epoch_statistics as reference
from ._library import check_index, check_shape, choose, define, require

_VALUES = 8


def _fake_forward(sums: Tensor, *_: Any) -> Tensor:
    return sums.new_empty((), dtype=torch.float32)


define(
    "epoch_statistics",
    "(Tensor(a!) sums, Tensor(b!) bad_step, Tensor(c!) bad_parts, Tensor rec, Tensor deno, "
    "Tensor cont, Tensor expl, Tensor total, Tensor norm, Tensor entropy, Tensor error, "
    "Tensor depth, Tensor gate, Tensor? step, int number) -> Tensor",
    None,
    _fake_forward,
    None,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    note="training calls it where a kernel runs it, and plain PyTorch elsewhere",
    waits=False,
)


def epoch_statistics(
    sums: Tensor,
    bad_step: Tensor,
    bad_parts: Tensor,
    values: Sequence[Tensor],
    depth: Tensor,
    gate: Tensor,
    step: int | Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Add one step's numbers to what is there, in place, in float64.

    Args:
        sums: float64 ``[8 + 3K]``: of the values, each times B; of the users at each depth; of
            g_k times the users that reach level k; of those users. Levels whose g_k is not finite
            count nobody.
        bad_step: int64 0-dim, the first step with a value that is not finite, -1 before.
        bad_parts: bool ``[6]``, which of that step's first six values were not.
        values: eight 0-dim tensors: L_rec, L_deno, L_cont, L_expl, L_tot, the gradient's norm, the
            depth's entropy, the denoising error.
        depth: int64 ``[B]``, T_u, 0..K-1.
        gate: ``[K]``, mean g_k; nan where unknown.
        step: this step's number, or int64 0-dim on the device.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        Float32 0-dim: 1 if this or an earlier step was not finite, else 0.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    require(len(values) == _VALUES, lambda: f"values are {len(values)}; they must be {_VALUES}")
    for number, value in enumerate(values):
        check_shape(f"values[{number}]", value)
    check_index("depth", depth, None)
    check_shape("gate", gate, None)
    check_shape("sums", sums, _VALUES + 3 * gate.shape[0])
    require(sums.dtype == torch.float64, lambda: f"sums has dtype {sums.dtype}; not torch.float64")
    check_shape("bad_step", bad_step)
    check_shape("bad_parts", bad_parts, WATCHED)
    chosen = choose("epoch_statistics", backend, sums.device.type)
    if chosen == "reference":
        return reference(sums, bad_step, bad_parts, values, depth, gate, step)
    on_device = step if isinstance(step, Tensor) else None
    tensors = (tensor.detach() for tensor in (*values, depth, gate))
    found: Tensor = torch.ops.adarec_fast.epoch_statistics_fwd(
        sums, bad_step, bad_parts, *tensors, on_device, 0 if on_device is not None else step, chosen
    )
    return found

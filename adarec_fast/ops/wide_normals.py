"""``wide_normals``: standard normals of long rows, by the noise contract."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import rng
from ._library import check_index, check_seed, choose, define, require


def _fake_forward(
    row: Tensor, seed: Tensor, size: int, stream: int, group: int, backend: str
) -> Tensor:
    return row.new_empty(row.shape[0], size, dtype=torch.float32)


define(
    "wide_normals",
    "(Tensor row, Tensor seed, SymInt size, int stream, int group) -> Tensor",
    None,
    _fake_forward,
    None,
    cpu=("cpp", "packed"),
    waits=False,
)


def wide_normals(
    row: Tensor,
    size: int,
    *,
    seed: Tensor,
    stream: int,
    group: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Normals of rows that have no levels, four a call of Philox; :func:`.rng.wide_normals`.

    Words are the same for every backend, normals the same up to the last places of log, sin and
    cos. A row's numbers depend on its own number alone.

    Args:
        row: int64 ``[R]``, numbers of the rows.
        size: of each, at least 1.
        seed: int64 ``[1]`` or ``[3]``; the key, the places before a share are the rows' business.
        stream: stream id.
        group: ``level // 4``.
        dtype: of the normals; other than float32 they are plain PyTorch's.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        ``[R, size]``, without gradient.

    Raises:
        ValueError: a shape, dtype or size that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_index("row", row)
    require(size >= 1, lambda: f"size={size} must be at least 1")
    seed = check_seed(seed)
    chosen = choose("wide_normals", backend, row.device.type, dtype)
    if chosen == "reference" or dtype != torch.float32:
        return rng.wide_normals(seed, row, size, dtype, stream, group)
    found: Tensor = torch.ops.adarec_fast.wide_normals_fwd(row, seed, size, stream, group, chosen)
    return found

"""HP-MoE with more experts than the paper's two: reference, or packed.

No kernel knows more than two; the experts themselves are run by the ops as ever. What an expert
reads and which levels are its own stands in :mod:`adarec_fast.reference.several_experts`.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ... import ragged
from ...ops import Aggregate
from ...ops._library import ENVIRONMENT
from ...packed import level_infonce as packed_infonce
from ...packed.several_experts import several_experts as packed
from ...reference.level_infonce import level_infonce
from ...reference.several_experts import level_group
from ...reference.several_experts import several_experts as reference
from .router import Router


def _dense(backend: str) -> bool:
    if backend == "auto":
        backend = os.environ.get(ENVIRONMENT, "auto")
    return backend == "reference"


def aggregate(
    router: Router, outputs: list[Tensor], pooled: Tensor | None, depth: Tensor,
    level_mass: Tensor, level_embedding: Tensor, *, level_bias: Tensor | None, backend: str,
) -> tuple[Aggregate, Tensor]:  # fmt: skip
    """Eq. 7 to 11 of N experts.

    Args:
        router: of N experts.
        outputs: of each ``[K, R, D]``.
        pooled: ``[K, R, D]``, what the router reads of the content.
        depth: int64 ``[R]``.
        level_mass: ``[K, R]``.
        level_embedding: ``[K, D]``.
        level_bias: what follows from it, if that is known.
        backend: ``"auto"``, ``"packed"`` or ``"reference"``.

    Returns:
        What two experts give, ``gates`` being the fine one's and ``coarse`` of the coarsest one;
        and the gates of all of them ``[N, K, R]``, without gradient.
    """
    weights = router.weights(level_embedding, level_bias)
    content = pooled if router.content else None
    every = torch.stack(outputs)
    if _dense(backend):
        reached = ragged.reached_levels(depth, every.shape[1])
        if content is not None:
            content = torch.where(reached[..., None], content, torch.zeros_like(content))
        user, gates, z = reference(every, content, reached, level_mass, *weights)
    else:
        user, gates, z = packed(every, content, depth, level_mass, *weights)
    gates, z = gates.detach(), z.detach()
    return Aggregate(user, gates[0], z[0], z[-1]), gates


def contrast(
    z: Tensor, depth: Tensor, targets: Tensor, temperature: float, *, backend: str
) -> Tensor:
    """Eq. 6 of all experts but the fine one, each over its own group of levels.

    Args:
        z: ``[N-1, K, B, D]``, pooled outputs.
        depth, targets, temperature: as :func:`adarec_fast.ops.level_infonce` takes them.
        backend: as above.

    Returns:
        The mean over all pairs of all experts, a scalar; 0 if there is none.
    """
    experts = z.shape[0] + 1
    one = level_infonce if _dense(backend) else packed_infonce.of_group
    found = [
        one(each, depth, targets, temperature, number, experts) for number, each in enumerate(z, 1)
    ]
    groups = (level_group(depth, number, experts) for number in range(1, experts))
    pairs = torch.stack([(end - first).sum() for first, end in groups]).to(found[0].dtype)
    return (torch.stack(found) * pairs).sum() / pairs.sum().clamp(min=1)

"""What the pictures need of a trained model, computed for users of the test set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..config import ConfigError
from ..data import EvaluationBatch, EvaluationBatches, Split
from ..models.adarec.model import ADARec
from ..models.adarec.parsing import encode
from ..training import Run


@dataclass(frozen=True)
class Depths:
    """Depths and gates of users, on the CPU.

    Attributes:
        lengths: int64 [U], items of each history, not cut.
        depth: int64 [U], T_u at evaluation.
        probabilities: float [U, T+1], the noise-free softmax of Eq. 2, from which training
            draws; None with a fixed depth.
        gates: float [T+1, U], g_k of Eq. 7; NaN beyond a user's depth; None without HP-MoE.
    """

    lengths: Tensor
    depth: Tensor
    probabilities: Tensor | None
    gates: Tensor | None


def adarec(run: Run) -> ADARec:
    """The run's model, for pictures of what only an ADARec has.

    Raises:
        ConfigError: it is of another kind.
    """
    if not isinstance(run.model, ADARec):
        raise ConfigError(f"{type(run.model).__name__} has no depths, levels and gates to draw")
    return run.model


def sample_users(split: Split, number: int, *, seed: int, sparse: bool = False) -> Tensor:
    """int64 indices, rising, of ``number`` users drawn without replacement (or all, if fewer).

    Args:
        split: whose users.
        number: how many, at least 1.
        seed: the draw depends on it and on the number of users alone.
        sparse: draw from the users with at most five items of history.

    Raises:
        ConfigError: ``number`` is under 1, or there is no sparse user.
    """
    if number < 1:
        raise ConfigError(f"users={number} must be at least 1")
    pool = split.users("test")
    if not pool.numel():
        raise ConfigError("nothing was held out of the run's data, so that nobody can be drawn")
    if sparse:
        pool = pool[split.sparse_users()[pool]]
        if not pool.numel():
            raise ConfigError("sparse: no user has at most 5 items of history; leave it out")
    order = torch.randperm(pool.numel(), generator=torch.Generator().manual_seed(seed))
    return pool[order[:number]].sort().values


@torch.no_grad()
def depths(run: Run) -> Depths:
    """Depth, its distribution and the gates of every user of the test set."""
    model = adarec(run)
    sample_users(run.split, 1, seed=0)  # somebody must be there
    depth, probabilities, gates = [], [], []
    for batch in _batches(run, None):
        output = model((batch.item_ids, batch.offsets), return_gates=True)
        depth.append(output.depth.cpu())
        if model.config.depth == "adaptive":
            embeddings = encode(model, batch.item_ids, batch.offsets)
            logits = model.depth_controller(
                embeddings, batch.offsets, backend=model.config.backend
            )
            probabilities.append(torch.softmax(logits.float(), -1).cpu())
        if output.gates is not None:
            levels = torch.arange(output.gates.shape[0], device=output.depth.device)
            reached = levels[:, None] <= output.depth
            gates.append(torch.where(reached, output.gates.float(), torch.nan).cpu())
    return Depths(
        run.split.inputs("test")[1].diff()[run.split.users("test")],
        torch.cat(depth),
        torch.cat(probabilities) if probabilities else None,
        torch.cat(gates, 1) if gates else None,
    )


@torch.no_grad()
def representations(run: Run, users: Tensor) -> dict[str, Tensor]:
    """Unit vectors [U, D] on the CPU: ``user`` and, of HP-MoE, ``coarse`` (z_coar)."""
    parts: dict[str, list[Tensor]] = {}
    model = run.model
    if not model.by_products:
        raise ConfigError(f"tsne: {type(model).__name__} has no vectors of users")
    for batch in _batches(run, users):
        if isinstance(model, ADARec):
            found = model.representations((batch.item_ids, batch.offsets))
            names = ("user", "coarse") if model.config.moe else ("user",)
        else:
            vectors = model.represent(batch.item_ids, batch.offsets)
            found, names = {"user": vectors.flatten(1)}, ("user",)
        for name in names:
            parts.setdefault(name, []).append(_unit(found[name]))
    return {name: torch.cat(part) for name, part in parts.items()}


@torch.no_grad()
def levels(run: Run, users: Tensor) -> dict[str, Tensor]:
    """Each level of the whole hierarchy 0..T, whatever depth a user has, without noise.

    Returns:
        Unit vectors [T+1, U, D] on the CPU, means over the items of a history: ``x0`` (Ê_k of
        Eq. 5) and, with HP-MoE, ``fine`` and ``coarse`` (what the experts make of it; the latter
        is z_{u,k} of Eq. 6).

    Raises:
        ConfigError: the model has no diffusion, so that all levels are the same.
    """
    model = adarec(run)
    config = model.config
    if not config.diffusion:
        raise ConfigError("this model was trained with diffusion=False: all its levels are alike")
    parts: dict[str, list[Tensor]] = {}
    for batch in _batches(run, users):
        offsets = batch.offsets
        embeddings = encode(model, batch.item_ids, offsets)
        depth = torch.full_like(batch.users, config.max_depth)
        shared: dict[str, Any] = {"max_length": config.max_length, "backend": config.backend}
        x0, _ = model.denoiser(
            embeddings, offsets, depth, model.level_embedding.weight, seed=None, **shared
        )
        found = {"x0": x0}
        if config.moe:
            for name, expert in (("fine", model.fine_expert), ("coarse", model.coarse_expert)):
                found[name] = expert(x0, offsets, depth, last_only=False, seed=None, **shared)
        for name, tensor in found.items():
            pooled = ops.level_pool(tensor, offsets, depth, **shared)
            parts.setdefault(name, []).append(_unit(pooled))
    return {name: torch.cat(part, 1) for name, part in parts.items()}


def _unit(points: Tensor) -> Tensor:
    """Cosine geometry, as that of Eq. 6."""
    return F.normalize(points.float(), dim=-1).cpu()


def _batches(run: Run, users: Tensor | None) -> Iterator[EvaluationBatch]:
    return iter(
        EvaluationBatches(
            run.split,
            "test",
            batch_size=run.train_config.evaluation_batch_size,
            max_length=run.model.config.max_length,
            users=users,
            device=run.model.device,
        )
    )

"""What is kept of a finished run of a sweep: figures in ``result.json``, and its users' ranks.

``ranks.safetensors`` holds int32 [users] for ``valid`` and for ``test``, in the order of the
users who are asked there; a rank beyond the type, that of a target which is masked, is the greatest
int32. Bool [users] ``sparse`` are :meth:`~adarec_fast.data.Split.sparse_users` of those of the
test, and ``sparse_valid``, where validation asks others, of those of validation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..data import Split
from ..models.pretrained import read_weights
from ..models.registry import described
from ..ranking.comparison import Difference
from ..ranking.evaluation import EvaluationResult, evaluate
from ..ranking.ranks import SeenMask
from ..ranking.recommender import Recommender
from ..training import Run
from ..training.checkpoint import find_checkpoint, ranks_by, write_atomically
from ..training.remember import memory_seconds
from ..training.run_folder import describe_environment, fingerprint

RANKS = "ranks.safetensors"
PARTS: tuple[Literal["valid", "test"], ...] = ("valid", "test")
_MOST = torch.iinfo(torch.int32).max
_LATENCY_USERS = 200  # asked one at a time


def measure(run: Run) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What ``result.json`` says of a trained run, and the ranks of its users.

    Returns:
        Figures: ``epochs`` run, ``best_epoch``; ``valid``, ``valid_sparse``, ``test`` and
        ``test_sparse``, all at that epoch: metrics by name, of all users and of those with at most
        5 items of history (None without any); ``without_memory``, of a run that has one: the same
        four with it left out; ``train_seconds`` and ``valid_seconds`` of all epochs;
        ``memory_seconds``: counting and fitting; ``seconds_per_epoch``: median, training alone;
        ``milliseconds_per_user``: median of recommending to one user at a time; ``parameters``;
        ``config``: every field of model and training; ``seed``; ``device``, ``threads``;
        ``environment``: versions, commit, processor.

        Ranks: int64 [users] by part, ``valid`` and ``test``.

    Raises:
        ConfigError: nothing was held out.
    """
    config = run.train_config
    tested = {part: evaluate_run(run, part) for part in PARTS}
    alone, memory = {}, run.model.memory
    if memory is not None:
        run.model.memory = None
        alone = _by_users({part: evaluate_run(run, part) for part in PARTS})
        run.model.memory = memory
    best = max((line for line in run.history if line.get("best")), key=lambda line: line["epoch"])
    environment = describe_environment(run.model.device, ())
    told = {n: v for n, v in tested["test"].diagnostics.items() if isinstance(v, float)}
    figures = {
        "epochs": len(run.history),
        "best_epoch": best["epoch"],
        **_by_users(tested),
        **({"without_memory": alone} if alone else {}),
        **told,
        "train_seconds": sum(line["seconds"] for line in run.history),
        "valid_seconds": sum(line.get("valid_seconds", 0.0) for line in run.history),
        "memory_seconds": memory_seconds(run.path),
        "seconds_per_epoch": statistics.median(line["seconds"] for line in run.history),
        "milliseconds_per_user": latency(run),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "seed": run.model_config.seed,
        "config": {"model": described(run.model_config), "train": config.to_dict()},
        "device": environment.pop("device"),
        "threads": environment.pop("threads"),
        "environment": {n: v for n, v in environment.items() if n != "command"},
    }
    return figures, {part: result.ranks for part, result in tested.items()}


def _by_users(tested: Mapping[Literal["valid", "test"], EvaluationResult]) -> dict[str, Any]:
    parts = ((part, tested[part]) for part in PARTS)
    return {
        name: metrics for part, found in parts
        for name, metrics in ((part, found.overall), (f"{part}_sparse", found.sparse))
    }  # fmt: skip


def evaluate_run(
    run: Run,
    part: Literal["valid", "test"],
    *,
    split: Split | None = None,
    seen_mask: SeenMask | None = None,
) -> EvaluationResult:
    """Rank for the users of a run's data, or of another split, masked as in its training."""
    return evaluate(
        run.model,
        run.split if split is None else split,
        part,
        seen_mask=run.train_config.seen_mask if seen_mask is None else seen_mask,
        batch_size=run.train_config.evaluation_batch_size,
        intents=False,
    )


def write_ranks(run: Run, ranks: Mapping[str, Tensor]) -> None:
    """Write ``ranks.safetensors`` into a run's folder."""
    about = {
        "fingerprint": fingerprint(run.data),
        "seen_mask": run.train_config.seen_mask,
        "weights": _weights(run.path) or "",
    }
    capped = {part: found.clamp(max=_MOST).to(torch.int32) for part, found in ranks.items()}
    capped |= sparse_masks(run.split)
    write_atomically(run.path / RANKS, save(capped, about))


def sparse_masks(split: Split) -> dict[str, Tensor]:
    """``sparse`` and, of a split whose parts ask different users, ``sparse_valid``."""
    sparse = split.sparse_users()
    masks = {"sparse": sparse[split.users("test")]}
    if split.data.cuts is not None:
        masks["sparse_valid"] = sparse[split.users("valid")]
    return masks


def read_ranks(run_dir: Path, data_fingerprint: str, seen_mask: str) -> dict[str, Tensor] | None:
    """What :func:`write_ranks` kept of a run's best epoch; None if there are none of these.

    Args:
        run_dir: the run folder.
        data_fingerprint: of the data that was ranked for.
        seen_mask: what was done to seen items.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run_dir / RANKS
    if not path.exists():
        return None
    ranks = read_weights(path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
    wanted = {
        "fingerprint": data_fingerprint, "seen_mask": seen_mask, "weights": _weights(run_dir),
    }  # fmt: skip
    return ranks if about == wanted else None


def plain_difference(difference: Difference) -> dict[str, Any]:
    """JSON-able values of a difference, intervals as [low, high]."""
    return {
        "metric": difference.metric,
        "seeds": list(difference.seeds),
        "difference": difference.value,
        "over_users": list(difference.users),
        "deviation": difference.deviation,
        "over_seeds": None if difference.over_seeds is None else list(difference.over_seeds),
    }


def _weights(run_dir: Path) -> str | None:
    """What the best epoch ranks by: a run that went on, or has a new memory, ranks otherwise."""
    folder = find_checkpoint(run_dir, "best")
    return None if folder is None else ranks_by(folder)


def latency(run: Run, users: int = _LATENCY_USERS) -> float:
    """Median milliseconds of the 20 best items for one user, of the first ``users`` users."""
    values, offsets = run.split.inputs("test")
    asked = run.split.users("test")[:users].tolist()
    histories = [[values[offsets[user] : offsets[user + 1]].tolist()] for user in asked]
    recommender = Recommender(run.model)
    k = min(20, run.model.config.num_items)
    for history in histories[:10]:  # the first ones warm caches
        recommender.recommend(history, k=k)
    taken = []
    for history in histories:
        begun = time.perf_counter()
        # Reading the answer waits for the device.
        recommender.recommend(history, k=k).items.tolist()
        taken.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(taken)

"""Two trained runs or more on one data set: their metrics, and what differs from the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import ConfigError
from ..data import DataError, InteractionData, Split, Vocabulary
from ..data.configured import load_data
from ..ranking.comparison import compare
from ..ranking.ranks import ranking_metrics
from ..training import Run, load_run
from ..training.loop import resolve_device
from ..training.run_folder import fingerprint
from .result import PARTS, evaluate_run, plain_difference, read_ranks

_KS = (5, 10, 20)


def compare_runs(
    folders: Sequence[Path],
    *,
    data: Path | None = None,
    part: Literal["valid", "test"] = "test",
    device: str = "auto",
    on_run: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Evaluate runs for the same users, or read what a sweep kept of their ranks.

    Seen items are masked in all runs as in the first one's training.

    Args:
        folders: of the runs; the first one is the baseline.
        data: a file to evaluate all of them on, read with the settings of the first run's; by
            default the data that they were trained on, which must then be the same.
        part: which held-out item to predict.
        device: where to evaluate.
        on_run: called before each run.

    Returns:
        JSON-able: ``part``, ``data``, ``seen_mask``, ``users``, ``sparse_users``; ``runs``: each
        with ``run``, ``model``, ``parameters``, and metrics of ``all`` and ``sparse`` users (None
        without any); ``differences``: of ``run`` from the first one, by ``users`` and ``metric``.

    Raises:
        ConfigError: fewer than two runs, one twice, or runs that are asked for different items.
        DataError: ``data`` cannot be read, or a model does not know an item of it.
        RunFolderError, CheckpointError: a folder holds no whole run.
    """
    if len(folders) < 2:
        raise ConfigError(f"give two runs or more to compare; got {len(folders)}")
    names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigError(f"the run {max(names, key=names.count)} is named twice")
    target = resolve_device(device)
    runs: list[dict[str, Any]] = []
    systems: dict[str, dict[int, Tensor]] = {}
    given: InteractionData | None = None
    for folder, name in zip(folders, names, strict=True):
        if on_run is not None:
            on_run(folder)
        run = load_run(folder, device=target)
        if not runs:
            mask = run.train_config.seen_mask
            if data is not None:
                section = {**(run.source.get("source") or {}), "data": str(data), "format": "auto"}
                given = load_data(section)
        split = Split(run.data if given is None else _recoded(given, run, data))
        if not runs:
            first, sparse = split, split.sparse_users()[split.users(part)]
        _check_same(first, split, name, names[0])
        kept = None if given is not None else read_ranks(folder, fingerprint(run.data), mask)
        ranks = (
            kept[part] if kept is not None
            else evaluate_run(run, part, split=split, seen_mask=mask).ranks
        )  # fmt: skip
        systems[name] = {0: ranks}
        runs.append(
            {
                "run": name,
                "model": run.model_config.system,
                "parameters": sum(p.numel() for p in run.model.parameters()),
                "all": ranking_metrics(ranks, _KS),
                "sparse": ranking_metrics(ranks[sparse], _KS) if bool(sparse.any()) else None,
            }
        )
    return {
        "part": part,
        "data": first.data.name,
        "seen_mask": mask,
        "users": sparse.numel(),
        "sparse_users": int(sparse.sum()),
        "runs": runs,
        "differences": [
            {"run": name, "users": users, **plain_difference(difference)}
            for users, chosen in (("all", None), ("sparse", sparse))
            if chosen is None or bool(chosen.any())
            for name, found in compare(systems, names[0], chosen=chosen).items()
            for difference in found
        ],
    }


def _recoded(data: InteractionData, run: Run, path: Path | None) -> InteractionData:
    """The data with the item indices of a run's model."""
    items: Vocabulary = run.data.items
    try:
        known = torch.from_numpy(items.encode(data.items.ids))
    except DataError as error:
        raise DataError(
            f"{path}: the model in {run.path} does not know all its items: {error}"
        ) from None
    index = torch.cat([torch.zeros(1, dtype=torch.int64), known])
    return InteractionData.from_flat(
        index[data.values], data.offsets, items, data.users, data.name, report=data.report,
        cuts=data.cuts,
    )  # fmt: skip


def _check_same(first: Split, other: Split, name: str, base: str) -> None:
    """Both must ask the same users for the same items, of the same catalogue.

    Raises:
        ConfigError: they do not.
    """
    if first is other:
        return
    one, two = first.data, other.data
    if set(one.items.ids) != set(two.items.ids):
        raise ConfigError(
            f"{name}: ranks another catalogue than {base} ({two.num_items} items and "
            f"{one.num_items}), so that their ranks cannot be compared"
        )
    if any(_asked(first, part) != _asked(other, part) for part in PARTS):
        raise ConfigError(
            f"{name}: trained on data with other users, or other items to predict, than {base}; "
            "give --data FILE to evaluate all runs on one file"
        )


def _asked(split: Split, part: Literal["valid", "test"]) -> tuple[list[Any], list[Any]]:
    """The users who are asked, and the items that they are asked for; 0 for unknown ones."""
    users, items = split.users(part), split.data.items
    targets = split.targets(part)[users]
    known = items.decode(targets[targets > 0])
    return split.data.users.decode(users), [*known, *torch.nonzero(targets == 0).flatten().tolist()]

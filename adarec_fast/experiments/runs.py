"""Two trained runs or more on one data set: their metrics, and what differs from the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import ConfigError
from ..data import DataError, InteractionData, Split, Vocabulary
from ..data.configured import load_data
from ..data.flat import gather_ranges
from ..ranking.comparison import METRICS, compare, holm, sign_test
from ..ranking.ranks import ranking_metrics, user_metrics
from ..training import Run, load_run
from ..training.further import came_later
from ..training.loop import resolve_device
from ..training.run_folder import fingerprint, read_config
from .result import PARTS, evaluate_run, plain_difference, read_ranks

_KS = (5, 10, 20)


def compare_runs(
    folders: Sequence[Path | str],
    *,
    data: Path | None = None,
    part: Literal["valid", "test"] = "test",
    device: str = "auto",
    on_run: Callable[[Path], None] | None = None,
    metrics: Sequence[str] = METRICS,
) -> dict[str, Any]:
    """Evaluate runs for the same users, or read what a sweep kept of their ranks.

    Seen items are masked in all runs as in the first one's training.

    Args:
        folders: of the runs; the first one is the baseline. Folders as text will do.
        data: a file to evaluate all of them on, read with the settings of the first run's; by
            default the data that they were trained on, which must then be the same. Where a run
            held nothing out, as a refitted one, the file is of interactions that came later: all
            are asked for a user's first new item, after the user's whole history in the run.
        part: which held-out item to predict.
        device: where to evaluate.
        on_run: called before each run.
        metrics: what differences are of, such as ``"NDCG@10"``.

    Returns:
        JSON-able: ``part``, ``data``, ``seen_mask``, ``users``, ``sparse_users``; ``runs``: each
        with ``run``, ``model``, ``parameters``, and metrics of ``all`` and ``sparse`` users (None
        without any); ``differences``: of ``run`` from the first one, by ``users`` and ``metric``:
        ``difference``, its 95% interval ``over_users`` (a paired bootstrap), and ``sign_test``:
        ``wins``, ``losses``, ``ties``, ``p`` and ``p_holm``, which is corrected for the number of
        runs that are compared with the first.

    Example::

        from adarec_fast.experiments.runs import compare_runs
        found = compare_runs(["runs/backbone", "runs/shop"], metrics=["NDCG@10"])
        print(found["differences"][0]["difference"], found["differences"][0]["over_users"])

    Raises:
        ConfigError: fewer than two runs, one twice, no such metric, or runs of other data or
            another split, which says what differs.
        DataError: ``data`` cannot be read, or a model does not know an item of it.
        RunFolderError, CheckpointError: a folder holds no whole run.
    """
    if len(folders) < 2:
        raise ConfigError(f"give two runs or more to compare; got {len(folders)}")
    paths = [Path(folder) for folder in folders]
    names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(f"the run {max(names, key=names.count)} is named twice")
    ks = _cut_offs(metrics)
    target = resolve_device(device)
    runs: list[dict[str, Any]] = []
    systems: dict[str, dict[int, Tensor]] = {}
    given: InteractionData | None = None
    whole = next((path for path in paths if _on_everything(path)), None)
    if whole is not None and (data is None or part != "test"):
        raise ConfigError(
            f"{whole}: was trained on everything, so that nothing is left to compare it on; give "
            "--data FILE of interactions that came later, and ask for the test part"
        )
    for folder, name in zip(paths, names, strict=True):
        if on_run is not None:
            on_run(folder)
        run = load_run(folder, device=target)
        if not runs:
            mask = run.train_config.seen_mask
            if data is not None and whole is None:
                section = {**(run.source.get("source") or {}), "data": str(data), "format": "auto"}
                given = load_data(section)
        if data is not None and whole is not None:
            split = came_later(run, [data])
        else:
            split = Split(run.data if given is None else _recoded(given, run, data))
        if not runs:
            first, sparse = split, split.sparse_users()[split.users(part)]
            settings = _settings(run)
        else:
            hint = "" if data is not None else _other_settings(settings, _settings(run))
            _check_same(first, split, name, names[0], hint)
        kept = None if data is not None else read_ranks(folder, fingerprint(run.data), mask)
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
                "all": ranking_metrics(ranks, ks),
                "sparse": ranking_metrics(ranks[sparse], ks) if bool(sparse.any()) else None,
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
            entry
            for users, chosen in (("all", None), ("sparse", sparse))
            if chosen is None or bool(chosen.any())
            for entry in _differences(systems, names[0], metrics, users, chosen)
        ],
    }


def _on_everything(folder: Path) -> bool:
    """Whether a run held nothing out."""
    source: dict[str, Any] = read_config(folder)[2].get("source") or {}
    return source.get("split") == "none"


def _differences(
    systems: Mapping[str, Mapping[int, Tensor]], base: str, metrics: Sequence[str], users: str,
    chosen: Tensor | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Of all other runs from the first, by run and then by metric."""
    tests = {}
    for metric in metrics:
        worth = {name: user_metrics(ranks[0], metric) for name, ranks in systems.items()}
        found = {}
        for name, values in worth.items():
            if name != base:
                apart = values - worth[base]
                found[name] = sign_test(apart if chosen is None else apart[chosen])
        corrected = holm([test.p for test in found.values()])
        for (name, test), p in zip(found.items(), corrected, strict=True):
            tests[name, metric] = {**test._asdict(), "p_holm": p}
    return [
        {"run": name, "users": users, **plain_difference(one),
         "sign_test": tests[name, one.metric]}
        for name, found in compare(systems, base, metrics=metrics, chosen=chosen).items()
        for one in found
    ]  # fmt: skip


def _cut_offs(metrics: Sequence[str]) -> tuple[int, ...]:
    """Of the usual metrics and those that are asked for, rising.

    Raises:
        ConfigError: there is no such metric, or none at all.
    """
    if not metrics or len(set(metrics)) < len(metrics):
        raise ConfigError(f"metrics={list(metrics)!r}: name one or more, each once")
    try:
        for metric in metrics:
            user_metrics(torch.ones(1), metric)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return tuple(sorted({*_KS, *(int(metric.partition("@")[2]) for metric in metrics)}))


def _settings(run: Run) -> dict[str, Any]:
    """How a run's data were read, where that is known."""
    found: dict[str, Any] = dict(run.source.get("source") or {})
    return found


def _other_settings(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """Which of them differ, to stand behind a message."""
    names = [name for name in {**one, **two} if one.get(name) != two.get(name)]
    told = ", ".join(f"{name} is {two.get(name)!r} and {one.get(name)!r}" for name in names)
    return f" (of their data settings, {told})" if told else ""


def _recoded(data: InteractionData, run: Run, path: Path | None) -> InteractionData:
    """The data with the item indices of a run's model."""
    items: Vocabulary = run.data.items
    try:
        known = torch.from_numpy(items.encode(data.items.ids))
    except DataError as error:
        raise DataError(
            f"{path}: the model in {run.path} does not know all its items: {error}; what came "
            "after a run's data is for adarec-fast evaluate RUN --data FILE"
        ) from None
    index = torch.cat([torch.zeros(1, dtype=torch.int64), known])
    return InteractionData.from_flat(
        index[data.values], data.offsets, items, data.users, data.name, report=data.report,
        cuts=data.cuts,
    )  # fmt: skip


def _check_same(first: Split, other: Split, name: str, base: str, settings: str) -> None:
    """Both must ask the same users for the same items, of the same catalogue, after the same
    histories; one run may know less of their beginning (``truncate``).

    Raises:
        ConfigError: they do not; the message says in what they differ.
    """
    one, two = first.data, other.data
    strange = set(one.items.ids) ^ set(two.items.ids)
    if strange:
        raise ConfigError(
            f"{name}: ranks another catalogue than {base} ({two.num_items} items and "
            f"{one.num_items}; {min(map(str, strange))!r} is in one alone), so that their ranks "
            f"cannot be compared{settings}"
        )
    remedy = f"give --data FILE to evaluate all runs on one file{settings}"
    if one.users.ids != two.users.ids:
        strange = set(one.users.ids) ^ set(two.users.ids)
        which = f"{min(map(str, strange))!r} is in one alone" if strange else "in another order"
        raise ConfigError(
            f"{name}: trained on data with other users than {base} ({two.num_users} and "
            f"{one.num_users}; {which}); {remedy}"
        )
    index = torch.cat([torch.zeros(1, dtype=torch.int64),
                       torch.from_numpy(one.items.encode(two.items.ids))])  # fmt: skip
    for part in PARTS:
        mine, its = first.targets(part), index[other.targets(part)]
        if not torch.equal(mine, its):
            user = int((mine != its).nonzero()[0])
            here, there = (repr(one.items.decode(found[[user]])[0]) if found[user] else "none"
                           for found in (mine, its))  # fmt: skip
            raise ConfigError(
                f"{name}: has another split than {base}: the {part} item of the user "
                f"{one.users.decode([user])[0]!r} is {there} there "
                f"and {here} in {base}, and so for "
                f"{int((mine != its).sum())} of {mine.numel()} users; {remedy}"
            )
        if not torch.equal(first.users(part), other.users(part)):
            raise ConfigError(f"{name}: asks other users in its {part} part than {base}; {remedy}")
    (values, offsets), (others, its_offsets) = first.inputs("test"), other.inputs("test")
    lengths = torch.minimum(offsets.diff(), its_offsets.diff())
    latest, _ = gather_ranges(values, offsets[1:] - lengths, lengths)
    its_latest, _ = gather_ranges(index[others], its_offsets[1:] - lengths, lengths)
    if not torch.equal(latest, its_latest):
        place = int((latest != its_latest).nonzero()[0])
        user = int(torch.repeat_interleave(torch.arange(lengths.numel()), lengths)[place])
        raise ConfigError(
            f"{name}: trained on other histories than {base}, such as that of the user "
            f"{one.users.decode([user])[0]!r}; {remedy}"
        )

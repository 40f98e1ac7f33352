"""Full-catalogue ranking: HR, NDCG, MRR, Recall and MAP at k, on all users, on sparse ones and on
segments of them, and what the lists are like.

Ranks and metrics are defined in :mod:`.ranks`, measures of lists in :mod:`.lists`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..clustering import kmeans, normalized_mutual_info
from ..config import ConfigError
from ..data import EvaluationBatch, EvaluationBatches, PlantedLabels, Split
from ..data.flat import gather_ranges
from ..defaults import on_cpu
from ..models.base import SequenceModel
from ..models.evaluating import evaluating
from .lists import ListMeasures
from .ranks import METRICS, UNREACHABLE, SeenMask, ranking_metrics, target_ranks
from .segments import Segments
from .several import best_ranks, relevant_ranks, several_metrics
from .sharded import sharded_target_ranks

if TYPE_CHECKING:
    from ..distributed import Workers

__all__ = [
    "EvaluationResult",
    "Scorer",
    "evaluate",
    "normalized_mutual_info",
    "ranking_metrics",
    "target_ranks",
]



@runtime_checkable
class Scorer(Protocol):
    """Anything that scores the catalogue for a chunk of users; see :mod:`.baselines`."""

    name: str

    def scores(self, batch: EvaluationBatch) -> Tensor:
        """Floating scores [B, num_items + 1] of the batch's users; column 0 is ignored."""


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What :func:`evaluate` measured.

    Attributes:
        name: the model's or scorer's name.
        part: ``"valid"`` or ``"test"``.
        seen_mask: what was done to seen items.
        ks: the cut-offs.
        num_users: users evaluated.
        num_sparse: those with at most 5 items of history at test time.
        num_unreachable: targets that were masked, or are none of the catalogue.
        overall: ``"HR@5"``, ``"NDCG@5"``, ``"MRR@5"``, ``"Recall@5"``, ...: means over users.
        sparse: the same over the sparse users; None if there are none.
        ranks: int64 [num_users] on the CPU, in the order of ``users``.
        diagnostics: what the model told of itself, by name; of an ADARec ``mean_depth``,
            ``depth_share`` and ``gate``. They can be read as attributes, too.
        nmi: on planted data, ``"coarse/theme"`` and ``"fine/subtheme"``: normalised mutual
            information of clusters of the representations with users' planted intents.
        seconds: time taken.
        notes: the diagnostics in words, a line each.
        lists: ``"Coverage@5"``, ``"Novelty@5"``, ``"Diversity@5"``, ``"Popularity@5"``,
            ``"Gini@5"``, ...: what the k best of all users are like, see :mod:`.lists`; None
            where it was not asked for.
        sparse_lists: those that are means over users, over the sparse ones.
        segments: by segmentation and group: ``"users"``, the metrics, and those measures of
            lists that are means over users.
        num_unseen: targets that are none of the catalogue: a miss, and counted as one.
        num_cold: users who have a target, but no history; they are not evaluated.
        targets: ``"next"`` or ``"all"``; of several targets ``ranks`` has each user's best.
    """

    name: str
    part: str
    seen_mask: str
    ks: tuple[int, ...]
    num_users: int
    num_sparse: int
    num_unreachable: int
    overall: dict[str, float]
    sparse: dict[str, float] | None
    ranks: Tensor
    diagnostics: dict[str, Any]
    nmi: dict[str, float] | None
    seconds: float
    notes: tuple[str, ...] = ()
    lists: dict[str, float] | None = None
    sparse_lists: dict[str, float] | None = None
    segments: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    num_unseen: int = 0
    num_cold: int = 0
    targets: str = "next"

    def __getattr__(self, name: str) -> Any:
        told = self.__dict__.get("diagnostics", {})
        if name in told:
            return told[name]
        raise AttributeError(f"an evaluation of {self.__dict__.get('name')} has no {name!r}")

    def __repr__(self) -> str:
        lines = [f"EvaluationResult of {self.name!r}: {self.part}, {self.num_users:,} users"]
        for label, metrics in (("all", self.overall), ("sparse", self.sparse)):
            if metrics is not None:
                shown = [f"{name} {metrics[name]:.4f}" for name in self.columns(self.ks)[2:]]
                lines.append(f"  {label}: {', '.join(shown[-3:])}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values of every field but ``ranks`` and ``notes``, diagnostics among them."""
        values = {**vars(self), "ks": list(self.ks)}
        for name in ("ranks", "notes"):
            del values[name]
        return values | values.pop("diagnostics")

    @staticmethod
    def columns(ks: Sequence[int] = (5, 10, 20)) -> tuple[str, ...]:
        """The header of ``rows``."""
        return ("model", "users", *(f"{name}@{k}" for k in ks for name in METRICS[:3]))

    def rows(self) -> list[tuple[str, ...]]:
        """Table rows, over all users and over sparse ones; Recall, equal to HR, is left out."""
        rows = []
        for label, metrics in (("all", self.overall), ("sparse", self.sparse)):
            if metrics is not None:
                names = self.columns(self.ks)[2:]
                rows.append((self.name, label, *(f"{metrics[name]:.4f}" for name in names)))
        return rows

    def records(self) -> list[dict[str, Any]]:
        """All figures as flat rows: ``model``, ``part``, ``segment`` (``users`` for all and for
        sparse ones), ``group``, ``users`` and a value a metric. ``pandas.DataFrame`` takes them.
        """
        groups: list[tuple[str, str, dict[str, float]]] = [
            ("users", "all", {"users": self.num_users, **self.overall, **(self.lists or {})})
        ]
        if self.sparse is not None:
            few = {"users": self.num_sparse, **self.sparse, **(self.sparse_lists or {})}
            groups.append(("users", "sparse", few))
        groups += [(s, g, m) for s, found in self.segments.items() for g, m in found.items()]
        return [
            {"model": self.name, "part": self.part, "segment": segment, "group": group, **metrics}
            for segment, group, metrics in groups
        ]


@on_cpu()
@torch.no_grad()
def evaluate(
    model: nn.Module | Scorer,
    split: Split,
    part: Literal["valid", "test"] = "test",
    *,
    ks: Sequence[int] = (5, 10, 20),
    seen_mask: SeenMask = "neg-inf",
    batch_size: int = 1024,
    users: Tensor | None = None,
    device: torch.device | str | None = None,
    name: str | None = None,
    intents: bool = True,
    workers: Workers | None = None,
    lists: bool = False,
    item_vectors: Tensor | None = None,
    segments: Sequence[Segments] = (),
    targets: Literal["next", "all"] = "next",
    trained_on: Split | None = None,
) -> EvaluationResult:
    """Rank the whole catalogue for every user, a chunk of users at a time.

    Args:
        model: a :class:`~adarec_fast.models.base.SequenceModel` (evaluated in evaluation mode,
            whatever its own, which stays as it is), or a :class:`Scorer`.
        split: of interactions with the catalogue that the model knows.
        part: which held-out item to predict.
        ks: cut-offs.
        seen_mask: ``"neg-inf"``: items of the history are no candidates; ``"official"``: they
            score 0, as in the paper's authors' code; ``"off"``: they compete.
        batch_size: users a chunk; the largest matrix is [batch_size, num_items + 1].
        users: int64 indices of the users to evaluate, by default all who are asked in ``part``.
        device: where chunks are built; the model's device, or the CPU for a scorer.
        name: name in the result, by default the class name or the scorer's ``name``.
        intents: also cluster the representations, if the split's data has planted labels; not
            with several workers.
        workers: who rank together, each its part of the users (or, with a split item table, its
            part of the items); all of them get the whole result.
        lists: also say what the k best of all users are like, see :mod:`.lists`. What is masked
            by -inf stands in no list. Not with several workers.
        item_vectors: float [num_items + 1, D], what diversity goes by; by default the model's own
            table where it learned one and ranks by it, else there is no diversity.
        segments: groups of users that get their own metrics, see :mod:`.segments`.
        targets: ``"next"``: the first item behind a cut is relevant; ``"all"``: all items behind
            it are, see :mod:`.several`; not with several workers. Of leave-one-out it is the same.
        trained_on: whose training part novelty and popularity of lists go by, of the same
            catalogue; by default ``split`` itself, which interactions that came later are not.

    Raises:
        ValueError: an argument is out of range, the catalogue is another, or scores are NaN.
        ConfigError: nothing was held out of the data.
    """
    begun = time.perf_counter()
    if not isinstance(seen_mask, str) or seen_mask not in ("neg-inf", "official", "off"):
        raise ValueError(f"seen_mask={seen_mask!r} must be 'neg-inf', 'official' or 'off'")
    if not isinstance(split, Split):
        raise ValueError(f"split is a {type(split).__name__}; it must be a Split of the data")
    if targets not in ("next", "all") or (targets == "all" and workers is not None):
        raise ValueError(f"targets={targets!r} must be 'next', or 'all' in one process")
    several = isinstance(ks, Sequence) and len(ks) > 0
    if not several or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks={ks!r} must be one or more ints of at least 1")
    if isinstance(model, nn.Module):
        model = evaluating(model)
    if isinstance(model, SequenceModel):
        if model.config.num_items != split.num_items:
            raise ValueError(
                f"the model knows {model.config.num_items} items, the split has "
                f"{split.num_items}: evaluate on the catalogue that the model was trained on"
            )
        scorer: Scorer = _ModelScorer(model)
        max_length = model.config.max_length
        device = device or model.device
    elif isinstance(model, Scorer):
        scorer, device = model, device or "cpu"
        max_length = max(1, int(split.data.lengths.max()))
    else:
        raise ValueError(
            f"model is a {type(model).__name__}; it must be a SequenceModel, or have a name and "
            "scores(batch)"
        )
    known = split if trained_on is None else trained_on
    if known.num_items != split.num_items:
        raise ValueError(
            f"trained_on has {known.num_items} items, the split {split.num_items}: both must be "
            "of the model's catalogue"
        )
    if lists and workers is not None:
        raise ValueError("lists=True needs all users in one process; leave workers out")
    for one in segments:
        if one.index.shape != (split.num_users,):
            raise ValueError(
                f"segments: {one.name} is of {one.index.numel()} users, the split has "
                f"{split.num_users}"
            )
    if users is not None and not isinstance(users, Tensor):
        raise ValueError(f"users is a {type(users).__name__}; it must be an int64 tensor")
    chosen = split.users(part) if users is None else users.cpu()
    if not chosen.numel():
        if not split.holds_out:
            raise ConfigError(
                f"{split.data.name}: all of it was trained on, so that there is no {part} part to "
                "evaluate on; interactions that came later are one (--data FILE)"
            )
        raise ValueError("users is empty: there is nobody to evaluate")
    # With a split item table all workers rank all users, each among its own items.
    sharing = workers if isinstance(scorer, _ModelScorer) and scorer.whole_table else None
    batches = EvaluationBatches(
        split,
        part,
        batch_size=batch_size,
        max_length=max_length,
        users=chosen if sharing is None else chosen[sharing.part(chosen.numel())],
        device=device,
    )
    measured: ListMeasures | None = None
    if lists:
        if item_vectors is None and isinstance(model, SequenceModel):
            item_vectors = None if model.fitted or not model.by_products else model.table()
        train = known.inputs("train")
        measured = ListMeasures(ks, *train, split.num_items, item_vectors, device)
    ranks = [torch.zeros(0, dtype=torch.int64, device=device)]
    asked = _relevant(split, part, chosen) if targets == "all" else None
    for batch, rows in zip(batches, torch.arange(chosen.numel()).split(batch_size), strict=False):
        scores = scorer.scores(batch)
        if asked is not None:
            own = (tensor.to(device) for tensor in asked.of(rows))
            ranks.append(relevant_ranks(scores, batch, seen_mask, *own))
        elif isinstance(scorer, _ModelScorer):
            ranks.append(scorer.ranks(scores, batch, seen_mask))
        else:
            ranks.append(target_ranks(scores, batch, seen_mask))
        if measured is not None:
            measured.add_best(scores)  # masked by now
    if workers is not None:
        workers.meet()
    rank = torch.cat(ranks).cpu()
    if sharing is not None:
        rank = sharing.whole(rank, chosen.numel())
    if bool((rank < 1).any()):
        raise ValueError(
            f"{int((rank < 1).sum())} of {rank.numel()} users have NaN scores; the model's "
            "parameters are not finite, or its backbone divides by zero"
        )
    sparse = split.sparse_users()[chosen]
    unreachable, num_unseen = (rank == UNREACHABLE).sum(), (split.targets(part)[chosen] == 0).sum()
    worth: dict[str, Tensor] | None = None
    if asked is not None:
        worth = several_metrics(rank, asked.offsets, asked.unseen, ks)
        num_unseen = asked.unseen.sum()
        rank, unreachable = best_ranks(rank, asked.offsets), unreachable + num_unseen

    def means(users: Tensor) -> dict[str, float]:
        if worth is None:
            return ranking_metrics(rank[users], ks)
        return {name: float(values[users].mean()) for name, values in worth.items()}

    told: dict[str, Any] = {}
    notes: list[str] = []
    nmi = None
    if isinstance(scorer, _ModelScorer) and isinstance(model, SequenceModel):
        if sharing is not None:
            for part_of_users in scorer.observer.sums():
                sharing.sum(part_of_users)
        told, notes = scorer.observer.read(), scorer.observer.notes()
        labels = split.data.labels
        if intents and labels is not None and workers is None:
            nmi = _planted_intents(model, batches, labels)
    return EvaluationResult(
        name=name or scorer.name,
        part=part,
        seen_mask=seen_mask,
        ks=tuple(ks),
        num_users=rank.numel(),
        num_sparse=int(sparse.sum()),
        num_unreachable=int(unreachable),
        overall=means(torch.ones_like(sparse)),
        sparse=means(sparse) if bool(sparse.any()) else None,
        ranks=rank,
        diagnostics=told,
        nmi=nmi,
        seconds=time.perf_counter() - begun,
        notes=tuple(notes),
        lists=None if measured is None else measured.read(),
        sparse_lists=measured.read(sparse) if measured is not None and bool(sparse.any()) else None,
        segments={
            one.name: {
                label: {
                    "users": int(mask.sum()),
                    **means(mask),
                    **({} if measured is None else measured.read(mask)),
                }
                for label, mask in one.chosen(chosen).items()
            }
            for one in segments
        },
        num_unseen=int(num_unseen),
        num_cold=split.cold_users(part) if users is None else 0,
        targets=targets,
    )


class _Relevant(NamedTuple):
    """:meth:`Split.relevant` of those who are asked, in their order."""

    items: Tensor
    offsets: Tensor
    unseen: Tensor

    def of(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """The row of each item of some neighbouring users among these, and the items."""
        rows = torch.repeat_interleave(users - users[0], self.offsets.diff()[users])
        return rows, self.items[self.offsets[users[0]] : self.offsets[users[-1] + 1]]


def _relevant(split: Split, part: Literal["valid", "test"], users: Tensor) -> _Relevant:
    items, offsets, unseen = split.relevant(part)
    items, chosen = gather_ranges(items, offsets[users], offsets.diff()[users])
    return _Relevant(items, chosen, unseen[users])


class _ModelScorer:
    """Scores of a model, and what it tells on the way."""

    def __init__(self, model: SequenceModel) -> None:
        self.name = type(model).__name__
        self._items, self._memory = model.sharded, model.memory
        self.observer = model.diagnostics().observer()

    @property
    def whole_table(self) -> bool:
        """Whether this process has all items, not one worker's part of them."""
        return self._items is None

    def ranks(self, scores: Tensor, batch: EvaluationBatch, seen_mask: SeenMask) -> Tensor:
        """Ranks of the targets in the whole catalogue; scores are overwritten where masked."""
        if self._items is None:
            return target_ranks(scores, batch, seen_mask)
        return sharded_target_ranks(scores, batch, seen_mask, self._items)

    def scores(self, batch: EvaluationBatch) -> Tensor:
        scores = self.observer.scores(batch)
        if self._memory is not None:
            self._memory.add_to(scores, batch.item_ids, batch.offsets)
        return scores


def _planted_intents(
    model: SequenceModel, batches: EvaluationBatches, labels: PlantedLabels
) -> dict[str, float] | None:
    """Whether vectors that the model names recover users' planted themes and sub-themes."""
    told = model.diagnostics()
    vectors: dict[str, list[Tensor]] = {}
    users = []
    for batch in batches:
        for name, points in told.intents(batch.item_ids, batch.offsets).items():
            vectors.setdefault(name, []).append(points.float())
        users.append(batch.users)
    chosen = torch.cat(users).cpu()
    result = {}
    for name, parts in vectors.items():
        planted: Tensor = getattr(labels, f"user_{name.partition('/')[2]}")
        label = planted[chosen]
        # Cosine geometry, as that of Eq. 6.
        points = nn.functional.normalize(torch.cat(parts), dim=1)
        clusters = kmeans(points, min(int(label.unique().numel()), points.shape[0]))
        result[name] = normalized_mutual_info(clusters, label)
    return result or None

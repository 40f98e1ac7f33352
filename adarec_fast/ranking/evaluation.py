"""Full-catalogue ranking: HR, NDCG, MRR and Recall at k, on all users and on sparse ones.

Ranks and metrics are defined in :mod:`.ranks`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..clustering import kmeans, normalized_mutual_info
from ..data import EvaluationBatch, EvaluationBatches, PlantedLabels, Split
from ..models.adarec.model import ADARec
from .ranks import METRICS, UNREACHABLE, SeenMask, ranking_metrics, target_ranks

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
        num_unreachable: those whose target was masked.
        overall: ``"HR@5"``, ``"NDCG@5"``, ``"MRR@5"``, ``"Recall@5"``, ...: means over users.
        sparse: the same over the sparse users; None if there are none.
        ranks: int64 [num_users] on the CPU, in the order of ``users``.
        mean_depth: mean of T_u; None for a scorer.
        depth_share: [T+1], share of users at each depth; None for a scorer.
        gate: [T+1], mean g_k over the users that reach level k, None where none does; None for a
            scorer and without HP-MoE.
        nmi: on planted data, ``"coarse/theme"`` and ``"fine/subtheme"``: normalised mutual
            information of clusters of the representations with users' planted intents.
        seconds: time taken.
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
    mean_depth: float | None
    depth_share: list[float] | None
    gate: list[float | None] | None
    nmi: dict[str, float] | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values of every field but ``ranks``."""
        values = {**vars(self), "ks": list(self.ks)}
        del values["ranks"]
        return values

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
) -> EvaluationResult:
    """Rank the whole catalogue for every user, a chunk of users at a time.

    Args:
        model: an :class:`ADARec` (evaluated in evaluation mode, its mode is restored), or a
            :class:`Scorer`.
        split: leave-one-out split of the catalogue that the model knows.
        part: which held-out item to predict.
        ks: cut-offs.
        seen_mask: ``"neg-inf"``: items of the history are no candidates; ``"official"``: they
            score 0, as in the paper's authors' code; ``"off"``: they compete.
        batch_size: users a chunk; the largest matrix is [batch_size, num_items + 1].
        users: int64 indices of the users to evaluate, all by default.
        device: where chunks are built; the model's device, or the CPU for a scorer.
        name: name in the result, by default the class name or the scorer's ``name``.
        intents: also cluster the representations, if the split's data has planted labels; not
            with several workers.
        workers: who rank together, each its part of the users (or, with a split item table, its
            part of the items); all of them get the whole result.

    Raises:
        ValueError: an argument is out of range, the catalogue is another, or scores are NaN.
    """
    begun = time.perf_counter()
    if seen_mask not in ("neg-inf", "official", "off"):
        raise ValueError(f"seen_mask={seen_mask!r} must be 'neg-inf', 'official' or 'off'")
    if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks={tuple(ks)!r} must be one or more ints of at least 1")
    if isinstance(model, ADARec):
        if model.config.num_items != split.num_items:
            raise ValueError(
                f"the model knows {model.config.num_items} items, the split has "
                f"{split.num_items}: evaluate on the catalogue that the model was trained on"
            )
        scorer: Scorer = _ModelScorer(model)
        max_length = model.config.max_length
        device = device or model.item_embedding.weight.device
    elif isinstance(model, Scorer):
        scorer, device = model, device or "cpu"
        max_length = max(1, int(split.data.lengths.max()))
    else:
        raise ValueError(
            f"model is a {type(model).__name__}; it must be an ADARec, or have a name and "
            "scores(batch)"
        )
    chosen = torch.arange(split.num_users) if users is None else users.cpu()
    if not chosen.numel():
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
    was_training = isinstance(model, nn.Module) and model.training
    ranks = [torch.zeros(0, dtype=torch.int64, device=device)]
    try:
        if isinstance(model, nn.Module):
            model.eval()
        for batch in batches:
            if isinstance(scorer, _ModelScorer):
                ranks.append(scorer.ranks(batch, seen_mask))
            else:
                ranks.append(target_ranks(scorer.scores(batch), batch, seen_mask))
    finally:
        if isinstance(model, nn.Module):
            model.train(was_training)
    rank = torch.cat(ranks).cpu()
    if sharing is not None:
        rank = sharing.whole(rank, chosen.numel())
    if bool((rank < 1).any()):
        raise ValueError(
            f"{int((rank < 1).sum())} of {rank.numel()} users have NaN scores; the model's "
            "parameters are not finite, or its backbone divides by zero"
        )
    sparse = split.sparse_users()[chosen]
    overall = ranking_metrics(rank, ks)
    depth: dict[str, Any] = {"mean_depth": None, "depth_share": None, "gate": None}
    nmi = None
    if isinstance(scorer, _ModelScorer) and isinstance(model, ADARec):
        depth = scorer.depths(sharing)
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
        num_unreachable=int((rank == UNREACHABLE).sum()),
        overall=overall,
        sparse=ranking_metrics(rank[sparse], ks) if bool(sparse.any()) else None,
        ranks=rank,
        nmi=nmi,
        seconds=time.perf_counter() - begun,
        **depth,
    )


class _ModelScorer:
    """Scores of an :class:`ADARec`, and the depths and gates it used on the way."""

    def __init__(self, model: ADARec) -> None:
        self.name = type(model).__name__
        self._model = model
        levels, device = model.config.num_levels, model.item_embedding.weight.device
        self._counts = torch.zeros(levels, dtype=torch.float64, device=device)
        self._gates = torch.zeros(levels, dtype=torch.float64, device=device)
        self._has_gates = True

    @property
    def whole_table(self) -> bool:
        """Whether this process has all items, not one worker's part of them."""
        return isinstance(self._model.item_embedding, nn.Embedding)

    def ranks(self, batch: EvaluationBatch, seen_mask: SeenMask) -> Tensor:
        """Ranks of the targets in the whole catalogue."""
        scores, items = self.scores(batch), self._model.item_embedding
        if isinstance(items, nn.Embedding):
            return target_ranks(scores, batch, seen_mask)
        from .sharded import sharded_target_ranks

        return sharded_target_ranks(scores, batch, seen_mask, items)

    def scores(self, batch: EvaluationBatch) -> Tensor:
        output = self._model((batch.item_ids, batch.offsets), return_gates=True)
        ones = torch.ones_like(output.depth, dtype=torch.float64)
        self._counts.index_add_(0, output.depth, ones)
        if output.gates is None:
            self._has_gates = False
        else:
            levels = torch.arange(output.gates.shape[0], device=output.depth.device)
            reached = levels[:, None] <= output.depth
            self._gates += torch.where(reached, output.gates.double(), 0.0).sum(1)
        return self._model.score(output.user)

    def depths(self, workers: Workers | None) -> dict[str, Any]:
        """``mean_depth``, ``depth_share`` and ``gate`` of an :class:`EvaluationResult`.

        ``workers``: each of them saw a part of the users.
        """
        if workers is not None:
            workers.sum(self._counts)
            workers.sum(self._gates)
        counts = self._counts.cpu()
        users = counts.sum()
        reached = counts.flip(0).cumsum(0).flip(0).tolist()
        gates = self._gates.tolist()
        return {
            "mean_depth": float((counts * torch.arange(counts.numel())).sum() / users),
            "depth_share": (counts / users).tolist(),
            "gate": [
                total / number if number else None
                for total, number in zip(gates, reached, strict=True)
            ]
            if self._has_gates
            else None,
        }


def _planted_intents(
    model: ADARec, batches: EvaluationBatches, labels: PlantedLabels
) -> dict[str, float]:
    """Whether coarse and fine representations recover users' planted themes and sub-themes."""
    fine, coarse, users = [], [], []
    for batch in batches:
        found = model.representations((batch.item_ids, batch.offsets))
        fine.append(found["fine"].float())
        coarse.append(found["coarse"].float())
        users.append(batch.users)
    chosen = torch.cat(users).cpu()
    result = {}
    for name, parts, planted in (
        ("coarse/theme", coarse, labels.user_theme),
        ("fine/subtheme", fine, labels.user_subtheme),
    ):
        label = planted[chosen]
        # Cosine geometry, as that of Eq. 6.
        points = nn.functional.normalize(torch.cat(parts), dim=1)
        clusters = kmeans(points, min(int(label.unique().numel()), points.shape[0]))
        result[name] = normalized_mutual_info(clusters, label)
    return result

"""What lists of recommendations are beside right: how much of the catalogue they show, how new,
how varied, how popular.

With R_u the k best items of user u, n_i the users and c_i the interactions of item i in the
training part, of N users, and V items:

==============  ==================================================================================
Coverage@k      share of the catalogue that stands in some list (RecBole's ``ItemCoverage``)
Novelty@k       mean over users, then items of R_u, of -log2(n_i / N); an item that nobody had
                counts as one that one user had (RecTools' ``MeanInvUserFreq``)
Popularity@k    mean over users, then items of R_u, of c_i (RecTools' ``AvgRecPopularity``)
Diversity@k     mean over users of the mean of 1 - cos(v_i, v_j) over pairs of R_u (RecTools'
                ``IntraListDiversity``); 0 for a list of one
Gini@k          of how often each item of the catalogue is recommended: 0 where all are as often, 1
                - 1/V where one has all places (RecBole's ``GiniIndex``)
==============  ==================================================================================

Lists are added a chunk of users at a time. What stays is a count an item and k, and a number a
user, k and measure: never a matrix of users and items.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ragged
from ..packed.score_topk import ordered

MEASURES = ("Coverage", "Novelty", "Diversity", "Popularity", "Gini")
# Those that are means over users, so that a part of the users has its own.
BY_USER = ("Novelty", "Diversity", "Popularity")
_BLOCK_ROWS = 64  # of scores that are sorted at once, as in .ranks


class ListMeasures:
    """The measures of this module, over chunks of users.

    Args:
        ks: cut-offs, each at least 1.
        values, offsets: jagged training histories, int64: ``split.inputs("train")``.
        num_items: V.
        vectors: float ``[V+1, D]``, row 0 padding; None: no diversity.

    Example:
        >>> import torch
        >>> from adarec_fast.ranking.lists import ListMeasures
        >>> history, offsets = torch.tensor([1, 2, 1]), torch.tensor([0, 2, 3])
        >>> measures = ListMeasures([2], history, offsets, num_items=4)
        >>> measures.add(torch.tensor([[3, 4], [2, 3]]))
        >>> measures.read()["Coverage@2"]
        0.75
    """

    def __init__(
        self,
        ks: Sequence[int],
        values: Tensor,
        offsets: Tensor,
        num_items: int,
        vectors: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if vectors is not None and (vectors.dim() != 2 or vectors.shape[0] != num_items + 1):
            raise ValueError(
                f"item_vectors has the shape {list(vectors.shape)}; it must be "
                f"[{num_items + 1}, D], with row 0 for padding"
            )
        self._ks = tuple(dict.fromkeys(ks))
        self.longest = min(max(ks), num_items)
        users = int((offsets.diff() > 0).sum())
        owner = ragged.sequence_ids(offsets, values.numel())
        pairs = torch.unique(owner * (num_items + 1) + values)  # a user's repeats count once
        buyers = torch.bincount(pairs % (num_items + 1), minlength=num_items + 1).double()
        self._novelty = (max(users, 1) / buyers.clamp(min=1)).log2().to(device)
        self._popularity = torch.bincount(values, minlength=num_items + 1).double().to(device)
        self._vectors = None
        if vectors is not None:
            self._vectors = F.normalize(vectors.detach().float(), dim=1).to(device)
        shape = (len(self._ks), num_items + 1)
        self._counts = torch.zeros(shape, dtype=torch.int64, device=device)
        self._users: dict[str, list[Tensor]] = {}

    def add_best(self, scores: Tensor) -> None:
        """The lists of a chunk of users, from scores ``[B, V+1]`` in which what cannot be
        recommended is -inf; equal scores in the order of the items."""
        for some in scores.split(_BLOCK_ROWS):
            best, items = ordered(some[:, 1:], self.longest)
            self.add(torch.where(best > float("-inf"), items + 1, 0))

    def add(self, items: Tensor) -> None:
        """int64 ``[B, K]``, best first; 0 where a list is over."""
        for place, k in enumerate(self._ks):
            some = items[:, :k]
            there = some > 0
            found = there.sum(1).double()
            size = found.clamp(min=1)
            self._counts[place] += torch.bincount(some.flatten(), minlength=self._counts.shape[1])
            for name, worth in (("Novelty", self._novelty), ("Popularity", self._popularity)):
                self._keep(f"{name}@{k}", (worth[some] * there).sum(1) / size)
            if self._vectors is not None:
                vectors = self._vectors[some] * there[..., None]
                # Over all ordered pairs, i = j left out: |sum of v|^2 - sum of |v|^2.
                alike = vectors.sum(1).square().sum(1) - vectors.square().sum((1, 2))
                pairs = found * (found - 1)
                apart = (1 - alike / pairs.clamp(min=1)).clamp(0, 2)
                self._keep(f"Diversity@{k}", torch.where(pairs > 0, apart, 0.0))

    def _keep(self, name: str, values: Tensor) -> None:
        self._users.setdefault(name, []).append(values.float())

    def read(self, chosen: Tensor | None = None) -> dict[str, float]:
        """Means over users by name, such as ``"Novelty@10"``; over the whole of them, what the
        catalogue shows, too.

        Args:
            chosen: bool ``[U]``, whose lists count, in the order in which they were added; at
                least one. Coverage and Gini are then left out: they are of all lists.
        """
        means = {}
        for name, parts in self._users.items():
            values = torch.cat(parts).double().cpu()
            means[name] = float((values if chosen is None else values[chosen]).mean())
        if chosen is None:
            for k, counts in zip(self._ks, self._counts[:, 1:].cpu(), strict=True):
                means[f"Coverage@{k}"] = float((counts > 0).double().mean())
                means[f"Gini@{k}"] = gini(counts)
        return {
            f"{name}@{k}": means[f"{name}@{k}"]
            for k in self._ks for name in MEASURES if f"{name}@{k}" in means
        }  # fmt: skip


def gini(counts: Tensor) -> float:
    """Gini's coefficient of counts ``[V]``, each at least 0; 0 where all are 0.

    ``sum_i (2 i - V - 1) c_i / (V sum_i c_i)`` over the counts in rising order, i from 1.
    """
    rising = counts.double().sort().values
    total = float(rising.sum())
    if not total:
        return 0.0
    number = rising.numel()
    place = torch.arange(1, number + 1, dtype=torch.float64, device=rising.device)
    return float(((2 * place - number - 1) * rising).sum() / (number * total))

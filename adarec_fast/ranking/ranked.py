"""A ranking in indices and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ..ragged import brief

_SHOWN, _SHOWN_USERS = 8, 3


class Ranking(NamedTuple):
    """The k best items of B users.

    Diagnostics can be read as attributes: ``ranking.depth`` is ``ranking.diagnostics["depth"]``.

    Attributes:
        items: int64 ``[B, k]``.
        scores: ``[B, k]``, falling; -inf behind the last item that may be recommended.
        diagnostics: what the model tells of each user, ``[B]`` by name; of an ADARec ``depth``,
            T_u.

    Example:
        >>> ranking = recommender.recommend([[1, 9], [4]], k=3)
        >>> ranking.items.shape, ranking.depth.shape
        (torch.Size([2, 3]), torch.Size([2]))
    """

    items: Tensor
    scores: Tensor
    diagnostics: Mapping[str, Tensor] = {}

    def __getattr__(self, name: str) -> Tensor:
        if not name.startswith("_") and name in self.diagnostics:
            return self.diagnostics[name]
        raise AttributeError(f"this ranking has no {name!r}")

    def __repr__(self) -> str:
        if self.items.dim() != 2 or self.items.is_meta:
            return f"Ranking(items={brief(self.items)}, scores={brief(self.scores)})"
        told = "".join(f", {name}" for name in self.diagnostics)
        lines = [f"Ranking: {self.items.shape[0]:,} users, {self.items.shape[1]} items{told}"]
        lines += [
            f"  {row}: {', '.join(map(str, items[:_SHOWN]))}{', …' * (len(items) > _SHOWN)}"
            for row, items in enumerate(self.items[:_SHOWN_USERS].tolist())
        ]
        return "\n".join(lines)

    def first(self, users: int) -> Ranking:
        """Of so many users alone.

        Example:
            >>> recommender.recommend([[1, 9], [4]], k=3).first(1).items.shape
            torch.Size([1, 3])
        """
        told = {name: tensor[:users] for name, tensor in self.diagnostics.items()}
        return Ranking(self.items[:users], self.scores[:users], told)

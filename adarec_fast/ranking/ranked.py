"""A ranking in indices and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Ranking(NamedTuple):
    """The k best items of B users.

    Diagnostics can be read as attributes: ``ranking.depth`` is ``ranking.diagnostics["depth"]``.

    Attributes:
        items: int64 ``[B, k]``.
        scores: ``[B, k]``, falling; -inf behind the last item that may be recommended.
        diagnostics: what the model tells of each user, ``[B]`` by name; of an ADARec ``depth``,
            T_u.
    """

    items: Tensor
    scores: Tensor
    diagnostics: Mapping[str, Tensor] = {}

    def __getattr__(self, name: str) -> Tensor:
        if not name.startswith("_") and name in self.diagnostics:
            return self.diagnostics[name]
        raise AttributeError(f"this ranking has no {name!r}")

    def first(self, users: int) -> Ranking:
        """Of so many users alone."""
        told = {name: tensor[:users] for name, tensor in self.diagnostics.items()}
        return Ranking(self.items[:users], self.scores[:users], told)

"""A whole request, from item numbers to the k best items, as one call into the C++ extension.

For one user the ops take less time than what stands between them: torch's dispatch, tensors for
what only the next op reads, and the packing of weights in every call. Here the weights are packed
once, in the order in which a request reads them, and the same kernels are called one after the
other.

The table may be *screened*: an int8 copy of it (D + 8 bytes an item, where the table has 4 D) is
read first, with bounds of what each score can be, and only items that can be among the k best are
scored in float32. The ranking is the same to the last bit (``csrc/cpu/screen.cpp``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._library import choose, has_kernel
from .memory_topk import TransitionWeights

# Users of one call. Beyond, packing and dispatch are small beside the kernels, and what lies
# between these would be held in scratch for good.
MOST_USERS = 64


class RequestParts(NamedTuple):
    """A model as :class:`Serving` takes it.

    Attributes:
        weights: float32 tensors by the names of ``csrc/bindings/request.cpp``; the modules' own.
        settings: numbers by name.
        ops: whose kernels are called; all of them must be the extension's.
    """

    weights: Mapping[str, Tensor]
    settings: Mapping[str, float]
    ops: tuple[str, ...]

    def joined(self, other: RequestParts) -> RequestParts:
        """Both."""
        return RequestParts(
            {**self.weights, **other.weights}, {**self.settings, **other.settings},
            (*self.ops, *other.ops),
        )  # fmt: skip


class Serving:
    """A model and its table, packed; weights that change later are not followed.

    Args:
        parts: the model.
        table: float32 ``[V+1, D]``, contiguous.
        memory: what is added to the scores, or None.
        screened: whether the table's int8 copy is made.
    """

    def __init__(
        self, parts: RequestParts, table: Tensor, memory: TransitionWeights | None, *,
        screened: bool,
    ) -> None:
        weights, settings = dict(parts.weights), dict(parts.settings)
        weights["table"] = table
        settings["screened"] = float(screened)
        if memory is not None:
            for name in ("rows", "neighbours", "weights"):
                weights[f"memory.{name}"] = getattr(memory, name)
            for name in ("alpha", "gamma", "decay"):
                settings[f"memory.{name}"] = float(getattr(memory, name))
        settings = {name: float(value) for name, value in settings.items()}
        weights = {name: tensor.detach() for name, tensor in weights.items()}
        self._made = torch.classes.adarec_fast_cpp.Serving(weights, settings)
        # Found once: looking a method up costs as much as a small op.
        self._answer, self._answer_one = self._made.answer, self._made.answer_one
        self.catalogue = table.shape[0] - 1

    @staticmethod
    def suits(parts: RequestParts | None, table: Tensor, backend: str, memory: bool) -> bool:
        """Whether the extension's kernels run all of a model's requests."""
        if parts is None or table.dtype != torch.float32 or not table.is_contiguous():
            return False
        where = backend, table.device.type, table.dtype
        ops = (*parts.ops, "score_topk", *(("memory_topk",) if memory else ()))
        return all(has_kernel(op, *where) and choose(op, *where) == "cpp" for op in ops)

    def answer(
        self, values: Tensor, offsets: Tensor, seen: Tensor | None, seen_offsets: Tensor | None,
        k: int,
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """The k best items of up to ``MOST_USERS`` users.

        Args:
            values: int64 ``[N]``, items 1..V; of a history the last ``max_length`` are read.
            offsets: int64 ``[B+1]``; no history is empty.
            seen: int64, what may not come, packed; None: the histories.
            seen_offsets: int64 ``[B+1]``.
            k: 1..V.

        Returns:
            Scores ``[B, k]``, items int64 ``[B, k]``, and depths int64 ``[B]``, empty for a model
            that has none; or None where an argument is not as it must be.
        """
        found: tuple[Tensor, Tensor, Tensor] | None = self._answer(
            values, offsets, seen, seen_offsets, k
        )
        return found

    def of_lists(
        self, histories: Any, k: Any, exclude_seen: bool
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Likewise of one history in a list, ``[[3, 17]]``, which becomes no tensor."""
        if len(histories) != 1 or type(k) is not int or not 1 <= k <= self.catalogue:
            return None
        history = histories[0]
        if type(history) is not list or not history or not {int}.issuperset(map(type, history)):
            return None
        if min(history) < 1 or max(history) > self.catalogue:
            return None
        found: tuple[Tensor, Tensor, Tensor] | None = self._answer_one(
            history, bool(exclude_seen), k
        )
        return found

    @property
    def screen_bytes(self) -> int:
        """Of the table's int8 copy; 0 where there is none."""
        found: int = self._made.screen_bytes()
        return found

"""What every ranking may add to a model's scores: item-to-item weights of the training histories.

A vector of a few dozen numbers cannot hold which two items are bought together; a table of pairs
can. With R the :mod:`.regression` of next items on histories, or the :mod:`.transitions` counted in
them, item j of a user with history i_1..i_n gains

    alpha log(1 + gamma S_j),   S_j = sum_s decay^s R[i_{n-s}, j]

so that alpha = 0 is the model alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from ..config import ConfigError
from ..documents import DocumentError, parse_json, read_text
from ..files import save_file
from ..ops import TransitionWeights
from ..packed.memory_topk import add_remembered, history_sums
from .regression import Ridge, regression
from .transitions import Recipe, transitions

TENSORS, VALUES = "memory.safetensors", "memory.json"
NEIGHBOURS = 128
Kind = Literal["regression", "transitions"]
_VALUES = ("alpha", "gamma", "decay", "max_length", "kind", "most")
# A memory of transitions fades a history by this, unless it is told otherwise; one of a regression
# by what the regression does.
_DECAY = 0.8


def known_kind(kind: object, name: str = "kind") -> Kind:
    """``kind``, if it is one.

    Raises:
        ConfigError: there is none of that name; says ``name``, and which there are.
    """
    for one in get_args(Kind):
        if kind == one:
            return cast("Kind", one)
    raise ConfigError(f"{name}={kind!r} is not known; there are {', '.join(get_args(Kind))}")


class Memory(nn.Module):
    """Item-to-item weights and how they are read; buffers that a model's ``state_dict`` leaves out.

    Args:
        rows, neighbours, weights: R in CSR form, see :class:`ops.TransitionWeights`.
        alpha, gamma, decay: finite, >= 0.
        max_length: items of a history that are read, its last ones.
        kind: where the weights come from, so that they can be found anew.
        most: M, the largest weights that were kept of an item, likewise.

    Raises:
        ValueError: a shape, a dtype or a value that does not fit.
    """

    rows: Tensor
    neighbours: Tensor
    weights: Tensor

    def __init__(
        self,
        rows: Tensor,
        neighbours: Tensor,
        weights: Tensor,
        *,
        alpha: float,
        gamma: float,
        decay: float,
        max_length: int,
        kind: Kind = "transitions",
        most: int = NEIGHBOURS,
    ) -> None:
        super().__init__()
        for name, given, dtype in (
            ("rows", rows, torch.int64),
            ("neighbours", neighbours, torch.int32),
            ("weights", weights, torch.float32),
        ):
            if given.dim() != 1 or given.dtype != dtype:
                raise ValueError(
                    f"{name} is {given.dtype} {list(given.shape)}; it must be {dtype}, of one axis"
                )
            self.register_buffer(name, given.contiguous(), persistent=False)
        self.alpha, self.gamma, self.decay = alpha, gamma, decay
        self.max_length, self.kind, self.most = max_length, kind, most
        self._check()
        self.widest = int(rows.diff().max())

    def _check(self) -> None:
        entries, items = self.neighbours.shape[0], self.rows.shape[0] - 2
        rising = items >= 1 and bool((self.rows.diff() >= 0).all())
        if not rising or self.rows[:2].any() or int(self.rows[-1]) != entries:
            raise ValueError(
                f"rows must be [V+2], begin with 0, 0, never fall and end at {entries}, the number "
                "of neighbours"
            )
        if self.weights.shape[0] != entries:
            raise ValueError(f"weights has {self.weights.shape[0]} entries, neighbours {entries}")
        if entries and not 1 <= int(self.neighbours.min()) <= int(self.neighbours.max()) <= items:
            raise ValueError(f"neighbours must lie in 1..{items}, the number of items")
        if entries and not bool(((self.weights >= 0) & self.weights.isfinite()).all()):
            raise ValueError("weights must be finite and at least 0")
        for name in ("alpha", "gamma", "decay"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value!r} must be a finite number of at least 0")
        for name in ("max_length", "most"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        known_kind(self.kind)

    @classmethod
    def of(
        cls,
        values: Tensor,
        offsets: Tensor,
        num_items: int,
        *,
        max_length: int,
        kind: Kind = "transitions",
        neighbours: int = NEIGHBOURS,
        alpha: float = 0.75,
        gamma: float = 100.0,
        decay: float | None = None,
    ) -> Memory:
        """Find the weights of histories, in seconds.

        Args:
            values: int64 ``[N]``, items 1..num_items, on the CPU.
            offsets: int64 ``[U+1]``.
            num_items: V.
            max_length: items of a history that a ranking reads.
            kind: by a regression, or counts.
            neighbours: M, the largest weights kept of an item.
            alpha, gamma: until they are fitted.
            decay: by default that of the kind.
        """
        if kind == "regression":
            ridge = Ridge() if decay is None else Ridge(decay=decay)
            decay = ridge.decay
            found = regression(values, offsets, num_items, ridge, neighbours)
        else:
            decay = _DECAY if decay is None else decay
            found = transitions(values, offsets, num_items, Recipe(), neighbours)
        return cls(
            found.rows, found.items, found.weights, alpha=alpha, gamma=gamma, decay=decay,
            max_length=max_length, kind=kind, most=neighbours,
        )  # fmt: skip

    @property
    def num_items(self) -> int:
        """V."""
        return self.rows.shape[0] - 2

    def reads(self) -> TransitionWeights:
        """The same as the ops take it."""
        return TransitionWeights(
            self.rows, self.neighbours, self.weights, self.widest, self.alpha, self.gamma,
            self.decay,
        )  # fmt: skip

    def add_to(self, scores: Tensor, values: Tensor, offsets: Tensor) -> None:
        """Add to scores ``[B, V+1]``, in place; -inf stays.

        Args:
            scores: of the model.
            values: int64 ``[N]``, histories of at most ``max_length`` items.
            offsets: int64 ``[B+1]``.
        """
        add_remembered(scores, values, offsets, *self.reads())

    def sums(self, values: Tensor, offsets: Tensor) -> Tensor:
        """S ``[B, V+1]`` in float32, of jagged histories of at most ``max_length`` items."""
        users = offsets.shape[0] - 1
        read = self.rows, self.neighbours, self.weights, self.widest, self.decay
        return history_sums(users, values, offsets, *read)[0].view(users, -1)

    # ------------------------------------------------------------------ on disk

    def write(self, folder: Path) -> None:
        """Write ``memory.safetensors`` and ``memory.json`` into an existing folder."""
        tensors = {name: buffer.cpu() for name, buffer in self.named_buffers()}
        save_file(tensors, folder / TENSORS)
        values = {name: getattr(self, name) for name in _VALUES}
        (folder / VALUES).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(
        cls, tensors: dict[str, Tensor], path: Path, num_items: int, most: int = NEIGHBOURS
    ) -> Memory:
        """Inverse of :meth:`write`.

        Args:
            tensors: of ``memory.safetensors``.
            path: of ``memory.json``.
            num_items: of the model's catalogue.
            most: what the model's configuration says, for files that do not say it.

        Raises:
            ValueError: a file is damaged, or of another catalogue.
        """
        names = {"rows", "neighbours", "weights"}
        if tensors.keys() != names:
            raise ValueError(f"{path.with_name(TENSORS)}: must hold {', '.join(sorted(names))}")
        try:
            values: Any = parse_json(read_text(path))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
        except DocumentError as error:
            raise ValueError(f"{path}: {error}") from None
        if isinstance(values, dict):
            # There was no other kind once, and M stood in the configuration alone.
            values = {"kind": "transitions", "most": most, **values}
        if not isinstance(values, dict) or values.keys() != set(_VALUES):
            raise ValueError(f"{path}: must hold {', '.join(sorted(_VALUES))}")
        try:
            memory = cls(
                tensors["rows"], tensors["neighbours"], tensors["weights"], **values
            )
        except ValueError as error:
            raise ValueError(f"{path.with_name(TENSORS)}: {error}") from None
        if memory.num_items != num_items:
            raise ValueError(
                f"{path.with_name(TENSORS)}: of {memory.num_items} items; the model has {num_items}"
            )
        return memory

"""Packed batches, gathered from flat arrays on whatever device these lie on.

No function here loops over users: an epoch's order is one permutation, a batch is a slice of it
and a few gathers. The number of tokens of each batch is known on the host beforehand, so that
building a batch on a GPU never waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ..defaults import on_cpu
from .errors import DataError
from .flat import gather_ranges, lengths_to_offsets, range_positions
from .splits import Split

Supervision = Literal["prefix", "all", "cloze", "windows"]
SUPERVISIONS: tuple[Supervision, ...] = get_args(Supervision)


def every_position(supervision: str) -> bool:
    """Whether an example has a target a position, not one a history."""
    return supervision in ("all", "cloze")


class Batch(NamedTuple):
    """B packed training sequences of N tokens in all; every tensor int64.

    Attributes:
        item_ids: [N], item indices of the inputs.
        offsets: [B + 1], where each sequence begins in ``item_ids``.
        targets: [B] under ``"prefix"`` (the item after each sequence), [N] under ``"all"``
            (the item after each position) or ``"cloze"`` (the item itself); [B, T] under
            ``"windows"``, 0 where a history has no such item.
        users: [B], user index of each sequence.
    """

    item_ids: Tensor
    offsets: Tensor
    targets: Tensor
    users: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class EvaluationBatch(NamedTuple):
    """B packed histories to predict from, with what to mask; every tensor int64.

    Attributes:
        item_ids: [N], the last ``max_length`` items of each history.
        offsets: [B + 1].
        targets: [B], the held-out item; 0: one that the catalogue does not have.
        users: [B], user index of each history.
        seen_values: [M], all items of each history, however long.
        seen_offsets: [B + 1].
    """

    item_ids: Tensor
    offsets: Tensor
    targets: Tensor
    users: Tensor
    seen_values: Tensor
    seen_offsets: Tensor

    @classmethod
    def of_nobody(cls, values: Tensor, offsets: Tensor) -> EvaluationBatch:
        """Of histories that come without their users, as a request's do; nothing is held out.

        Example:
            >>> values, offsets = torch.tensor([3, 1, 4]), torch.tensor([0, 2, 3])
            >>> EvaluationBatch.of_nobody(values, offsets).users.tolist()
            [-1, -1]
        """
        nobody = offsets.new_full((offsets.shape[0] - 1,), -1)
        return cls(values, offsets, torch.zeros_like(nobody), nobody, values, offsets)

    def to(self, device: torch.device | str) -> EvaluationBatch:
        """The same batch on another device."""
        return EvaluationBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class TrainingBatches:
    """Epochs of shuffled training batches over jagged training histories.

    Args:
        values: int64 [N], item indices of the training histories (``Split.inputs("train")``).
        offsets: int64 [U + 1].
        supervision: ``"prefix"``: every prefix of a history that is followed by an item is an
            example, read out at its end; ``"all"``: every history of at least two items is one
            example, each position predicting the next; ``"cloze"``: every history is one example,
            whole, for a model that hides some of its items and predicts them; ``"windows"``:
            every window of ``max_length + window_targets`` items, whose last ``window_targets``
            are targets, and of a history shorter than that the history; some have no input.
        batch_size: examples a batch.
        max_length: longest input; longer ones keep their last ``max_length`` items.
        window_targets: T, targets of a window, under ``"windows"``.
        seed: with the epoch's number, all that the order depends on.
        device: where the arrays live and batches are built.
        drop_last: leave out the last batch of an epoch when it is not full.

    Raises:
        ValueError: an argument is out of range (named in the message).
        DataError: no history has two items, or, under ``"windows"``, more than T.

    Example:
        >>> values, offsets = split.inputs("train")
        >>> batches = af.TrainingBatches(values, offsets, batch_size=4, max_length=10, seed=0)
        >>> batches.num_examples == split.training_prefixes()
        True
    """

    @on_cpu()
    def __init__(
        self,
        values: Tensor,
        offsets: Tensor,
        *,
        supervision: Supervision = "prefix",
        batch_size: int,
        max_length: int,
        window_targets: int = 1,
        seed: int,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
    ) -> None:
        if not isinstance(supervision, str) or supervision not in SUPERVISIONS:
            allowed = " or ".join(map(repr, SUPERVISIONS))
            raise ValueError(f"supervision={supervision!r} must be {allowed}")
        _check_positive(
            batch_size=batch_size, max_length=max_length, window_targets=window_targets
        )
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed!r} must be an int in 0 .. 2**63 - 1")
        for name, tensor in (("values", values), ("offsets", offsets)):
            right = isinstance(tensor, Tensor) and tensor.layout == torch.strided
            if not right or tensor.dtype != torch.int64 or tensor.dim() != 1:
                raise ValueError(f"{name} must be int64 and of one axis, got {tensor!r:.80}")
        whole = offsets.numel() > 0 and int(offsets[0]) == 0 and bool((offsets.diff() >= 0).all())
        if not whole or int(offsets[-1]) > values.numel():
            raise ValueError(
                f"offsets must run from 0 to at most {values.numel()}, the length of values, and "
                "not fall"
            )
        self.supervision = supervision
        self.batch_size = batch_size
        self.max_length = max_length
        self.seed = seed
        self.device = torch.device(device)
        self.drop_last = drop_last

        offsets = offsets.cpu()
        lengths = offsets[1:] - offsets[:-1]
        if supervision == "prefix":
            # Example j of a history of n items reads items 0..j and predicts item j + 1.
            per_user = (lengths - 1).clamp(min=0)
            users = torch.repeat_interleave(torch.arange(lengths.numel()), per_user)
            ends, _ = range_positions(offsets[:-1] + 1, per_user)
            sizes = (ends - offsets[users]).clamp(max=max_length)
        elif supervision == "cloze":
            users = torch.nonzero(lengths >= 1).flatten()
            ends = offsets[1:][users]
            sizes = lengths[users].clamp(max=max_length)
        elif supervision == "windows":
            _check_windows(lengths, window_targets)
            whole_ones = lengths - (max_length + window_targets) + 1
            windows = torch.where(lengths > 0, whole_ones.clamp(min=1), 0)
            users = torch.repeat_interleave(torch.arange(lengths.numel()), windows)
            # A history's windows, from the last one back, end at its end and each an item earlier.
            first = lengths_to_offsets(windows)[:-1]
            behind = offsets[1:][users] - (torch.arange(users.numel()) - first[users])
            ends = torch.maximum(behind - window_targets, offsets[:-1][users])
            sizes = (ends - offsets[:-1][users]).clamp(max=max_length)
            # Targets that lie before the history's begin are none.
            places = behind[:, None] - window_targets + torch.arange(window_targets)
            places = torch.where(places >= offsets[:-1][users][:, None], places, -1)
            self._window_places = places.to(self.device)
        else:
            users = torch.nonzero(lengths >= 2).flatten()
            ends = offsets[1:][users] - 1
            sizes = (lengths[users] - 1).clamp(max=max_length)
        if users.numel() == 0:
            raise DataError(
                "no training history has two items, so there is nothing to learn from; "
                "leave-one-out needs histories of at least 4"
            )
        self._sizes = sizes
        self._values = values.to(self.device)
        self._users = users.to(self.device)
        self._starts = (ends - sizes).to(self.device)
        self._device_sizes = sizes.to(self.device)

    @property
    def num_examples(self) -> int:
        return self._sizes.numel()

    def __repr__(self) -> str:
        return (
            f"TrainingBatches: {self.num_examples:,} examples ({self.supervision!r}), "
            f"{len(self):,} batches of {self.batch_size:,} an epoch, on {self.device}"
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(self.num_examples, self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def epoch(self, e: int, start: int = 0) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, … of epoch ``e``.

        The order depends on ``(seed, e)`` alone: starting at a later batch gives exactly the
        batches that an uninterrupted epoch would have given from there on.

        Raises:
            ValueError: ``e`` is negative or ``start`` is outside ``0..len(self)``.

        Example:
            >>> sum(len(batch.targets) for batch in batches.epoch(0)) == batches.num_examples
            True
        """
        self.check_start(e, start)
        return self._epoch(e, start)

    def check_start(self, e: int, start: int) -> None:
        """Raise as :meth:`epoch` does.

        Example:
            >>> batches.check_start(0, len(batches))
        """
        if e < 0:
            raise ValueError(f"epoch e={e} must be at least 0")
        if not 0 <= start <= len(self):
            raise ValueError(f"start={start} must be in 0..{len(self)} (batches an epoch)")

    def _epoch(self, e: int, start: int) -> Iterator[Batch]:
        order = self.order(e)
        bounds = torch.arange(len(self) + 1, device="cpu") * self.batch_size
        bounds.clamp_(max=self.num_examples)
        totals = self.tokens_before(order)[bounds].diff().tolist()
        order = order.to(self.device)
        for index in range(start, len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            yield self.gather(chosen, totals[index])

    @on_cpu()
    def order(self, e: int) -> Tensor:
        """int64 [num_examples] on the CPU, the examples in the order of epoch ``e``.

        Example:
            >>> sorted(batches.order(0).tolist()) == list(range(batches.num_examples))
            True
        """
        generator = torch.Generator()  # always on the CPU: one order for every device
        state = np.random.SeedSequence([self.seed, e]).generate_state(1, np.uint64)
        generator.manual_seed(int(state[0] >> np.uint64(1)))
        return torch.randperm(self.num_examples, generator=generator)

    def tokens_before(self, order: Tensor) -> Tensor:
        """int64 [n + 1], tokens before each of n examples in this order, and of all, on the CPU.

        Example:
            >>> len(batches.tokens_before(batches.order(0))) == batches.num_examples + 1
            True
        """
        return lengths_to_offsets(self._sizes[order])

    def gather(self, chosen: Tensor, total: int) -> Batch:
        """The batch of some examples (on ``device``), which have ``total`` tokens.

        Example:
            >>> chosen = batches.order(0)[:2]
            >>> batches.gather(chosen, int(batches.tokens_before(chosen)[-1])).offsets.shape
            torch.Size([3])
        """
        starts, sizes = self._starts[chosen], self._device_sizes[chosen]
        positions, offsets = range_positions(starts, sizes, total)
        target_positions = positions if self.supervision == "cloze" else positions + 1
        if self.supervision == "prefix":
            target_positions = starts + sizes
        if self.supervision == "windows":
            target_positions = self._window_places[chosen]
        targets = self._values[target_positions.clamp(min=0)]
        if self.supervision == "windows":
            targets = targets.masked_fill(target_positions < 0, 0)
        return Batch(self._values[positions], offsets, targets, self._users[chosen])


class EvaluationBatches:
    """Histories and targets of one part of a split, in chunks of users.

    Args:
        split: of the interactions.
        part: ``"valid"`` or ``"test"``.
        batch_size: users a batch.
        max_length: histories keep their last ``max_length`` items; what is to be masked
            (``seen``) is never cut.
        users: int64 user indices to evaluate, in this order; by default all who are asked in
            ``part``.
        device: where the arrays live and batches are built.

    Raises:
        ValueError: an argument is out of range (named in the message).
        DataError: ``users`` holds an index outside ``0..num_users-1``.
    """

    @on_cpu()
    def __init__(
        self,
        split: Split,
        part: Literal["valid", "test"],
        *,
        batch_size: int,
        max_length: int,
        users: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_positive(batch_size=batch_size, max_length=max_length)
        targets = split.targets(part)
        values, offsets = split.inputs(part)
        if users is None:
            users = split.users(part)
        else:
            if users.dtype != torch.int64 or users.dim() != 1:
                raise ValueError(
                    f"users must be 1-D int64 indices, got {users.dtype} {list(users.shape)}; "
                    "a bool mask is turned into indices by torch.nonzero(mask).flatten()"
                )
            users = users.cpu()
            wrong = (users < 0) | (users >= split.num_users)
            if bool(wrong.any()):
                raise DataError(
                    f"user index {int(users[wrong][0])} is outside 0..{split.num_users - 1}"
                )
        self.part = part
        self.batch_size = batch_size
        self.max_length = max_length
        self.device = torch.device(device)
        self.num_users = users.numel()
        lengths = (offsets[1:] - offsets[:-1])[users]
        self._seen_totals = self._totals(lengths)
        self._totals_kept = self._totals(lengths.clamp(max=max_length))
        self._values = values.to(self.device)
        self._ends = offsets[1:][users].to(self.device)
        self._lengths = lengths.to(self.device)
        self._targets = targets[users].to(self.device)
        self._users = users.to(self.device)

    def _totals(self, lengths: Tensor) -> list[int]:
        """Tokens of each batch."""
        bounds = (torch.arange(len(self) + 1) * self.batch_size).clamp(max=self.num_users)
        totals: list[int] = lengths_to_offsets(lengths)[bounds].diff().tolist()
        return totals

    def __len__(self) -> int:
        return -(-self.num_users // self.batch_size)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        for index in range(len(self)):
            part = slice(index * self.batch_size, (index + 1) * self.batch_size)
            ends, lengths = self._ends[part], self._lengths[part]
            kept = lengths.clamp(max=self.max_length)
            item_ids, offsets = gather_ranges(
                self._values, ends - kept, kept, self._totals_kept[index]
            )
            seen_values, seen_offsets = gather_ranges(
                self._values, ends - lengths, lengths, self._seen_totals[index]
            )
            yield EvaluationBatch(
                item_ids,
                offsets,
                self._targets[part],
                self._users[part],
                seen_values,
                seen_offsets,
            )


def pack(sequences: Sequence[Sequence[int]], max_length: int) -> tuple[Tensor, Tensor]:
    """Lists of item indices as a jagged pair ``(values [N], offsets [B + 1])``, int64.

    Sequences longer than ``max_length`` keep their last items.

    Raises:
        ValueError: ``max_length`` is under 1.
        DataError: a sequence is empty, or holds something that is not an int of at least 1.
    """
    _check_positive(max_length=max_length)
    kept = [list(sequence[-max_length:]) for sequence in sequences]
    for number, sequence in enumerate(kept):
        if not sequence:
            raise DataError(f"sequences[{number}] is empty; a history needs at least one item")
        for item in sequence:
            if isinstance(item, bool) or not isinstance(item, (int, np.integer)) or item < 1:
                raise DataError(
                    f"sequences[{number}] holds {item!r}; item indices are ints of at least 1 "
                    "(external ids are turned into indices by items.encode)"
                )
    values = torch.tensor([item for sequence in kept for item in sequence], dtype=torch.int64)
    lengths = torch.tensor([len(sequence) for sequence in kept], dtype=torch.int64)
    return values, lengths_to_offsets(lengths)


def _check_windows(lengths: Tensor, window_targets: int) -> None:
    """Windows of which none has an input teach nothing."""
    longest = int(lengths.amax()) if lengths.numel() else 0
    if longest <= window_targets:
        raise DataError(
            f"window_targets={window_targets}: no training history has more items than that (the "
            f"longest has {longest}), so that no window has an input; use at most "
            f"{max(1, longest - 1)}, or longer histories"
        )


def _check_positive(**arguments: int) -> None:
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise ValueError(f"{name}={value!r} must be an int of at least 1")

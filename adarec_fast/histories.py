"""The model's border: histories come in padded, packed or as lists, and leave packed."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import chain
from typing import Any, NoReturn, TypeGuard

import numpy as np
import torch
from torch import Tensor

from . import ragged

History = Tensor | tuple[Tensor, Tensor]
_UNORDERED = (str, bytes, bytearray, Mapping, Set)


def is_packed(histories: Any) -> TypeGuard[History]:
    """Whether these are tensors, padded or a jagged pair, and not a sequence of lists."""
    return isinstance(histories, Tensor) or (
        isinstance(histories, tuple)
        and bool(histories)
        and all(isinstance(part, Tensor) for part in histories)
    )


def pack_lists(
    histories: Any, device: torch.device, *, name: str = "histories"
) -> ragged.Jagged:
    """Lists of item ids as a jagged pair on a device; rows may be arrays or tensors of ints.

    Args:
        histories: a list of ids for every user.
        device: of the result.
        name: of the argument, for errors.

    Raises:
        ValueError: what is no list of lists of ints, naming row and value.
    """
    strided = not isinstance(histories, Tensor) or histories.layout == torch.strided
    if not strided or isinstance(histories, _UNORDERED) or not _can_be_read(histories):
        raise ValueError(
            f"{name} is a {type(histories).__name__}; it must be a list of lists of item ids, one "
            "for each user"
        )
    rows = histories if isinstance(histories, list) else list(histories)
    if not {list, tuple}.issuperset(map(type, rows)):
        rows = [as_row(row, f"{name}[{place}]") for place, row in enumerate(rows)]
    flat = list(chain.from_iterable(rows))
    if not {int}.issuperset(map(type, flat)):
        rows = [
            [_id(item, f"{name}[{place}][{at}]") for at, item in enumerate(row)]
            for place, row in enumerate(rows)
        ]
        flat = list(chain.from_iterable(rows))
    try:
        values = torch.from_numpy(np.array(flat, dtype=np.int64))  # a third of torch.tensor's time
    except (RuntimeError, ValueError, OverflowError):  # beyond 64 bits
        place, at = next(
            (place, at) for place, row in enumerate(rows) for at, item in enumerate(row)
            if not -(2**63) <= item < 2**63
        )  # fmt: skip
        raise ValueError(
            f"{name}[{place}][{at}] is {rows[place][at]}: item id outside the catalogue"
        ) from None
    ends = np.array([0, *map(len, rows)], dtype=np.int64).cumsum()
    return ragged.Jagged(values.to(device), torch.from_numpy(ends).to(device))


def _can_be_read(given: Any) -> bool:
    # Tensors and arrays of no axis, and classes, only seem to be iterable.
    return (
        isinstance(given, Iterable) and not isinstance(given, type)
        and getattr(given, "ndim", 1) != 0
    )  # fmt: skip


def as_row(row: Any, where: str) -> Sequence[Any]:
    """A row as something to go through in its order."""
    if isinstance(row, (list, tuple)):
        return row
    if isinstance(row, (Tensor, np.ndarray)):
        if row.ndim != 1 or (isinstance(row, Tensor) and row.layout != torch.strided):
            raise ValueError(f"{where} has shape {list(row.shape)}; it must be a list of item ids")
        found: list[Any] = row.tolist()
        return found
    if isinstance(row, _UNORDERED) or not _can_be_read(row):
        _refuse(row, where, "a list of item ids, oldest first")
    return list(row)


def _id(item: Any, where: str) -> int:
    if isinstance(item, Tensor):
        item = item.item() if item.numel() == 1 else item
    if not isinstance(item, (bool, np.bool_)):
        try:
            return operator.index(item)
        except TypeError:
            pass
    _refuse(item, where, "an int, an item's index")


def _refuse(value: Any, where: str, right: str) -> NoReturn:
    hint = ""
    if isinstance(value, (str, bytes)):
        hint = "; external ids become indices by item_vocabulary.encode(ids)"
    shown = repr(value)
    if len(shown) > 60:
        shown = f"{shown[:60]}…"
    raise ValueError(f"{where} is {shown}, a {type(value).__name__}; it must be {right}{hint}")


def check_k(k: Any, num_items: int) -> int:
    """How many items to recommend.

    Raises:
        ValueError: it is no int, or not in 1..num_items.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise ValueError(f"k={k!r} must be an int, and must lie in 1..{num_items}")
    if not 1 <= k <= num_items:
        raise ValueError(f"k={k!r} must lie in 1..{num_items}, the number of items")
    return int(k)


def check_histories(
    item_ids: History, lengths: Tensor | None, *, num_items: int, crop: int | None
) -> ragged.Jagged:
    """Packed histories, checked, each cut to its last ``crop`` items.

    Reads the input on the host. A graph under compilation cannot; it asserts the shape of the
    histories where it runs, and keeps all N or B L places, those behind the last item as capacity.

    Args:
        item_ids: int64 ``[B, L]`` padded with 0 on one side, or a pair (values ``[N]``,
            offsets ``[B+1]``).
        lengths: optional int64 ``[B]`` for the padded form.
        num_items: ids are 1..num_items.
        crop: longest history, or None to keep all.

    Raises:
        ValueError: a shape, dtype, length or id that does not fit, naming the argument.
        RuntimeError: a compiled graph was given histories that are not whole.
    """
    if lengths is not None and not isinstance(item_ids, Tensor):
        raise ValueError("lengths goes with padded item_ids; the offsets already say it")
    if torch.compiler.is_compiling():
        if isinstance(item_ids, Tensor):
            _assert_whole_rows(item_ids, lengths)
            return ragged.packed_in_place(item_ids, crop)
        packed = ragged.Jagged(*item_ids)
        _assert_in_graph(
            ragged.are_offsets(packed.offsets, packed.values.shape[0]),
            "offsets must begin at 0, rise, and end within the values",
        )
        return packed if crop is None else ragged.keep_last_in_place(*packed, crop)
    if not is_packed(item_ids) or (isinstance(item_ids, tuple) and len(item_ids) != 2):
        raise ValueError(
            f"item_ids is a {type(item_ids).__name__}; it must be int64 [B, L], padded with 0, or "
            "a jagged pair (values [N], offsets [B+1]); recommend takes lists, too"
        )
    if (item_ids if isinstance(item_ids, Tensor) else item_ids[0]).is_meta:
        raise ValueError(
            "item_ids are on the meta device, where tensors hold no values; make them, and the "
            "model, on the CPU or a GPU (torch.set_default_device may have chosen it)"
        )
    if isinstance(item_ids, Tensor):
        if lengths is not None and not isinstance(lengths, Tensor):
            raise ValueError(f"lengths is a {type(lengths).__name__}; it must be int64 [B]")
        values, offsets = ragged.from_padded_ids(item_ids, lengths)
    else:
        values, offsets = item_ids
        _check_int64(values, "item ids", "[N]")
    ragged.check_offsets(offsets, values.shape[0])
    check_ids(values, offsets, num_items)
    if crop is not None and int(offsets[-1]) and int(ragged.lengths(offsets).max()) > crop:
        return ragged.keep_last(values, offsets, crop)
    return ragged.Jagged(values, offsets)


def _assert_whole_rows(item_ids: Tensor, lengths: Tensor | None) -> None:
    _assert_in_graph(
        ragged.runs_of_items(item_ids) == 1,
        "item_ids: a row has no item, or padding (0) between items; pad on one side only",
    )
    if lengths is not None:
        _assert_in_graph((item_ids != 0).sum(1) == lengths, "lengths disagree with the padding")


def _assert_in_graph(holds: Tensor, message: str) -> None:
    """Stop a compiled graph, which cannot read what it is given, unless all of ``holds``. An
    exported program has a guard before it instead."""
    if not torch.compiler.is_exporting():
        torch._assert_async(holds.all(), message)


def check_ids(values: Tensor, offsets: Tensor, num_items: int, what: str = "") -> None:
    """Refuse ids outside 1..num_items with a ValueError that begins with ``what`` and names the
    row. Reads them on the host."""
    end = int(offsets[-1])
    if not end:
        return
    low, high = int(values[:end].min()), int(values[:end].max())
    if low < 1 or high > num_items:
        wrong = low if low < 1 else high
        place = int((values[:end] == wrong).nonzero()[0])
        row = int(torch.searchsorted(offsets[1:].contiguous(), place, right=True))
        raise ValueError(
            f"{what}item id {wrong} is outside the catalogue, 1..{num_items} (row {row})"
        )


def check_seen(seen: tuple[Tensor, Tensor], users: int, num_items: int) -> None:
    """Jagged items to leave out: values ``[N]`` and offsets ``[users + 1]``, a list may be empty.

    Raises:
        ValueError: a shape, dtype or id that does not fit.
    """
    if not is_packed(seen) or isinstance(seen, Tensor) or len(seen) != 2:
        raise ValueError(
            f"seen is a {type(seen).__name__}; it must be a jagged pair (values [N], offsets "
            f"[{users + 1}])"
        )
    values, offsets = seen
    _check_int64(values, "seen: values", "[N]")
    _check_int64(offsets, "seen: offsets", f"[{users + 1}]")
    whole = offsets.shape[0] == users + 1 and int(offsets[0]) == 0
    if not whole or int(offsets[-1]) > values.shape[0] or bool((offsets.diff() < 0).any()):
        raise ValueError(
            f"seen: offsets must be {users + 1} numbers from 0 to at most {values.shape[0]} that "
            "do not fall"
        )
    check_ids(values, offsets, num_items, "seen: ")


def check_targets(targets: Tensor, num_items: int) -> None:
    """Items asked for: int64, 1..num_items, or 0 where none is. Reads them on the host; a graph
    under compilation trusts them.

    Raises:
        ValueError: they are not.
    """
    if torch.compiler.is_compiling():
        return
    if not isinstance(targets, Tensor):
        raise ValueError(f"targets is a {type(targets).__name__}; it must be an int64 tensor")
    _check_int64(targets, "targets", "[B] or [N]")
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) <= num_items:
        wrong = targets[(targets < 0) | (targets > num_items)][0]
        raise ValueError(f"targets: item id {int(wrong)} is outside the catalogue, 1..{num_items}")


def _check_int64(tensor: Tensor, what: str, shape: str) -> None:
    if tensor.dtype != torch.int64 or tensor.dim() != 1 or tensor.layout != torch.strided:
        raise ValueError(
            f"{what} must be int64 {shape}, got {ragged.described(tensor)}"
        )

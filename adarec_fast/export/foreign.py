"""What a program does with inputs that are not as the manifest asks: right answers, or none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .check import Request
from .errors import ExportError

_USERS = 5


class Case(NamedTuple):
    """An input.

    Attributes:
        name: what is foreign to it.
        inputs: the program's.
        rows: of the request, that an answer must be right for; None: it must be refused.
        by_graph: the graph itself has to refuse it, by looking beyond an end.
    """

    name: str
    inputs: tuple[Tensor, ...]
    rows: Tensor | None
    by_graph: bool = False


def check_foreign(
    name: str,
    call: Callable[..., tuple[Tensor, ...]],
    given: Sequence[Request],
    right: Callable[[tuple[Tensor, ...], Request], Tensor],
    *,
    seen: bool,
    num_items: int,
    longest: int,
    max_batch: int,
) -> dict[str, str]:
    """Give a program everything that callers give by mistake.

    Args:
        name: of the program, for the message.
        call: the program, from its inputs in their order.
        given: from :func:`.check.requests`.
        right: whether each row of an answer, ``[B]``, is right.
        seen: whether it has the second input.
        num_items: ids are 1..num_items.
        longest: most items of a history.
        max_batch: most users.

    Returns:
        For each case ``"answered"`` or ``"refused"``.

    Raises:
        ExportError: an answer is wrong, or is given where there is none.
    """
    request = max(given, key=lambda request: request.item_ids.shape[0])
    request = request.rows(torch.arange(min(_USERS, request.item_ids.shape[0])))
    told = {}
    for case in _cases(request, seen, num_items, longest, max_batch):
        if case.by_graph and request.item_ids.is_cuda:
            continue  # that ends the process's use of the GPU
        try:
            with _quiet():
                answer = call(*case.inputs)
        except Exception:
            told[case.name] = "refused"
            continue
        wrong = case.rows is None or not bool(right(answer, request.rows(case.rows)).all())
        if wrong:
            raise ExportError(
                f"{name} answers {case.name} wrongly, where it has to refuse; the input was "
                f"{[tensor.dtype for tensor in case.inputs]} "
                f"{[tensor[:_USERS].tolist() for tensor in case.inputs]}"
            )
        told[case.name] = "answered"
    return told


def _cases(
    request: Request, with_seen: bool, num_items: int, longest: int, max_batch: int
) -> Iterator[Case]:
    ids, seen = request.item_ids, request.seen
    users, width = ids.shape
    everybody = torch.arange(users, device=ids.device)

    def inputs(ids: Tensor, seen: Tensor = seen) -> tuple[Tensor, ...]:
        return (ids, seen) if with_seen else (ids,)

    def case(name: str, ids: Tensor, seen: Tensor = seen) -> Case:
        return Case(name, inputs(ids, seen), everybody)

    yield case("columns cut out of a wider tensor", _cut(ids), _cut(seen))
    yield case("a transposed tensor", ids.T.contiguous().T, seen.T.contiguous().T)
    yield case("every second place of a tensor", _spread(ids), _spread(seen))
    yield case("padding on the left", _left(ids), _left(seen))
    yield case("int32 ids", ids.int(), seen.int())
    for dtype in (torch.float32, torch.float64, torch.bool):
        yield Case(f"{dtype} ids", inputs(ids.to(dtype), seen.to(dtype)), None)
    wide = F.pad(ids, (0, longest + 1 - width))
    yield case("a row wider than the longest history", wide)
    many = torch.arange(max_batch + 1, device=ids.device) % users
    yield Case("more users than the maximum", inputs(ids[many], seen[many]), many)
    yield Case("one axis", inputs(ids[0], seen[0]), None)
    first = torch.zeros_like(ids, dtype=torch.bool)
    first[-1, 0] = True
    for what, value in (
        ("an id of -1", -1), ("an id beyond the catalogue", num_items + 1),
        ("an id beyond 32 bits", 2**40), ("the least id of all", -(2**63)),
    ):  # fmt: skip
        yield Case(what, inputs(ids.masked_fill(first, value)), None, True)
    empty = ids.clone()
    empty[-1] = 0
    yield Case("a row without an item", inputs(empty), None, True)
    yield Case("rows of no places", inputs(ids[:, :0]), None, True)
    if longest > 2:
        hole = F.pad(ids, (0, max(0, 3 - width)))
        hole[-1, :3] = torch.tensor([1, 0, 1], device=ids.device)
        yield Case("a 0 between two items", inputs(hole), None, True)
    full = torch.ones_like(ids[:, :1]).expand(-1, longest + 1)
    yield Case("a history longer than the longest", inputs(full), None, True)
    if with_seen:
        for value in (-1, num_items + 1):
            beyond = F.pad(seen, (0, 1), value=value)
            yield Case(f"a seen item {value}", inputs(ids, beyond), None, True)
        if users > 1:
            yield Case("one row of seen items for all", inputs(ids, seen[:1]), None)
        yield Case("a row of seen items too many", inputs(ids, seen[[0, *range(users)]]), None)


def _cut(ids: Tensor) -> Tensor:
    """The last columns of twice as many, the rest being other items."""
    return torch.cat([ids.flip(0), ids], 1)[:, ids.shape[1] :]


def _spread(ids: Tensor) -> Tensor:
    return ids.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]


def _left(ids: Tensor) -> Tensor:
    place = torch.arange(ids.shape[1], device=ids.device)
    return ids.gather(1, (place + (ids != 0).sum(1, keepdim=True)) % ids.shape[1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Runtimes print every refusal to the standard error, below Python."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)

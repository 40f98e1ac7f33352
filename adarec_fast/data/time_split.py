"""A split by global time: what lies before a moment trains, what lies behind it tests.

The moment cuts the histories of all users at once, as on the day on which a model goes into use. A
second one before it ends training and begins validation. An interaction at the very moment lies
behind it, so that ties never fall on both sides.

Nothing behind a cut is known before it: the catalogue is that of the training part, filters count
what lies before the test cut, and an item that comes up later is no candidate, no part of a
history, and a miss where it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cuts import PARTS, Cuts, distinct
from .dataset import Dropped, InteractionData
from .errors import DataError
from .moments import DAY, SECOND
from .preprocess import (
    Deduplicate,
    Removed,
    deduplicate,
    dropped_between,
    filtered,
    owners_of,
    select_interactions,
)
from .times import scale_of, text_times
from .words import Distinct

Moment = str | float | date | datetime | np.datetime64
SplitBy = Literal["leave-one-out", "time", "none"]
SPLITS: tuple[SplitBy, ...] = ("leave-one-out", "time", "none")

# Nanoseconds of what numbers stand for, and how those that are written out are.
_UNITS = {
    "seconds since 1970": SECOND, "milliseconds since 1970": 1_000_000,
    "microseconds since 1970": 1000, "nanoseconds since 1970": 1,
}  # fmt: skip
_WRITTEN = {
    "days as YYYYMMDD": "%Y%m%d", "minutes as YYYYMMDDhhmm": "%Y%m%d%H%M",
    "seconds as YYYYMMDDhhmmss": "%Y%m%d%H%M%S",
}  # fmt: skip


class TimeSplit(NamedTuple):
    """Where a split by time cuts, as given: moments, or shares of the interactions before them.

    Attributes:
        at: where test begins.
        valid_at: where validation begins; None: so that it has as many interactions as test.
        time_format: how both are written, where it is said.
    """

    at: Moment
    valid_at: Moment | None = None
    time_format: str | None = None

    @classmethod
    def create(
        cls, split: str, at: Moment | None, valid_at: Moment | None, time_format: str | None
    ) -> TimeSplit | None:
        """What ``load`` was given; None where it is no split by time.

        Raises:
            DataError: the arguments do not go together.
        """
        if split not in SPLITS:
            raise DataError(f"split={split!r} must be one of {', '.join(map(repr, SPLITS))}")
        given = {"at": at, "valid_at": valid_at}
        if split != "time":
            for name, value in given.items():
                if value is not None:
                    raise DataError(
                        f"{name}={value!r} cuts at a time: say split='time' (--split time)"
                    )
            return None
        if at is None:
            raise DataError(
                "split='time' needs at=…, where test begins: a moment such as '2026-01-01', or the "
                "share of the interactions before it, such as 0.8 (--at)"
            )
        return cls(at, valid_at, time_format)

    def cuts(
        self, times: Sequence[NDArray[Any]], offsets: Tensor, name: str, why: str
    ) -> Cuts:
        """The cuts of histories.

        Args:
            times: what they are sorted by, the first before the second, [N] in their order.
            offsets: int64 [U + 1].
            name: of the data, for messages.
            why: why there are no times, if there are none.

        Raises:
            DataError: there are no times, a moment cannot be read or lies outside of them, or one
                of the parts would be empty.
        """
        if not times:
            raise DataError(
                f"{name}: split='time' needs times, and there are none ({why}); name their column "
                "with time=… (--time-column)"
            )
        axis = _Axis(times, name)
        test, written = axis.moment("at", self.at, self.time_format)
        behind = int((axis.times >= test).sum())
        if self.valid_at is None:
            valid, valid_written = axis.before(test, behind, written)
        else:
            valid, valid_written = axis.moment("valid_at", self.valid_at, self.time_format)
            if not valid < test:
                raise DataError(
                    f"valid_at={valid_written} must lie before at={written}, where test begins"
                )
        between = int((axis.times >= valid).sum()) - behind
        if not between:
            raise DataError(
                f"{name}: no interaction lies between valid_at={valid_written} and at={written}, "
                "to validate on"
            )
        users = torch.repeat_interleave(torch.arange(offsets.numel() - 1), offsets.diff())
        counts = [
            torch.bincount(users[torch.from_numpy(axis.times < moment)],
                           minlength=offsets.numel() - 1)
            for moment in (valid, test)
        ]  # fmt: skip
        facts = {
            "valid_at": valid_written, "at": written,
            "interactions": [len(axis.times) - between - behind, between, behind],
        }  # fmt: skip
        return Cuts.at("time", counts[0], counts[1], facts)


class _Axis:
    """The times of all interactions as one array of what can be compared."""

    def __init__(self, times: Sequence[NDArray[Any]], name: str) -> None:
        self.name = name
        self.scale: str | None = None
        first = times[0]
        if len(times) == 1 or _of_days(times):
            self.times = first if len(times) == 1 else first + times[1]
            self.scale = scale_of(self.times.max())
        else:
            # Places in the order by all of them; no moment can be found among these.
            keys = [np.unique(key, return_inverse=True)[1].ravel() for key in times]
            self.times = np.unique(np.stack(keys), axis=1, return_inverse=True)[1].ravel()
        self.sorted = np.sort(self.times)

    def moment(self, argument: str, given: Moment, form: str | None) -> tuple[Any, str]:
        """Where a moment or share lies among the times, and how it is written."""
        share = _number(given)
        if share is not None and 0 < share < 1:
            value = self.sorted[int(share * len(self.sorted))]
        elif self.scale is None and share is None:
            raise DataError(
                f"{self.name}: {argument}={given!r} is a moment, and the times are none that can "
                f"be told, such as {self.sorted[0]}; give the share of the interactions before it, "
                "such as 0.8"
            )
        else:
            value = self._own(argument, given, form) if share is None else share
            if share is not None and share.is_integer():
                value = int(share)
        if not self.sorted[0] < value <= self.sorted[-1]:
            side = "before" if value <= self.sorted[0] else "behind"
            raise DataError(
                f"{self.name}: {argument}={given!r}: the times run from "
                f"{self.written(self.sorted[0])} to {self.written(self.sorted[-1])}, and no "
                f"interaction would lie {side} it"
            )
        return value, self.written(value)

    def before(self, test: Any, number: int, written: str) -> tuple[Any, str]:
        """The moment with ``number`` interactions from there to ``test``, or some more."""
        left = int(np.searchsorted(self.sorted, test)) - number
        value = self.sorted[max(left, 0)]
        if left <= 0 or value == self.sorted[0]:
            raise DataError(
                f"{self.name}: {number:,} of {len(self.sorted):,} interactions lie behind "
                f"at={written}, and as many before it are to validate, which leaves none to train; "
                "choose a later one, or say where validation begins with valid_at=… (--valid-at)"
            )
        return value, self.written(value)

    def written(self, value: Any) -> str:
        """A time in words."""
        if self.scale in _UNITS:
            text = str(np.datetime64(int(value * _UNITS[self.scale]), "ns"))
            text = text.rstrip("0").rstrip(".") if "." in text else text
            return text.removesuffix("T00:00:00")
        return str(value)

    def _own(self, argument: str, given: Moment, form: str | None) -> Any:
        """A date as the times are written."""
        text = given.isoformat() if isinstance(given, (date, datetime)) else str(given).strip()
        try:
            nanoseconds = int(text_times([text], lambda row: argument, form)[0])
        except DataError:
            if form is None:
                raise
            nanoseconds = int(text_times([text], lambda row: argument)[0])
        if self.scale in _WRITTEN:
            moment = np.datetime64(nanoseconds, "ns").astype("datetime64[s]").item()
            return int(moment.strftime(_WRITTEN[self.scale]))
        if self.scale not in _UNITS:
            raise DataError(
                f"{self.name}: {argument}={given!r} is a date, and the times are numbers such as "
                f"{self.sorted[0]}; give such a number, or a share such as 0.8"
            )
        unit = _UNITS[self.scale]
        return nanoseconds // unit if nanoseconds % unit == 0 else nanoseconds / unit


def _of_days(times: Sequence[NDArray[Any]]) -> bool:
    """Whether these are days and times of day, in nanoseconds."""
    if len(times) != 2 or any(key.dtype != np.int64 for key in times):
        return False
    days, clocks = times
    return (
        not (days % DAY).any() and int(clocks.min()) >= 0 and int(clocks.max()) < DAY
        and scale_of(days.max()) == "nanoseconds since 1970"
    )  # fmt: skip


def _number(given: Moment) -> float | None:
    if isinstance(given, (bool, np.bool_)):
        raise DataError(f"at={given!r} must be a moment or a share")
    if isinstance(given, (str, int, float, np.integer, np.floating)):
        try:
            found = float(given)
        except ValueError:
            return None
        return found if np.isfinite(found) else None
    return None


def preprocess(
    data: InteractionData, how: Deduplicate | None, k: int, min_length: int,
    listed: Distinct | tuple[()] = (),
) -> tuple[InteractionData, Removed, Dropped | None]:  # fmt: skip
    """Filter data that are cut by time, and leave the catalogue of their training part, and those
    items of ``listed`` that come up later.

    Filters count what lies before the test cut. Users with nothing there are no matter of theirs;
    those who then have no item of the catalogue at all are left out, and counted as cold.

    Raises:
        DataError: an argument is out of range, or a part is left with nothing.
    """
    whole = data
    if how is not None:
        data = deduplicate(data, how)
    repeats = whole.num_interactions - data.num_interactions
    cuts, users = _cuts(data), owners_of(data)
    place = torch.arange(users.numel()) - data.offsets[users]
    before = select_interactions(data, place < cuts.test[users])
    kept, removed = filtered(before, how, k, min_length)
    removed = removed._replace(duplicates=repeats + removed.duplicates)
    dropped = dropped_between(before, kept, k, min_length)
    if dropped is not None:
        gone = torch.from_numpy(dropped.histories.users.find(data.users.array()) >= 0)
        lost = torch.from_numpy(dropped.items.find(data.items.array()) >= 0)
        stays = ~gone[users] & ~torch.cat([torch.zeros(1, dtype=torch.bool), lost])[data.values]
        # A dropped item is none from the test cut on either.
        data = select_interactions(data, stays | (~gone[users] & (place >= cuts.test[users])))
        if how is not None:
            data = deduplicate(data, how)
    return _known_alone(data, listed), removed, dropped


def _cuts(data: InteractionData) -> Cuts:
    assert data.cuts is not None
    return data.cuts


def _known_alone(data: InteractionData, listed: Distinct | tuple[()]) -> InteractionData:
    """The data without items that neither the training part nor a table of items has; what that
    costs is counted."""
    cuts, users = _cuts(data), owners_of(data)
    place = torch.arange(users.numel()) - data.offsets[users]
    known = torch.zeros(data.num_items + 1, dtype=torch.bool)
    known[data.values[place < cuts.valid[users]]] = True
    found = data.items.find(listed)
    known[found[found > 0]] = True
    there = known[data.values]
    ends = torch.stack([cuts.valid, cuts.test, data.lengths])
    counts = [
        torch.bincount(users[there & (place < end[users])], minlength=data.num_users)
        for end in ends[:2]
    ]
    facts = dict(cuts.facts)
    lost = torch.zeros(2, data.num_users, dtype=torch.bool)
    unseen = torch.zeros(2, data.num_users, dtype=torch.int64)
    for row, part in enumerate(PARTS):
        asked = ends[row + 1] > ends[row]
        first = data.values[(data.offsets[:-1] + ends[row])[asked]]
        lost[row, asked] = ~known[first]
        inside = (place >= ends[row][users]) & (place < ends[row + 1][users])
        warm = asked & (counts[row] > 0)
        unseen[row] = distinct(users, data.values, inside & ~there, data.num_users)
        facts[part] = {
            "users": int(warm.sum()),
            "cold": int((asked & ~warm).sum()),
            "unseen_targets": int((lost[row] & warm).sum()),
            "unseen_items": int(torch.unique(data.values[inside & ~there]).numel()),
            "unseen_interactions": int((inside & ~there).sum()),
        }
        if not facts[part]["users"]:
            raise DataError(
                f"{data.name}: nobody to ask in {part}: {facts[part]['cold']} users have something "
                f"behind {facts['valid_at' if part == 'valid' else 'at']}, and none of them "
                "anything before it that the training part knows"
            )
    cuts = dataclasses.replace(cuts, lost=lost, unseen=unseen, facts=facts)
    data = dataclasses.replace(data, cuts=cuts)
    return select_interactions(data, there)


def in_words(cuts: Cuts) -> str:
    """A line about a split, for the reader of a log."""
    if cuts.kind == "none":
        return "nothing held out: all interactions train, and there is no validation and no test"
    facts = cuts.facts
    if cuts.kind == "later":
        counts = (f"{part}: {facts[part]['users']:,} users" for part in PARTS if part in facts)
        return f"what came later is held out; {', '.join(counts)}"
    train, valid, test = facts["interactions"]
    told = [
        f"by time: {train:,} interactions train, {valid:,} from {facts['valid_at']} validate, "
        f"{test:,} from {facts['at']} test"
    ]
    for part in PARTS:
        users, unseen, cold = (facts[part][name] for name in ("users", "unseen_targets", "cold"))
        told.append(
            f"{part}: {users:,} users, {unseen:,} of them with a next item that training does not "
            f"have, and {cold:,} cold ones left out"
        )
    return "; ".join(told)

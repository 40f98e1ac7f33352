"""Dates and times of day as people, spreadsheets and databases write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime, timezone
from decimal import Decimal, InvalidOperation

Exact = int | Decimal

SECOND = 1_000_000_000  # in nanoseconds, the unit of every moment
DAY = 86_400 * SECOND
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september",
    "october", "november", "december",
)  # fmt: skip

# datetime.fromisoformat cuts what is finer than a microsecond.
_FINE = re.compile(r"[.,]\d{7}")
_CLOCK = (
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?"
    r"(?:\s*(?P<half>[AaPp])\.?[Mm]\.?)?"
)
_ZONE = r"(?:\s*(?P<zone>[Zz]|UTC|GMT|[+-]\d{2}(?::?\d{2})?))?"
_WEEKDAY = r"(?:[A-Za-z]{3,9},?\s+)?"
_ORDINAL = r"(?:st|nd|rd|th)?"
_DATES = (
    r"(?P<year>\d{4})(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})",
    r"(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})",
    # Day first, month first or, with two digits, perhaps year first: the column tells.
    r"(?P<a>\d{1,2})(?P<mark>[-/.])(?P<b>\d{1,2})(?P=mark)(?P<c>\d{4}|\d{2})",
    rf"(?P<day>\d{{1,2}}){_ORDINAL}[-\s]?(?P<name>[A-Za-z]{{3,9}})\.?[-,\s]+(?P<year>\d{{4}}|\d{{2}})",
    rf"(?P<name>[A-Za-z]{{3,9}})\.?[-\s]+(?P<day>\d{{1,2}}){_ORDINAL},?\s+(?P<year>\d{{4}})",
    r"(?P<month>\d{1,2})\s+(?P<day>\d{1,2}),\s*(?P<year>\d{4})",
)
# As C's ctime and the logs of old services write it: Tue Apr 03 18:00:06 +0000 2012.
_CTIME = (
    rf"\s*[A-Za-z]{{3}}\s+(?P<name>[A-Za-z]{{3}})\s+(?P<day>\d{{1,2}})\s+{_CLOCK}\s*{_ZONE}"
    r"\s+(?P<year>\d{4})\s*"
)
_MOMENTS = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (
        *(rf"\s*{_WEEKDAY}{day}(?:(?:T|,?\s+){_CLOCK})?{_ZONE}\s*" for day in _DATES),
        _CTIME,
    )
)
_CLOCK_ALONE = re.compile(rf"\s*{_CLOCK}\s*", re.ASCII)
# Places of day, month and year among three numbers.
_ORDERS = {"day/month/year": (0, 1, 2), "month/day/year": (1, 0, 2), "year/month/day": (2, 1, 0)}


class Unreadable(ValueError):
    """A text that is no date, or one that can be two dates; ``text`` is it, ``why`` may be set."""

    def __init__(self, text: str, why: str = "") -> None:
        super().__init__(text)
        self.text, self.why = text, why


def moments(texts: Sequence[str]) -> list[Exact]:
    """Nanoseconds since 1970 of dates and times; those without a zone are taken as UTC.

    Whether 3/4/2021 is in March or April is told by the other texts, never assumed.

    Raises:
        Unreadable: a text is no date, or all of them can be read in two ways.
    """
    found: list[Exact | None] = [_iso(text) for text in texts]
    rest = [row for row, value in enumerate(found) if value is None]
    matches = {row: match_moment(texts[row]) for row in rest}
    order = _order([m for m in matches.values() if m is not None and "a" in m.groupdict()])
    for row, match in matches.items():
        value = None if match is None else _moment(match, order)
        if value is None:
            raise Unreadable(texts[row])
        found[row] = value
    return [value for value in found if value is not None]


def clocks(texts: Sequence[str]) -> list[Exact]:
    """Nanoseconds since midnight of times of day such as 9:30, 17:05:00.25 or 5:05 PM.

    Raises:
        Unreadable: a text is none.
    """
    found: list[Exact] = []
    for text in texts:
        match = _CLOCK_ALONE.fullmatch(text)
        value = None if match is None else _since_midnight(match)
        if value is None:
            raise Unreadable(text)
        found.append(value)
    return found


def match_moment(text: str) -> re.Match[str] | None:
    """The parts of a written date, if it is one."""
    if len(text) > 80:  # no date; spares the patterns long texts
        return None
    return next((m for pattern in _MOMENTS if (m := pattern.fullmatch(text)) is not None), None)


def is_moment(text: str) -> bool:
    """Whether a text can be read as a date, in some order of day and month."""
    if _iso(text) is not None:
        return True
    match = match_moment(text)
    if match is None:
        return False
    if "a" not in match.groupdict():
        return _moment(match, None) is not None
    return any(_moment(match, order) is not None for order in _ORDERS.values())


def is_clock(text: str) -> bool:
    """Whether a text is a time of day."""
    match = _CLOCK_ALONE.fullmatch(text[:80])
    return match is not None and _since_midnight(match) is not None


def since_epoch(moment: datetime) -> int:
    """Nanoseconds since 1970; a datetime without a zone is taken as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    delta = moment - _EPOCH
    fine = int(getattr(moment, "nanosecond", 0))  # of a pandas Timestamp
    return (delta.days * 86_400 + delta.seconds) * SECOND + delta.microseconds * 1000 + fine


def _iso(text: str) -> int | None:
    """ISO 8601 by the standard library, which is fast but reads no nanoseconds."""
    text = text.strip()
    if _FINE.search(text) is not None:
        return None
    if text.endswith("Z"):  # which Python 3.10 does not read
        text = text[:-1] + "+00:00"
    try:
        return since_epoch(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def _order(matches: Sequence[re.Match[str]]) -> tuple[int, int, int] | None:
    """Places of day, month and year that make dates of all texts; None where there are none."""
    if not matches:
        return None
    possible = {}
    for name, order in _ORDERS.items():
        values = [_moment(match, order) for match in matches]
        if None not in values:
            possible[name] = (order, values)
    if len({tuple(values) for _, values in possible.values()}) > 1:
        # Where German and others write dots they write the day first.
        if all(match["mark"] == "." and len(match["c"]) == 4 for match in matches):
            return _ORDERS["day/month/year"]
        raise Unreadable(matches[0][0], " or ".join(possible))
    return next((order for order, _ in possible.values()), None)


def _moment(match: re.Match[str], order: tuple[int, int, int] | None) -> Exact | None:
    """Nanoseconds since 1970 of a match, None where it is no date."""
    parts = match.groupdict()
    if "a" in parts:
        if order is None:
            return None
        numbers = (parts["a"], parts["b"], parts["c"])
        day, month, year = (numbers[place] for place in order)
        if len(year) == 1 or len(day) > 2:
            return None
    else:
        day, month, year = parts["day"], parts.get("month"), parts["year"]
    number = _month(parts["name"]) if month is None else int(month)
    full = int(year) if len(year) == 4 else int(year) + (1900 if int(year) >= 69 else 2000)
    try:
        days = date(full, number, int(day)).toordinal() - _EPOCH_DAY
    except ValueError:
        return None
    clock = 0 if parts["hour"] is None else _since_midnight(match)
    offset = _offset(parts["zone"])
    return None if clock is None or offset is None else _add(clock, days * DAY - offset)


def exact_number(text: str) -> Decimal | float:
    """A number as it is written; one whose exponent no Decimal holds is infinite, or zero."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return float(text)


def _month(name: str) -> int:
    """1..12 of an English name or its beginning, 0 of anything else."""
    name = "sep" if name.lower() == "sept" else name.lower()
    return next((n for n, month in enumerate(_MONTHS, 1) if name in (month, month[:3])), 0)


def _offset(zone: str | None) -> int | None:
    """Nanoseconds that a zone is ahead of UTC, None where it is none."""
    if zone is None or zone.isalpha():
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    if hours > 23 or minutes > 59:
        return None
    return (-1 if zone[0] == "-" else 1) * (hours * 60 + minutes) * 60 * SECOND


def _since_midnight(match: re.Match[str]) -> Exact | None:
    hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"] or 0)
    if match["half"] is not None:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if match["half"] in "Pp" else 0)
    if hour > 23 or minute > 59 or second > 59:
        return None
    whole = ((hour * 60 + minute) * 60 + second) * SECOND
    digits = match["fraction"] or ""
    whole += int(digits[:9].ljust(9, "0"))
    return whole if len(digits) <= 9 else Decimal(f"{whole}.{digits[9:]}")


def _add(clock: Exact, whole: int) -> Exact:
    """The sum, exactly; Decimal's own would be rounded to 28 digits."""
    if isinstance(clock, int):
        return clock + whole
    digits, places = str(clock).replace(".", ""), -int(clock.as_tuple().exponent)
    return Decimal(f"{int(digits) + whole * 10**places}e-{places}")

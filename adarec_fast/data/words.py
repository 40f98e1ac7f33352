"""A column of text of which each distinct word is kept once, and ids made of it.

What is asked of ids (blanks, missing ones, integers) is asked of each distinct word, of which there
are far fewer than cells.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .text import Locate, TextColumn, known

_CANONICAL = re.compile(r"0|-?[1-9][0-9]{0,17}")
_DIGITS = re.compile(r"-?[0-9]+")
# What pandas makes of integers in a column where one is missing.
_WHOLE = re.compile(r"(0|-?[1-9][0-9]{0,14})\.0")
# An article's number with a letter, such as 85123A.
_CODE = re.compile(r"(?=.*[A-Za-z])(?=.*[0-9])[A-Za-z0-9_-]+")
_SAMPLE = 1000
# A damaged line is a single one; so many rows with a code are no accident.
_CODES = 3


@dataclass(frozen=True)
class Words(TextColumn):
    """Cell ``i`` is ``distinct[codes[i]]``.

    Attributes:
        distinct: the words that occur; some may occur no longer, or stand twice.
        codes: int64 ``[cells]``.
    """

    distinct: list[str]
    codes: NDArray[np.int64]

    @classmethod
    def of(cls, strings: Iterable[str]) -> Words:
        """A column of strings, in one pass over them."""
        place: defaultdict[str, int] = defaultdict()
        place.default_factory = place.__len__
        codes = np.fromiter(map(place.__getitem__, strings), dtype=np.int64)
        return cls(list(place), codes)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> Words:
        return Words(self.distinct, self.codes[index])

    def strings(self) -> list[str]:
        distinct = self.distinct
        return [distinct[code] for code in self.codes.tolist()]

    def numbers(self) -> NDArray[np.int64] | None:
        counts = self.counts()
        if not all(map(_CANONICAL.fullmatch, counts)):
            return None
        return self.mapped({word: int(word) for word in counts})

    def counts(self) -> dict[str, int]:
        """The words that occur, and how often."""
        counts: dict[str, int] = {}
        found = np.bincount(self.codes, minlength=len(self.distinct)).tolist()
        for word, count in zip(self.distinct, found, strict=True):
            if count:
                counts[word] = counts.get(word, 0) + count
        return counts

    def cleaned(self) -> tuple[Words, NDArray[np.bool_]]:
        """Without blanks around each word, and which cells say that there is no value."""
        words = [known(word) for word in self.distinct]
        if all(new is old for new, old in zip(words, self.distinct, strict=True)):
            return self, np.zeros(len(self), dtype=bool)
        missing = np.array([word is None for word in words], dtype=bool)
        return Words([word or "" for word in words], self.codes), missing[self.codes]

    def factorised(self, sort: bool = False) -> tuple[list[str], NDArray[np.int64]]:
        """The words that occur, once each, sorted or by first occurrence, and each cell's place."""
        size = len(self.codes)
        first = np.full(len(self.distinct), size)
        first[self.codes[::-1]] = np.arange(size)[::-1]  # the last that is written stays
        occurring = [self.distinct[code] for code in np.argsort(first) if first[code] < size]
        words = sorted(set(occurring)) if sort else list(dict.fromkeys(occurring))
        return words, self.mapped({word: number for number, word in enumerate(words)})

    def mapped(self, numbers: dict[str, int]) -> NDArray[np.int64]:
        """int64 ``[cells]``: the number of each cell's word."""
        return np.array([numbers.get(word, 0) for word in self.distinct], dtype=np.int64)[
            self.codes
        ]


Distinct = NDArray[np.int64] | list[str]
Ids = Distinct | Words


def ids_from_words(
    words: Words, what: str, locate: Locate, text: bool = False
) -> NDArray[np.int64] | Words:
    """A text column as ids: int64 when all are integers, else the words as they are.

    A column whose first ids are nearly all integers must be integers throughout: one that is
    not is far more often a damaged line than a name. Numbers with leading zeros or of more than
    18 digits (ISBNs, say) make the column text, as do numbers with letters (85123A) in
    several rows. Integers written 17850.0, which pandas does, are integers.

    Args:
        words: the ids, none empty.
        what: ``"user id"`` or ``"item id"``, for messages.
        locate: where a row is, for messages.
        text: leave all of them as they are.

    Raises:
        DataError: a stray id among integers.
    """
    if text:
        return words
    count = words.counts()
    strays = {x for x in count if not _CANONICAL.fullmatch(x)}
    if all(_WHOLE.fullmatch(x) for x in strays):
        return words.mapped({x: int(x[:-2] if x in strays else x) for x in count})
    sample = words[:_SAMPLE].strings()
    wrong = sum(x in strays for x in sample)
    nearly_all = wrong <= max(1, len(sample) // 10) and len(sample) > 2 * wrong
    if not nearly_all or any(_DIGITS.fullmatch(x) for x in strays):
        return words
    codes = {x for x in strays if _CODE.fullmatch(x)}
    if 2 * len(codes) >= len(strays) and sum(count[x] for x in codes) >= _CODES:
        return words
    stray = np.array([x in strays for x in words.distinct], dtype=bool)[words.codes]
    row = int(stray.argmax())
    raise DataError(
        f"{locate(row)}: {what} {words[[row]].strings()[0]!r} is not an integer, as the other "
        f"{what}s are (where ids are meant to be text, say ids='text' (--ids text))"
    )

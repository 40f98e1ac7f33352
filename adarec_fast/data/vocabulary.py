"""External ids and the contiguous indices that models work with."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .errors import DataError

ExternalId = str | int
IdKind = Literal["int", "str"]

_INTEGER = re.compile(r"\s*[+-]?\d+\s*")
# Close matches are only searched among so many ids, else a typo in a catalogue of a
# million would cost minutes.
_MAX_CANDIDATES = 20_000
# Python refuses to read thousands of digits; long before that no int64 is meant.
_MAX_DIGITS = 100


def normalise_ids(
    ids: Sequence[ExternalId] | NDArray[Any], what: str = "ids"
) -> NDArray[np.int64] | list[str]:
    """Ids of one column as int64 (all are integers) or as a list of str (any is a string).

    Raises:
        DataError: an id is neither int nor str, or does not fit in int64.
    """
    if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu":
        if ids.dtype.kind == "u" and ids.size and int(ids.max()) > np.iinfo(np.int64).max:
            raise DataError(f"{what}: {int(ids.max())} does not fit in a signed 64-bit integer")
        return ids.astype(np.int64, copy=False)
    values = list(ids)
    kinds = set(map(type, values))
    if kinds <= {str}:
        return values
    integer_kinds = {kind for kind in kinds if issubclass(kind, (int, np.integer))} - {bool}
    string_kinds = {kind for kind in kinds if issubclass(kind, str)}
    wrong = kinds - integer_kinds - string_kinds
    if wrong:
        position, value = next((i, v) for i, v in enumerate(values) if type(v) in wrong)
        raise DataError(
            f"{what}: {value!r} (number {position + 1}) is a {type(value).__name__}; "
            "an id must be an int or a str"
        )
    if string_kinds:
        return [str(value) for value in values]
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError as error:
        low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
        value = next(v for v in values if not low <= int(v) <= high)
        raise DataError(f"{what}: {value} does not fit in a signed 64-bit integer") from error


class Vocabulary:
    """A bijection of external ids and the indices ``first .. first + len - 1``.

    Item vocabularies start at 1 (index 0 is padding), user vocabularies at 0. The ids of one
    vocabulary are all int or all str; a mixture becomes str. Look-ups are lenient about the
    type and about blanks: ``"12"`` finds 12 in an integer vocabulary, 12 finds ``"12"`` among
    strings, and ``" a"`` finds ``"a"`` where there is no ``" a"``.

    Args:
        ids: external ids, each once, in the order of their indices.
        first: index of the first id, at least 0.

    Raises:
        DataError: an id occurs twice, is neither int nor str, does not fit in int64 or in UTF-8; or
            ``first`` is negative.
    """

    def __init__(self, ids: Sequence[ExternalId] | NDArray[Any], first: int) -> None:
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise DataError(f"first={first!r}: the first index must be an int of at least 0")
        self.first = first
        self.kind: IdKind
        normalised = normalise_ids(ids)
        if isinstance(normalised, list):
            self.kind = "str"
            self._strings = normalised
            self._index = dict(zip(normalised, range(first, first + len(normalised)), strict=True))
            if len(self._index) != len(normalised):
                twice = Counter(normalised).most_common(1)[0][0]
                raise DataError(f"id {twice!r} occurs twice in one vocabulary")
            try:
                "".join(normalised).encode("utf-8")
            except UnicodeEncodeError as error:
                wrong = ascii(error.object[error.start])
                raise DataError(f"an id holds {wrong}, which UTF-8 cannot express") from error
        else:
            self.kind = "int"
            self._integers = normalised.copy()
            self._integers.setflags(write=False)
            self._order = np.argsort(self._integers, kind="stable")
            self._sorted = self._integers[self._order]
            equal = self._sorted[1:] == self._sorted[:-1]
            if equal.any():
                raise DataError(
                    f"id {int(self._sorted[equal.argmax()])} occurs twice in one vocabulary"
                )

    def __len__(self) -> int:
        return len(self._strings) if self.kind == "str" else len(self._integers)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} ids of kind {self.kind!r}, first={self.first})"

    def __contains__(self, external_id: object) -> bool:
        if isinstance(external_id, bool) or not isinstance(external_id, (int, str, np.integer)):
            return False
        if self.kind == "str":
            text = str(external_id)
            return text in self._index or text.strip() in self._index
        value = _as_int(external_id)
        return value is not None and int(self._find(np.array([value]))[0]) >= 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        if (self.kind, self.first, len(self)) != (other.kind, other.first, len(other)):
            return False
        if self.kind == "str":
            return self._strings == other._strings
        return bool(np.array_equal(self._integers, other._integers))

    def __hash__(self) -> int:
        return hash((self.kind, self.first, len(self)))

    @property
    def ids(self) -> list[ExternalId]:
        """All external ids in the order of their indices (a new list)."""
        return list(self._strings) if self.kind == "str" else self._integers.tolist()

    def array(self) -> NDArray[np.int64] | list[str]:
        """All external ids as ``ids``, but those that are int as an array (no copy)."""
        return self._strings if self.kind == "str" else self._integers

    def encode(self, ids: Iterable[ExternalId] | NDArray[Any]) -> NDArray[np.int64]:
        """Indices of external ids, int64 [len(ids)].

        Raises:
            DataError: an id is unknown; the message names it and ids that look like it.
        """
        queries = ids if isinstance(ids, (str, np.ndarray)) else list(ids)
        found = self.find(queries)
        if found.size and found.min() < 0:
            query = queries[int((found < 0).argmax())]
            number = _as_int(query) if self.kind == "int" else None
            raise self._unknown(query if number is None else number)
        return found

    def find(self, ids: Iterable[ExternalId] | NDArray[Any]) -> NDArray[np.int64]:
        """Indices of external ids, int64 [len(ids)]; -1 where an id is unknown."""
        if isinstance(ids, str):
            raise DataError(f"ids={ids!r}: give a sequence of ids, not one str")
        queries = ids if isinstance(ids, np.ndarray) else list(ids)
        if self.kind == "str":
            index = self._index
            found = np.fromiter(
                (index.get(x if type(x) is str else str(x), -1) for x in queries),
                dtype=np.int64,
                count=len(queries),
            )
            for row in np.flatnonzero(found < 0).tolist():
                found[row] = index.get(str(queries[row]).strip(), -1)
            return found
        if isinstance(queries, np.ndarray) and queries.dtype.kind == "i":
            return self._find(queries.astype(np.int64, copy=False).ravel())
        numbers = [_as_int(query) for query in queries]
        found = self._find(np.array([n or 0 for n in numbers], dtype=np.int64))
        found[[n is None for n in numbers]] = -1
        return found

    def decode(self, indices: Iterable[int] | NDArray[Any] | Tensor) -> list[Any]:
        """External ids (list of int or of str) of indices, in their order.

        Raises:
            DataError: an index is outside ``first .. first + len - 1``; 0 is padding for items.
        """
        if isinstance(indices, Tensor):
            array = indices.detach().cpu().numpy()
        elif isinstance(indices, np.ndarray):
            array = indices
        else:
            array = np.array(list(indices), dtype=np.int64)
        if array.dtype.kind not in "iu":
            raise DataError(f"indices of dtype {array.dtype}: indices must be integers")
        positions = array.ravel().astype(np.int64) - self.first
        wrong = (positions < 0) | (positions >= len(self))
        if wrong.any():
            raise DataError(
                f"index {int(positions[wrong.argmax()]) + self.first} is outside the vocabulary: "
                f"its indices are {self.first}..{self.first + len(self) - 1}"
            )
        if self.kind == "int":
            return list(self._integers[positions].tolist())
        strings = self._strings
        return [strings[i] for i in positions.tolist()]

    def take(self, indices: NDArray[Any]) -> Vocabulary:
        """A vocabulary of the ids of ``indices`` only, in that order, with the same ``first``."""
        if self.kind == "int":
            self.decode(indices)  # range check
            return Vocabulary(self._integers[np.asarray(indices) - self.first], self.first)
        return Vocabulary(self.decode(indices), self.first)

    def to_json(self) -> dict[str, Any]:
        """A plain dict that ``json`` can write: ``kind``, ``first`` and ``ids``."""
        return {"kind": self.kind, "first": self.first, "ids": self.ids}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Vocabulary:
        """Inverse of ``to_json``.

        Raises:
            DataError: a key is missing or unknown, or a value has the wrong type.
        """
        if not isinstance(value, Mapping):
            raise DataError(f"a vocabulary must be a JSON object, not {type(value).__name__}")
        if set(value) != {"kind", "first", "ids"}:
            raise DataError(f"a vocabulary has the keys kind, first, ids; got {sorted(value)}")
        kind, first, ids = value["kind"], value["first"], value["ids"]
        if kind not in ("int", "str"):
            raise DataError(f"kind={kind!r} of a vocabulary must be 'int' or 'str'")
        if not isinstance(ids, list):
            raise DataError(f"ids of a vocabulary must be a list, not {type(ids).__name__}")
        expected = int if kind == "int" else str
        if set(map(type, ids)) - {expected}:
            wrong = next(x for x in ids if type(x) is not expected)
            raise DataError(f"id {wrong!r} in a vocabulary of kind {kind!r}")
        # Of an empty list alone one cannot tell the kind.
        return cls(ids if ids or kind == "str" else np.zeros(0, dtype=np.int64), first)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of kind, first index and ids in order: equal for equal vocabularies."""
        digest = hashlib.sha256(f"{self.kind}:{self.first}:{len(self)}:".encode())
        if self.kind == "int":
            digest.update(self._integers.astype("<i8").tobytes())
        else:
            digest.update(json.dumps(self._strings).encode())
        return digest.hexdigest()

    def _find(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of integer ids, -1 where unknown."""
        if not len(self):
            return np.full(numbers.shape, -1, dtype=np.int64)
        places = np.searchsorted(self._sorted, numbers).clip(max=len(self) - 1)
        return np.where(self._sorted[places] == numbers, self._order[places] + self.first, -1)

    def _unknown(self, query: object) -> DataError:
        if not len(self):
            return DataError(f"unknown id {query!r}: the vocabulary is empty")
        if self.kind == "int":
            hint = f"ids are integers from {int(self._sorted[0])} to {int(self._sorted[-1])}"
        else:
            close = self._close(str(query))
            hint = (
                "close to it: " + ", ".join(map(repr, close))
                if close
                else f"ids look like {self._strings[0]!r}"
            )
        return DataError(f"unknown id {query!r} ({len(self)} ids are known; {hint})")

    def _close(self, query: str) -> list[str]:
        candidates = self._strings
        if len(candidates) > _MAX_CANDIDATES:
            prefix = query[:2]
            candidates = [
                x for x in candidates if abs(len(x) - len(query)) <= 2 and x.startswith(prefix)
            ][:_MAX_CANDIDATES]
        return difflib.get_close_matches(query, candidates, n=3)


def _as_int(value: object) -> int | None:
    """``value`` as an int that fits in int64, None where it is not one."""
    if isinstance(value, str) and len(value) <= _MAX_DIGITS and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        return None
    limits = np.iinfo(np.int64)
    return int(value) if limits.min <= value <= limits.max else None

"""Parquet files. Whatever the bytes are, they are read or refused.

pyarrow reads them, not polars: polars 2.1 panics in Rust on damaged files, which no ``except
Exception`` catches.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import SAMPLE, Columns, Table
from .errors import DataError
from .tables import Events, cell_ids
from .times import UNITS, cell_times, nanoseconds

# Run-length encoding can claim any number of rows in a few bytes; real interactions take at least
# some bits each.
_MOST_ROWS_PER_BYTE = 64
# Groups of rows that a sample is from.
_GROUPS = 8


def read_parquet(path: Path, columns: Columns) -> Events:
    """A Parquet file.

    Raises:
        DataError: it is damaged, has no such columns, or its cells are no ids and times.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow: pip install adarec_fast[data]"
        ) from error
    try:
        with parquet.ParquetFile(path, memory_map=False) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            groups = file.metadata.num_row_groups
        size = path.stat().st_size
        if not 0 <= rows <= size * _MOST_ROWS_PER_BYTE:
            raise DataError(f"{path}: claims {rows} rows in {size} bytes; the file is damaged")
        choice = columns.choose(
            Table(str(path), schema.names, lambda name: _sample(path, name, schema, rows, groups))
        )
        if not rows:
            raise DataError(f"{path}: no row")
        wanted = choice.names()
        strings = [name for name in wanted if _holds_strings(schema, name, path)]
        # As a dictionary each distinct string is held once, however many rows it fills.
        with parquet.ParquetFile(path, memory_map=False, read_dictionary=strings) as file:
            table = file.read(columns=wanted, use_threads=False)
        # Lengths, offsets, UTF-8, dictionary indices: nothing below looks outside its buffers.
        table.validate(full=True)
        cells = {name: _cells(table.column(name), path, name) for name in wanted}
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: not a readable Parquet file: {message}") from error

    def locate(row: int) -> str:
        return f"{path}, row {row}"

    times = tuple(
        cell_times(cells[name], locate, columns.time_format, clock=place > 0)
        for place, name in enumerate(choice.times)
    )
    ids = {
        name: cell_ids(cells[name], locate, name, columns.text_ids)
        for name in (choice.user, choice.item)
    }
    return Events(ids[choice.user], ids[choice.item], times, choice)


def _sample(path: Path, name: str, schema: Any, rows: int, groups: int) -> list[Any]:
    """Values of a column from the begin of some of the file's groups of rows."""
    from pyarrow import parquet, types

    kind = schema.field(schema.names.index(name)).type
    if not rows or schema.names.count(name) > 1 or types.is_nested(kind) or types.is_binary(kind):
        return []
    some = sorted({round(group) for group in np.linspace(0, groups - 1, min(groups, _GROUPS))})
    values: list[Any] = []
    with parquet.ParquetFile(path, memory_map=False) as file:
        for group in some:
            batches = file.iter_batches(
                SAMPLE // len(some), row_groups=[group], columns=[name], use_threads=False
            )
            for batch in itertools.islice(batches, 1):
                batch.validate(full=True)
                values += _python_values(batch.column(0))
    return values


def _python_values(column: Any) -> list[Any]:
    """Cells as Python values; of nanoseconds the last three digits do not matter here."""
    import pyarrow

    if pyarrow.types.is_timestamp(column.type):
        column = column.cast(pyarrow.timestamp("us"), safe=False)
    elif pyarrow.types.is_time(column.type):
        column = column.cast(pyarrow.time64("us"), safe=False)
    return list(column.to_pylist())


def _holds_strings(schema: Any, name: str, path: Path) -> bool:
    """Whether a column holds strings; a type that is neither id nor time is refused."""
    from pyarrow import types

    if schema.names.count(name) > 1:
        raise DataError(f"{path}: the column {name!r} occurs twice")
    kind = schema.field(name).type
    value = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_string(value) or types.is_large_string(value):
        return True
    times = types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind)
    numbers = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    if not (times or numbers):
        raise DataError(f"{path}: {name!r} has type {kind}; ids must be int or str")
    return False


def _cells(column: Any, path: Path, name: str) -> list[Any] | NDArray[Any]:
    """Values of a column: an array of numbers, or a list of strings."""
    import pyarrow

    if column.null_count:
        row = int(column.is_null().to_numpy().argmax())
        raise DataError(f"{path}, row {row}: {name!r} is null")
    if pyarrow.types.is_dictionary(column.type):
        values: list[Any] = []
        for chunk in column.chunks:
            words = np.array(chunk.dictionary.to_pylist(), dtype=object)
            values += words[chunk.indices.to_numpy()].tolist()
        return values
    if pyarrow.types.is_decimal(column.type):
        return list(column.to_pylist())
    if pyarrow.types.is_temporal(column.type):
        width = column.type.bit_width
        unit = getattr(column.type, "unit", "D" if width == 32 else "ms")
        numbers = column.cast(pyarrow.int32() if width == 32 else pyarrow.int64()).to_numpy()
        # A date of 64 bits counts milliseconds.
        return nanoseconds(numbers, UNITS[unit])
    return np.asarray(column.to_numpy())

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
from .errors import DataError, EmptyFile
from .sources import Source
from .tables import Cells, Column

# Run-length encoding can claim any number of rows in a few bytes; real interactions take at least
# some bits each.
_MOST_ROWS_PER_BYTE = 64
# Groups of rows that a sample is from.
_GROUPS = 8


def read_parquet(source: Source, columns: Columns) -> Cells:
    """A Parquet file.

    Raises:
        DataError: it is damaged, has no such columns, or their types are none of ids and times.
    """
    path = source.path
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow: pip install adarec_fast[data]"
        ) from error
    try:
        with parquet.ParquetFile(pyarrow.BufferReader(source.content)) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            groups = file.metadata.num_row_groups
        size = len(source.content)
        if not 0 <= rows <= size * _MOST_ROWS_PER_BYTE:
            raise DataError(f"{path}: claims {rows} rows in {size} bytes; the file is damaged")
        if not rows:
            raise EmptyFile(f"{path}: no row")
        choice = columns.choose(Table(
            str(path), schema.names, lambda name: _sample(source.content, name, schema, groups)
        ))  # fmt: skip
        wanted = choice.names()
        lists = (choice.item, *choice.times)
        strings = [name for name in wanted
                   if _holds_strings(schema, name, path, name in lists, choice.of_any_type(name))]
        # As a dictionary each distinct string is held once, however many rows it fills.
        buffer = pyarrow.BufferReader(source.content)
        with parquet.ParquetFile(buffer, read_dictionary=strings) as file:
            table = file.read(columns=wanted, use_threads=False)
        # Lengths, offsets, UTF-8, dictionary indices: nothing below looks outside its buffers.
        table.validate(full=True)
        cells = {name: _cells(table.column(name)) for name in wanted}
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: not a readable Parquet file: {message}") from error
    return Cells(str(path), choice, cells, lambda row: f"{path}, row {row}", text=False)


def _sample(content: bytes, name: str, schema: Any, groups: int) -> list[Any]:
    """Values of a column from the begin of some of the file's groups of rows."""
    import pyarrow
    from pyarrow import parquet, types

    kind = schema.field(schema.names.index(name)).type
    if schema.names.count(name) > 1 or types.is_nested(kind) or types.is_binary(kind):
        return []
    some = sorted({round(group) for group in np.linspace(0, groups - 1, min(groups, _GROUPS))})
    values: list[Any] = []
    with parquet.ParquetFile(pyarrow.BufferReader(content)) as file:
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


def _holds_strings(schema: Any, name: str, path: Path, lists: bool, any_type: bool) -> bool:
    """Whether a column holds strings; a type that is neither id nor time is refused.

    Args:
        schema: of the file.
        name: of the column.
        path: of the file.
        lists: whether a cell may be a list of ids.
        any_type: whether the type is no matter, as of events.
    """
    from pyarrow import types

    kind = schema.field(name).type
    value = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_string(value) or types.is_large_string(value):
        return True
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if lists and listed:
        value = kind.value_type
        if types.is_string(value) or types.is_large_string(value) or types.is_integer(value):
            return False
    times = types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind)
    numbers = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    if not (times or numbers or any_type):
        raise DataError(f"{path}: {name!r} has type {kind}; ids must be int or str")
    return False


def _cells(column: Any) -> Column:
    """Values of a column: an array of numbers, or a list with None where one is null."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        values: list[Any] = []
        for chunk in column.chunks:
            words = np.array([*chunk.dictionary.to_pylist(), None], dtype=object)
            values += words[chunk.indices.fill_null(len(words) - 1).to_numpy()].tolist()
        return values
    if pyarrow.types.is_temporal(column.type):
        return _moments(column)
    if _holds_vectors(column.type):
        return _vectors(column)
    numbers = pyarrow.types.is_integer(column.type) and not column.null_count
    if numbers or pyarrow.types.is_floating(column.type):
        return np.asarray(column.to_numpy())  # a null float is NaN
    return list(column.to_pylist())


def _holds_vectors(kind: Any) -> bool:
    from pyarrow import types

    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return lists and types.is_floating(kind.value_type)


def _vectors(column: Any) -> list[Any]:
    """Lists of floats as arrays, None where one is null; a null in a list is NaN."""
    values: list[Any] = []
    for chunk in column.chunks:
        # Without nulls ``flatten`` leaves all cells' numbers side by side.
        known = chunk.drop_null()
        sizes = known.value_lengths().to_numpy().astype(np.int64)
        flat = known.flatten().to_numpy(zero_copy_only=False)
        arrays = iter(np.split(flat, np.cumsum(sizes)[:-1]) if len(sizes) else [])
        values += [None if null else next(arrays) for null in chunk.is_null().to_pylist()]
    return values


def _moments(column: Any) -> NDArray[Any]:
    """Timestamps, dates and times of day as datetime64, NaT where one is null."""
    import pyarrow

    width = column.type.bit_width
    # A date of 64 bits counts milliseconds.
    unit = getattr(column.type, "unit", "D" if width == 32 else "ms")
    numbers = column.cast(pyarrow.int32() if width == 32 else pyarrow.int64())
    null = numbers.is_null().to_numpy()
    values = numbers.fill_null(0).to_numpy().astype(np.int64).view(f"datetime64[{unit}]")
    values[null] = "NaT"
    return np.asarray(values)

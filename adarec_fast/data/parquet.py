"""Parquet files. Whatever the bytes are, they are read or refused.

pyarrow reads them, not polars: polars 2.1 panics in Rust on damaged files, which no ``except
Exception`` catches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .tables import Columns, Events, cell_ids, cell_times

# Run-length encoding can claim any number of rows in a few bytes; real interactions take at least
# some bits each.
_MOST_ROWS_PER_BYTE = 64


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
        chosen = columns.choose(str(path), schema.names)
        wanted = [name for name in dict.fromkeys(chosen) if name is not None]
        strings = [name for name in wanted if _holds_strings(schema, name, path)]
        size = path.stat().st_size
        if not 0 <= rows <= size * _MOST_ROWS_PER_BYTE:
            raise DataError(f"{path}: claims {rows} rows in {size} bytes; the file is damaged")
        if not rows:
            raise DataError(f"{path}: no row")
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

    user, item, time = chosen
    times = None if time is None else cell_times(cells[time], locate)
    return Events(cell_ids(cells[user], locate, user), cell_ids(cells[item], locate, item), times)


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
    if not (times or types.is_integer(kind) or types.is_floating(kind)):
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
    if pyarrow.types.is_temporal(column.type):
        width = column.type.bit_width
        column = column.cast(pyarrow.int32() if width == 32 else pyarrow.int64())
    return np.asarray(column.to_numpy())

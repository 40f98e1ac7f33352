"""Files as they are found: names with stars, compressed ones, and those that are no data."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError, EmptyFile
from .text import BYTE_ORDER_MARK, read_file

_STARS = re.compile(r"[*?\[]")
_COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zstd", ".zip"}
# A .csv.gz inside a .zip is common; what goes deeper is a bomb.
_DEEPEST = 3

# First bytes of files that people take for data, what they are, and what to do instead.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"\xd0\xcf\x11\xe0", "an Excel workbook (.xls); save the sheet as CSV"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it"),
    (b"\x04\x22\x4d\x18", "compressed by lz4; unpack it"),
    (b"ARROW1\0\0", "an Arrow IPC (Feather) file; write it as Parquet"),
    (b"Obj\x01", "an Avro file; write it as Parquet or JSON lines"),
    (b"\x89HDF", "an HDF5 file; write it as Parquet or CSV"),
    (b"\x93NUMPY", "a NumPy array; load it and pass lists, or write CSV"),
    (b"SQLite format 3\0", "an SQLite database; export the table as CSV"),
    (b"%PDF-", "a PDF document"),
    (b"\x80\x02", "a pickle; unpickle it and pass the frame or the lists"),
    (b"\x80\x03", "a pickle; unpickle it and pass the frame or the lists"),
    (b"\x80\x04", "a pickle; unpickle it and pass the frame or the lists"),
    (b"\x80\x05", "a pickle; unpickle it and pass the frame or the lists"),
)  # fmt: skip
_PAGE = re.compile(rb"<(!doctype html|html)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """An opened file.

    Attributes:
        path: where it lies, for messages.
        name: the name of what it holds, without the ending of a compression.
        content: its bytes, unpacked.
    """

    path: Path
    name: str
    content: bytes

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()


def expand(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files of a path, of one with ``*``, ``?`` or ``[…]``, or of a list of such.

    Files that match stand in the order of their names, numbers in them by value.

    Raises:
        DataError: nothing matches.
    """
    if not isinstance(source, (str, os.PathLike)):
        return [path for part in source for path in expand(part)]
    path = Path(source)
    if not _STARS.search(str(source)) or path.exists():
        return [path]
    found = [Path(name) for name in glob.glob(str(source), recursive=True)]
    files = sorted((path for path in found if path.is_file()), key=_by_number)
    if not files:
        raise DataError(f"{source}: no file matches")
    return files


def open_source(path: Path) -> Source:
    """The content of a file, unpacked where it is compressed.

    gzip, bzip2, xz and zip are read by the standard library, zstd by pyarrow.

    Raises:
        DataError: it cannot be read or unpacked, is empty, or is a file of another kind.
    """
    content, name = read_file(path), path.name
    for _ in range(_DEEPEST):
        unpack = next((f for magic, f in _UNPACKERS if content.startswith(magic)), None)
        if unpack is None:
            break
        try:
            content, inner = unpack(path, content)
        except DataError:
            raise
        except (
            OSError,
            EOFError,
            ValueError,
            zlib.error,
            lzma.LZMAError,
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            MemoryError,
        ) as error:
            raise DataError(f"{path}: cannot be unpacked: {error or 'out of memory'}") from error
        if inner is not None:
            name = inner
        if not content.removeprefix(BYTE_ORDER_MARK).strip():
            raise EmptyFile(f"{path}: the file is empty")
    name = unpacked_name(name)
    for magic, kind in _FOREIGN:
        if content.startswith(magic):
            raise DataError(f"{path}: {kind}")
    if content[257:262] == b"ustar":
        raise DataError(f"{path}: a tar archive; unpack it")
    if _PAGE.match(content.lstrip()[:20]):
        raise DataError(f"{path}: a web page, not data; was the download refused?")
    return Source(path, name, content)


def unpacked_name(name: str) -> str:
    """The name of a file without the endings of compressions."""
    while Path(name).suffix.lower() in _COMPRESSED:
        name = Path(name).stem
    return name


def _unzip(path: Path, content: bytes) -> tuple[bytes, str | None]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [x.filename for x in archive.infolist() if not x.is_dir()]
        if "[Content_Types].xml" in names:
            raise DataError(
                f"{path}: an Excel workbook (or another Office document); save the sheet as CSV, "
                "or pass the frame of pandas.read_excel"
            )
        names = [x for x in names if "__MACOSX" not in x and not Path(x).name.startswith(".")]
        if len(names) != 1:
            listed = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
            raise DataError(
                f"{path}: the archive holds {len(names)} files ({listed or 'none'}); it must hold "
                "one; unpack it"
            )
        return archive.read(names[0]), Path(names[0]).name


def _unzstd(path: Path, content: bytes) -> tuple[bytes, str | None]:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"{path}: reading zstd needs pyarrow: pip install adarec_fast[data]"
        ) from error
    with pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd") as stream:
        return stream.read(), None


_UNPACKERS: tuple[tuple[bytes, Callable[[Path, bytes], tuple[bytes, str | None]]], ...] = (
    (b"\x1f\x8b", lambda path, content: (gzip.decompress(content), None)),
    (b"BZh91AY&SY", lambda path, content: (bz2.decompress(content), None)),
    (b"\xfd7zXZ\0", lambda path, content: (lzma.decompress(content), None)),
    (b"\x28\xb5\x2f\xfd", _unzstd),
    (b"PK\x03\x04", _unzip),
    (b"PK\x05\x06", _unzip),  # an empty archive
)


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    """A key that puts ``part-2`` before ``part-10``."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]

"""Fuzz the readers of data files: ``python tests/data/fuzz_readers.py SECONDS [FORMAT ...]``.

Coverage-guided mutation by atheris (not a dependency: ``pip install atheris``), each format in a
process of its own that gets an equal share of the seconds. A finding is any exception other than
``DataError``, an input that takes more than ten seconds, or a process of more than 2 GiB. Findings
are kept in ``fuzz-findings/`` of the system's temporary folder, and the exit code is 1.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]
FINDINGS = Path(tempfile.gettempdir()) / "fuzz-findings"
SLOWEST_SECONDS, LARGEST_MIB = 10, 2048

SEEDS: dict[str, list[bytes]] = {
    "auto": [
        b"1 2 3 4\n2 3 4 5\n", b"1 2\n1 3\n1 4\n", b"user,item\n1,2\n1,3\n", b'{"user":1,"item":2}',
        b"user_id:token\titem_id:token\n1\t2\n", b"user\titem\n1\t2\n",
    ],
    "sequences": [b"1 2 3 4\n2 3 4 5\n", b"a b c\nd e\r\n\n", b"-5 007 123456789012345678901\n"],
    "pairs": [b"1 2\n1 3\n1 4\n", b"u a\nv b\n"],
    "inter": [
        b"user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\n1\t3\t4.5\n",
        b"item_id:token\tuser_id:token\ttime:token\r\na\tb\t2024-01-01T00:00:00Z\r\n",
    ],
    "csv": [
        b"user,item,time\n1,2,3\n1,3,4\n", b'user,item\n"a,b","c\nd"\n\n"e""f",g\n',
        b"user,item,ts\n1,2,2024-01-01T10:00:00+02:00\n1,3,2023-12-31\n",
        b'user;item;t\n1;"[2, 3]";5" pipe\nNA;4;\n', b"sep=|\r\nuser|item\r\n 1 |a\r\n",
        b"user::item\n1::2\n", "user,item\n1,\u00e9\n".encode("utf-16"),
    ],
    "tsv": [b"user\titem\ttime\n1\t2\t3\n1\t3\t4\n", b'uid\tasin\n"a\tb\n'],
    "json": [
        b'[{"user": 1, "item": [2, null]}, {"user": "", "item": 3}]', b'{"u": ["a", ""], "v": []}',
        b"[[1, 2], [3]]",
    ],
    "jsonl": [
        b'{"user": 1, "item": 2, "time": 3}\n{"user": 1, "item": 4, "time": 5.5}\n',
        b'{"uid": "a", "asin": "\\u00e9", "ts": "2024-01-01"}\n\n{"uid": 1, "asin": 2, "ts": "1"}',
    ],
}  # fmt: skip

TOKENS = [
    "user", "item", "time", "user_id:token", "item_id:token", "timestamp:float", "2024-01-01",
    "T00:00:00Z", "+25:00", "1e999", "nan", "-0", "9223372036854775807", "18446744073709551616",
    "\\xef\\xbb\\xbf", "PAR1", "\\x00", "\\x0d\\x0a", "\\xc3\\xa9", "\\xe2\\x80\\xa8", "\\\\ud800",
    "null", "true", "[[[[[[[[", "0001-01-01", "9999-12-31T23:59:59", "\\x1c", "\\x0b",
]  # fmt: skip


def parquet_seeds() -> list[bytes]:
    """Small Parquet files of every kind of column that the reader knows."""
    import io
    from datetime import datetime

    import polars

    frames = [
        polars.DataFrame({"user": [1, 1, 2], "item": [3, 4, 5], "time": [1.0, 2.0, 3.5]}),
        polars.DataFrame({"user": ["a", "b"], "item": ["x", "y"]}),
        polars.DataFrame({"user": [1, 1], "item": [2, 3], "ts": [datetime(2024, 1, 1)] * 2}),
        polars.DataFrame({"user": [1, None], "item": [[1], [2]]}),
    ]
    files = []
    for frame in frames:
        for compression in ("uncompressed", "snappy"):
            file = io.BytesIO()
            frame.write_parquet(file, compression=compression)
            files.append(file.getvalue())
    return files


def fuzz(format: str, seconds: int, folder: Path) -> None:
    """Fuzz one format in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["adarec_fast.data"]):
        from adarec_fast.data import DataError, load

    logging.disable()
    corpus, source = folder / "corpus", folder / f"source.{format}"
    corpus.mkdir()
    seeds = parquet_seeds() if format == "parquet" else SEEDS[format]
    for number, seed in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    words = folder / "words"
    words.write_text("".join(f'"{token}"\n' for token in TOKENS), encoding="utf-8")

    def one_input(content: bytes) -> None:
        source.write_bytes(content)
        try:
            data = load(source, format=format, min_length=1)  # type: ignore[arg-type]
        except DataError:
            return
        assert data.num_interactions > 0

    FINDINGS.mkdir(exist_ok=True)
    arguments = [
        f"-max_total_time={seconds}", f"-timeout={SLOWEST_SECONDS}",
        f"-rss_limit_mb={LARGEST_MIB}", f"-artifact_prefix={FINDINGS / format}-",
        f"-dict={words}", "-max_len=4096", "-print_final_stats=1", str(corpus),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()


def run(format: str, seconds: int) -> bool:
    """Fuzz one format in a child, and say how it went; whether nothing was found."""
    this = str(Path(__file__).resolve())
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        done = subprocess.run(
            [sys.executable, this, "--child", format, str(seconds), folder],
            env={**os.environ, "PYTHONPATH": str(PACKAGE)},
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
    counts = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    inputs = f"{int(counts[1]):,} inputs" if counts else "an unknown number of inputs"
    if done.returncode == 0:
        print(f"{format}: {seconds} s, {inputs}, nothing found", flush=True)
        return True
    print(f"{format}: {inputs}, then:\n{done.stdout[-3000:]}{done.stderr[-3000:]}", flush=True)
    return False


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        _, _, format, seconds, folder = sys.argv
        fuzz(format, int(seconds), Path(folder))
        return 0
    seconds, formats = int(sys.argv[1]), sys.argv[2:] or [*SEEDS, "parquet"]
    share = max(1, seconds // len(formats))
    return 0 if all([run(format, share) for format in formats]) else 1


if __name__ == "__main__":
    sys.exit(main())

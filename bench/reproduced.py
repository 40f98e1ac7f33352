"""Keep the runs of ``adarec-fast reproduce`` as a result file.

    python -m bench.reproduced FOLDER --table table1

``FOLDER`` is reproduce's ``--out``; its files are only read, also while runs go on. What is
finished there goes into ``bench/results/TABLE-DATASET-DATE.json``: a run a line with configuration,
seed, epochs, seconds, figures of validation and test, machine and commit, and why each other run
that the table needs is not there. If the table has such a file already, it grows: runs of the
folder take the place of the same ones there, others stay. Where ``python -m bench.report`` finds
the table's marker in a page, it then has these figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adarec_fast.config import ConfigError
from adarec_fast.experiments.comparison import by_line, row_of
from adarec_fast.experiments.definition import RESULT, Sweep, run_name
from adarec_fast.experiments.paper import DATA_SETS
from adarec_fast.experiments.reproduction import Reproduction, unfinished
from adarec_fast.experiments.tables import OWN_KEYS, Row, Table, data_set_of, get_table
from adarec_fast.training.checkpoint import read_json, write_atomically
from adarec_fast.training.errors import RunFolderError

from . import records

Record = dict[str, Any]
KIND = "reproduced table"
_KEY = ("row", "loss", "seed")
_NO_MATTER = {"backend", "device", "seed"}  # and of several seeds the runs say which


def line_of(table: Table, combination: Mapping[str, Any]) -> Row | None:
    """The line of a table that a run of its sweep belongs to; None: of another table's."""
    telling = {key for row in table.rows for key in row.values or ()} | {*OWN_KEYS, *table.swept}
    telling -= {"data", "seed"}
    own = {key: value for key, value in combination.items() if key in telling}
    fits = [
        row for row in table.rows
        if row.values is not None and row.values.items() <= own.items()
        and own.keys() - row.values.keys() <= {"supervision"}  # which a system may have of its own
    ]
    return max(fits, key=lambda row: len(row.values or ()), default=None)


def collect(folder: Path, table: Table) -> list[Record]:
    """What a folder of ``reproduce`` has of a table, a record a data set of the paper's.

    Raises:
        RunFolderError: the folder has no such runs, or a file is damaged.
    """
    runs = folder / table.folder
    sweep = Sweep.load(runs)
    why = unfinished(sweep, runs)
    found: dict[str, Record] = {}
    for combination in sweep.combinations:
        row, name = line_of(table, combination), data_set_of(combination["data"])
        if row is None or name is None:
            continue
        record = found.setdefault(name, _head(table, name, sweep))
        key = dict(zip(_KEY, (row.label, row.loss, combination["seed"]), strict=True))
        run = runs / run_name(combination)
        result = read_json(run / RESULT) if (run / RESULT).exists() else None
        if result is not None and result["status"] != "diverged":
            sizes = {name: result["data"][name] for name in ("users", "items")}
            record["runs"].append({**key, "run": run.name, **row_of(result), "data": sizes})
        else:
            record["missing"].append({**key, "why": why.get(run.name, "diverged")})
    if not found:
        raise RunFolderError(f"{folder}: no runs of {table.name} on one of the paper's data sets")
    return list(found.values())


def _head(table: Table, name: str, sweep: Sweep) -> Record:
    plain = Reproduction.create(table, [name], [0]).sweep().to_json()["base"]
    base = sweep.to_json()["base"]
    given = {
        key: value for section in ("model", "train") for key, value in base[section].items()
        if key not in _NO_MATTER and plain[section].get(key) != value
    }  # fmt: skip
    return {
        "kind": KIND, "table": table.name, "data": name, "date": time.strftime("%Y-%m-%d"),
        "given": given, "runs": [], "missing": [],
    }  # fmt: skip


def merged(old: Record | None, new: Record) -> Record:
    """Both records' runs, the new ones in the place of the same ones of the old.

    Raises:
        ConfigError: the old runs had other values of all lines.
    """
    if old is not None and old["given"] != new["given"]:
        raise ConfigError(
            f"{new['table']} of {new['data']} is there with {old['given'] or 'no'} values of all "
            f"lines, these runs have {new['given'] or 'none'}; give another --into"
        )
    runs = {_key(run): run for one in (old, new) if one is not None for run in one["runs"]}
    missing = {_key(one): one for one in new["missing"] if _key(one) not in runs}
    lines = [(row.label, row.loss) for row in get_table(new["table"]).rows]

    def place(entry: Mapping[str, Any]) -> tuple[int, int]:
        mine = entry["row"], entry["loss"]
        return (lines.index(mine) if mine in lines else len(lines)), entry["seed"]

    def told(name: str) -> str:
        return ", ".join(sorted({str(run["environment"][name]) for run in runs.values()}))

    seeds = len({entry["seed"] for entry in (*runs.values(), *missing.values())})
    command = f"adarec-fast reproduce {new['table']} --data {DATA_SETS[new['data']].file}.txt"
    values = [f"--set {name}={value}" for name, value in new["given"].items()]
    return {
        "kind": KIND, "table": new["table"], "data": new["data"], "date": new["date"],
        "command": " ".join([command, f"--seeds {seeds}", *values]),
        "machine": told("cpu") or "nothing run yet", "versions": {"torch": told("torch")},
        "given": new["given"], "runs": sorted(runs.values(), key=place),
        "missing": sorted(missing.values(), key=place),
    }  # fmt: skip


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[name] for name in _KEY)


def keep(record: Record, folder: Path) -> Path:
    """Write a record into a folder of results, or into the file that has the table already."""
    beginning = f"{record['table']}-{record['data'].lower()}-"
    there = sorted(folder.glob(f"{beginning}*.json"))
    path = there[-1] if there else folder / f"{beginning}{record['date']}.json"
    whole = merged(read_json(path) if there else None, record)
    lines = [f" {json.dumps(name)}: {by_line(value)}" for name, value in whole.items()]
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.reproduced", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", type=Path, help="--out of adarec-fast reproduce")
    parser.add_argument("--table", required=True, help="table1, ...")
    parser.add_argument("--into", type=Path, default=records.FOLDER, help="folder of result files")
    options = parser.parse_args(arguments)
    try:
        for record in collect(options.folder, get_table(options.table)):
            path = keep(record, options.into)
            whole = read_json(path)
            print(f"{path}: {len(whole['runs'])} runs, {len(whole['missing'])} not finished")
    except (ConfigError, RunFolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Markdown tables of results that are no benchmark records: quality, serving, workers, exports.

Each function takes a result file's content and its path in the repository, and gives the table with
a line below that says where it is from; :mod:`bench.report` puts both into a page.
"""

from __future__ import annotations

from typing import Any

from adarec_fast.experiments.comparison import GROUPS
from adarec_fast.experiments.comparison_table import lines
from adarec_fast.experiments.paper import METRICS, TABLE1, TABLE2
from adarec_fast.experiments.summary import mean_std
from adarec_fast.experiments.tables import get_table
from adarec_fast.experiments.verdict import verdict

from . import serving as load

Record = dict[str, Any]
_HELD = ("HR@5", "NDCG@5", "HR@20", "NDCG@20")


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table, its first column to the left and the others to the right."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def source(record: Record, path: str) -> str:
    """A line below a table: what it was measured on, and the file."""
    machine = record["machine"]
    if not isinstance(machine, str):
        gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
        machine = f"{gpu}{machine['cpu']}, {machine['cores']} cores"
    return f"\n{machine}; torch {record['versions']['torch']}; {record['date']}; `{path}`.\n"


def _share(value: float) -> str:
    """A metric as the literature prints it: .0631."""
    return f"{value:.4f}".removeprefix("0")


def _quality(
    record: Record, path: str, metrics: tuple[str, ...], sparse: tuple[str, ...]
) -> str:
    def cells(found: dict[str, float], names: tuple[str, ...]) -> list[str]:
        return [_share(found[name]) if name in found else "" for name in names]

    rows = [
        [run["name"], f"`{run['supervision']}`", *cells(run["test"], metrics),
         *cells(run["test_sparse"], sparse),
         *([f"{run['best_epoch']} of {run['epochs_run']}"] if sparse else [])]
        for run in record["runs"]
    ]  # fmt: skip
    empty = ["" for _ in (*sparse, *sparse[:1])]
    rows += [
        [name, "", *cells(found, metrics), *empty]
        for name, found in record["baselines"].items()
    ]
    paper, few = (
        dict(zip(METRICS, table["Beauty"]["ADARec"], strict=True)) for table in (TABLE1, TABLE2)
    )
    rows.append(
        ["ADARec, the paper", "not said", *cells(paper, metrics), *cells(few, sparse), *empty[:1]]
    )
    header = ["Beauty, test", "examples", *metrics, *(f"sparse {name}" for name in sparse)]
    return markdown([*header, "best epoch"] if sparse else header, rows) + source(record, path)


def quality(record: Record, path: str) -> str:
    """The two figures of a run that most papers lead with."""
    return _quality(record, path, _HELD[2:], ())


def quality_full(record: Record, path: str) -> str:
    """All users and sparse ones, and the epochs that it took."""
    return _quality(record, path, _HELD, _HELD[2:])


def serving(record: Record, path: str) -> str:
    """Requests a second and latencies."""
    return load.table(record) + "\n"


def workers(record: Record, path: str) -> str:
    """A step's time by catalogue: one process, and two with the whole or the split item table."""
    times = {
        (row["items"], row["workers"], row["table"]): row["seconds"] for row in record["steps"]
    }
    kinds = {
        "one process": (1, "whole"), "two workers, whole table": (2, "whole"),
        "two workers, split table": (2, "split"),
    }  # fmt: skip
    rows = [
        [f"{items:,}", *(f"{times[(items, *kind)] * 1e3:.0f} ms" for kind in kinds.values())]
        for items in dict.fromkeys(row["items"] for row in record["steps"])
    ]
    return markdown(["items", *kinds], rows) + source(record, path)


def table4(record: Record, path: str) -> str:
    """The paper's ablation, its figures beside ours."""
    metrics = _HELD[2:]
    rows = [
        [row["row"], *(cell for name in metrics for cell in (
            f"{row[name]['paper']:.4f}", f"{row[name]['mean']:.4f}±{row[name]['std']:.4f}"
        ))]
        for row in record["tables"]["table4"]["rows"]
    ]  # fmt: skip
    header = [f"{name}, {whose}" for name in metrics for whose in ("paper", "here")]
    return markdown(["", *header], rows) + source(record, path)


def table1(record: Record, path: str) -> str:
    """The paper's comparison, its figures beside ours and whether they are reproduced."""
    metrics, table = _HELD[2:], get_table(record["table"])
    rows = []
    for row in table.rows:
        mine = row.label, row.loss
        runs = [run for run in record["runs"] if (run["row"], run["loss"]) == mine]
        why = [one["why"] for one in record["missing"] if (one["row"], one["loss"]) == mine]
        printed = dict(zip(METRICS, table.printed[record["data"]][row.printed or ""], strict=True))
        cells = []
        for name in metrics:
            mean, std = mean_std([run["test"][name] for run in runs])
            ours = "–" if mean is None else _share(mean)
            cells += [_share(printed[name]), ours if std is None else f"{ours} ± {_share(std)}"]
        hours = sum(run["train_seconds"] + run["valid_seconds"] for run in runs) / 3600
        rows.append([
            row.label, row.loss, *cells,
            f"{', '.join(str(run['best_epoch']) for run in runs)}" or "–",
            f"{hours:.1f}" if runs else "–",
            verdict(table, row, record["data"], runs) or "; ".join(dict.fromkeys(why)) or "–",
        ])  # fmt: skip
    header = [f"{name}, {whose}" for name in metrics for whose in ("paper", "here")]
    header = ["", "loss", *header, "best epoch", "hours", "within noise"]
    return markdown(header, rows) + source(record, path)


def export(record: Record, path: str) -> str:
    """Sizes, latencies and what an approximate index loses, by format."""
    rows = []
    for name, found in record["formats"].items():
        files = {
            file: size for file, size in found["bytes"].items()
            if file not in ("items.json", "index.faiss")
        }  # fmt: skip
        how = ", all items scored in torch" if "index" in found else ""
        rows.append([
            f"`{name}`", ", ".join(files), ", ".join(f"{n / 2**20:.1f}" for n in files.values()),
            f"{found['check']['latency_ms']:#.2g} ms{how}", "1" if how else "",
        ])  # fmt: skip
        if "index" in found:
            index = found["index"]
            search, exact = index["latency_ms"], index["exact_latency_ms"]
            rows.append([
                "", f"{index['file']} ({index['factory']}, {index['search']})",
                f"{found['bytes'][index['file']] / 2**20:.1f}",
                f"{search:#.2g} ms a search; exact {exact:#.2g} ms", f"{index['recall']:.3f}",
            ])  # fmt: skip
    header = ["format", "file", "MiB", "one user, median", "recall@20 against exact search"]
    return markdown(header, rows) + source(record, path)


def compared(record: Record, path: str) -> str:
    """What ``adarec-fast compare`` wrote: each arm on each data set, its seeds' means."""
    rows = []
    for data in record["data"]:
        for line in lines(record, data):
            if not line.runs:
                continue
            found = [
                line.figure("test", "all", "HR@20")[0], line.figure("test", "all", "NDCG@20")[0],
                line.figure("test", "sparse", "NDCG@20")[0],
                line.figure("valid", "all", "NDCG@20")[0],
            ]  # fmt: skip
            hours = line.hours
            rows.append([
                data, f"`{line.arm}`", str(len(line.runs)),
                *("" if value is None else _share(value) for value in found),
                "" if hours is None else f"{60 * hours:.0f}",
            ])  # fmt: skip
    header = [
        "data", "preset or model", "seeds", "HR@20", "NDCG@20", "sparse NDCG@20",
        "validation NDCG@20", "minutes a run",
    ]  # fmt: skip
    return markdown(header, rows) + source(record, path)


def worth(record: Record, path: str) -> str:
    """What ``adarec-fast compare`` wrote, as differences from its baseline with intervals."""
    rows = []
    for data in record["data"]:
        for line in lines(record, data):
            for group in GROUPS:
                mean, std = line.figure("test", group, "NDCG@20")
                if mean is None:
                    continue
                found = line.differences.get(("test", group, "NDCG@20"))
                ends = [] if found is None else [found["over_users"], found["over_seeds"]]
                count = line.mean("parameters")
                rows.append([
                    data, line.arm, group, str(len(line.runs)),
                    "" if count is None else f"{count:,.0f}",
                    _share(mean) + ("" if std is None else f" ± {_share(std)}"),
                    "" if found is None else f"{found['difference']:+.4f}",
                    *("" if end is None else f"{end[0]:+.4f} to {end[1]:+.4f}" for end in ends),
                    *[""] * (2 - len(ends)),
                ])  # fmt: skip
    header = [
        "data", "arm", "users", "seeds", "parameters", "test NDCG@20",
        f"less {record['baseline']}", "95% over users", "95% over seeds",
    ]  # fmt: skip
    return markdown(header, rows) + source(record, path)


def libraries(record: Record, path: str) -> str:
    """SASRec of other libraries beside ours: an epoch, memory, quality after as many epochs."""
    ours = next(row for row in record["rows"] if row["system"] == "sasrec")
    trained = {found["system"]: found for found in record["trained"]}
    rows = []
    for row in record["rows"]:
        how = ", allocator tuned" if row["allocator_tuned"] else ""
        seconds = row["epoch_cpu_seconds"]
        found = trained.get(row["system"], {}).get("valid", {})
        name = f"adarec_fast's {row['system']}" if row["version"] == ours["version"] else (
            f"{row['system']} ({row['version']}{how})"
        )
        rows.append([
            name, f"{seconds:.3g} s", f"{seconds / ours['epoch_cpu_seconds']:.3g}x",
            f"{row['peak_bytes'] / 2**30:.2f} GiB",
            _share(found["NDCG@20"]) if found else "", row["note"],
        ])  # fmt: skip
    header = [
        "system", "CPU seconds an epoch", "of ours", "peak memory",
        "validation NDCG@20 after as many epochs", "differs",
    ]  # fmt: skip
    return markdown(header, rows) + source(record, path)


# Marker: the beginning of the result files' names, and the table that the newest of them gives.
TABLES = {
    "quality": ("beauty-", quality),
    "quality-full": ("beauty-", quality_full),
    "compared": ("compare-", compared),
    "truncated": ("truncated-", compared),
    "worth": ("worth-", worth),
    "capacity": ("capacity-", worth),
    "serving": ("serving-", serving),
    "workers": ("distributed-", workers),
    "table1": ("table1-beauty-", table1),
    "table4": ("reproduce-", table4),
    "export": ("export-", export),
    "libraries": ("peers-", libraries),
}

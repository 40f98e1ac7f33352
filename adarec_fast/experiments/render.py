"""Tables as text: for a terminal, as Markdown, as CSV."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from .summary import to_csv
from .tables import Entry, Filled

SOURCES = ("paper", "here")


def rich_table(filled: Filled) -> RichTable:
    """For a terminal of 80 columns: a line for the paper and one for ours, notes as caption."""
    table = RichTable(
        box=box.SIMPLE_HEAD,
        title=Text(_title(filled)),
        title_justify="left",
        caption=Text(" ".join(_notes(filled))),
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    table.add_column("")
    for column in filled.table.columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in filled.table.rows:
        sources = [source for source in SOURCES if _has(filled, row.label, source)]
        for number, source in enumerate(sources or SOURCES[1:]):
            cells = [_cell(filled, row.label, column, source) for column in filled.table.columns]
            table.add_row(row.label if not number else "", source, *cells)
    return table


def markdown(tables: Sequence[Filled]) -> str:
    """A section a data set."""
    parts = []
    for filled in tables:
        names = [f"{column}, {source}" for column in filled.table.columns for source in SOURCES]
        lines = [
            f"## {_title(filled)}",
            "",
            f"| | {' | '.join(names)} |",
            f"| --- |{' --: |' * len(names)}",
        ]
        for row in filled.table.rows:
            lines.append(f"| {row.label} | {' | '.join(_cells(filled, row.label))} |")
        parts.append("\n".join([*lines, "", *_notes(filled), ""]))
    return "\n".join(parts)


def csv_text(tables: Sequence[Filled]) -> str:
    """A line a figure: table, data set, row, column, source, mean, std, runs."""
    return to_csv(
        [
            {
                "table": filled.table.name,
                "data_set": entry.data_set,
                "row": entry.row,
                "column": entry.column,
                "source": entry.source,
                "mean": entry.mean,
                "std": entry.std,
                "runs": entry.runs or None,
            }
            for filled in tables
            for entry in filled.entries
        ]
    )


def _title(filled: Filled) -> str:
    number = filled.table.name.removeprefix("table")
    return f"Table {number}, {filled.table.title}: {filled.data_set}"


def _has(filled: Filled, row: str, source: str) -> bool:
    return any((entry.row, entry.source) == (row, source) for entry in filled.entries)


def _cells(filled: Filled, row: str) -> list[str]:
    columns = filled.table.columns
    return [_cell(filled, row, column, source) for column in columns for source in SOURCES]


def _cell(filled: Filled, row: str, column: str, source: str) -> str:
    return _text(filled.cell(row, column, source), 2 if filled.table.times else 4)


def _text(entry: Entry | None, digits: int) -> str:
    if entry is None:
        return "–"
    text = f"{entry.mean:.{digits}f}"
    return text if entry.std is None else f"{text}±{entry.std:.{digits}f}"


def _notes(filled: Filled) -> list[str]:
    legend = "paper: as printed there; here: this software, mean±std over "
    runs = sorted({entry.runs for entry in filled.entries if entry.runs})
    if not runs:
        legend = "paper: as printed there; here: nothing has been run yet."
    else:
        span = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
        legend += f"{span} seed{'' if runs == [1] else 's'}."
    missing = [row.label for row in filled.table.rows if row.values is None]
    if missing:
        legend += f" The paper's figures alone, not run here: {', '.join(missing)}."
    return [legend, *filled.table.notes, *filled.notes]

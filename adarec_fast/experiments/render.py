"""Tables as text: for a terminal, as Markdown, as CSV."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from . import paper
from .filled import SOURCES, Entry, Filled
from .summary import to_csv
from .tables import Row
from .verdict import RULE

_SHORT = {"difference": "less"}


def rich_table(filled: Filled) -> RichTable:
    """For a terminal of 80 columns: the paper's figures, ours, and ours less the paper's.

    A line's loss and whether it gives the paper's figures again stand below its name; notes are
    the caption.
    """
    table = RichTable(
        box=box.SIMPLE_HEAD,
        title=Text(_title(filled)),
        title_justify="left",
        caption=Text(" ".join(_notes(filled))),
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )
    table.add_column("", overflow="fold")
    table.add_column("")
    for column in filled.table.columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in filled.table.rows:
        sources = [source for source in SOURCES if source == "here" or _has(filled, row, source)]
        labels = [row.label, f"  {row.loss}"] if len(sources) > 1 else [f"{row.label} {row.loss}"]
        judged = filled.verdicts.get((row.label, row.loss))
        labels += [] if judged is None else [f"  {judged}"]
        for number, source in enumerate(sources):
            cells = [_cell(filled, row, column, source) for column in filled.table.columns]
            label = labels[number] if number < len(labels) else ""
            table.add_row(Text(label), _SHORT.get(source, source), *cells)
    return table


def markdown(tables: Sequence[Filled]) -> str:
    """A section a data set."""
    parts = []
    for filled in tables:
        sources = SOURCES if filled.table.printed else ("here",)
        names = [f"{column}, {source}" for column in filled.table.columns for source in sources]
        judged = ["within noise"] if filled.verdicts else []
        lines = [
            f"## {_title(filled)}",
            "",
            f"| | loss | {' | '.join([*names, *judged])} |",
            f"| --- | --- |{' --: |' * len(names)}{' --- |' * len(judged)}",
        ]
        for row in filled.table.rows:
            cells = [
                _cell(filled, row, column, source, relative=True)
                for column in filled.table.columns for source in sources
            ]  # fmt: skip
            cells += [filled.verdicts.get((row.label, row.loss), "–") for _ in judged]
            lines.append(f"| {row.label} | {row.loss} | {' | '.join(cells)} |")
        parts.append("\n".join([*lines, "", *_notes(filled), ""]))
    return "\n".join(parts)


def csv_text(tables: Sequence[Filled]) -> str:
    """A line a figure: table, data set, row, loss, column, source, mean, std, runs.

    ``within_noise`` of our figures is the judgement of their whole row. A figure of ours that is
    not there has a line that says ``why``.
    """
    lines = []
    for filled in tables:
        entries = [
            {
                "table": filled.table.name,
                "data_set": entry.data_set,
                "row": entry.row,
                "loss": entry.loss,
                "column": entry.column,
                "source": entry.source,
                "mean": entry.mean,
                "std": entry.std,
                "runs": entry.runs or None,
                "within_noise": (
                    filled.verdicts.get((entry.row, entry.loss)) if entry.source == "here" else None
                ),
                "why": None,
            }
            for entry in filled.entries
        ]
        entries += [
            {
                "table": filled.table.name, "data_set": filled.data_set, "row": label,
                "loss": loss, "source": "here", "runs": _runs(filled, label, loss), "why": why,
            }
            for (label, loss), why in filled.missing.items()
        ]  # fmt: skip
        lines += entries
    return to_csv(lines)


def _title(filled: Filled) -> str:
    table = filled.table
    kind = "Figure" if table.is_figure else "Table"
    return f"{kind} {table.name[-1]}, {table.title}: {filled.data_set}"


def _has(filled: Filled, row: Row, source: str) -> bool:
    return any(filled.cell(row.label, c, source, row.loss) for c in filled.table.columns)


def _runs(filled: Filled, label: str, loss: str) -> int:
    found = filled.cell(label, filled.table.columns[0], "here", loss)
    return 0 if found is None else found.runs


def _cell(
    filled: Filled, row: Row, column: str, source: str, *, relative: bool = False
) -> str:
    entry = filled.cell(row.label, column, source, row.loss)
    if entry is None:
        return "–"
    digits = 2 if column in paper.COSTS else 4
    if source == "difference":
        printed = filled.cell(row.label, column, "paper", row.loss)
        assert printed is not None
        share = f" ({entry.mean / printed.mean:+.0%})" if relative else ""
        return f"{entry.mean:+.{digits}f}{share}"
    return _text(entry, digits)


def _text(entry: Entry, digits: int) -> str:
    text = f"{entry.mean:.{digits}f}"
    return text if entry.std is None else f"{text}±{entry.std:.{digits}f}"


def _notes(filled: Filled) -> list[str]:
    runs = sorted({entry.runs for entry in filled.entries if entry.runs})
    ours = "here: nothing has been run yet"
    if runs:
        span = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
        ours = f"here: this software, mean±std over {span} seed{'' if runs == [1] else 's'}"
    legend = f"{ours}."
    if filled.table.printed:
        legend = f"paper: as printed there; {ours}; difference: ours less the paper's."
    rule = [RULE] if filled.verdicts else []
    return [legend, *rule, *filled.table.notes, *_missing(filled), *filled.notes]


def _missing(filled: Filled) -> list[str]:
    """Why figures are not there, the lines of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for (label, loss), why in filled.missing.items():
        several = sum(row.label == label for row in filled.table.rows) > 1
        by_reason.setdefault(why, []).append(f"{label} ({loss})" if several else label)
    return [f"{', '.join(lines)}: {why}." for why, lines in by_reason.items()]

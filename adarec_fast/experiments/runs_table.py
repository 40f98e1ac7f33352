"""A comparison of trained runs as text: Markdown, LaTeX, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

USUAL = ("HR@5", "NDCG@5", "HR@10", "NDCG@10", "HR@20", "NDCG@20")
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}  # fmt: skip


class TextTable(NamedTuple):
    """A table as words.

    Attributes:
        title: what it is.
        header: names of the columns; all but the first ``left`` hold numbers.
        rows: cells as they are shown.
        bold: of each row, which cells stand out: the best of a column, or a difference whose
            interval leaves out zero.
        left: columns of words.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    bold: list[tuple[bool, ...]]
    left: int


def tables(found: Mapping[str, Any], metrics: Sequence[str] = USUAL) -> list[TextTable]:
    """What :func:`.runs.compare_runs` found, as a table of figures and one of differences.

    Args:
        found: the comparison.
        metrics: the columns of the first table.
    """
    base = found["runs"][0]["run"]
    header, rows, bold = ("run", "users", *metrics), [], []
    best = {
        users: [max(run[users][m] for run in found["runs"]) for m in metrics]
        for users in ("all", "sparse") if found["runs"][0][users] is not None
    }  # fmt: skip
    for run in found["runs"]:
        for users, most in best.items():
            figures = [run[users][metric] for metric in metrics]
            rows.append((run["run"], users, *(f"{figure:.4f}" for figure in figures)))
            bold.append((False, False, *(a == b for a, b in zip(figures, most, strict=True))))
    title = (
        f"{found['data']}, {found['part']}: {found['users']:,} users, {found['sparse_users']:,} of "
        f"them sparse; seen items masked: {found['seen_mask']}"
    )
    figures_table = TextTable(title, header, rows, bold, 2)
    several = len(found["runs"]) > 2
    apart: list[tuple[str, ...]] = []
    for one in found["differences"]:
        test, (low, high) = one["sign_test"], one["over_users"]
        apart.append(
            (one["run"], one["users"], one["metric"], f"{one['difference']:+.4f}", f"{low:+.4f}",
             f"{high:+.4f}", f"{test['wins']}/{test['losses']}/{test['ties']}",
             _p(test["p"]), *([_p(test["p_holm"])] if several else []))
        )  # fmt: skip
    names = ("run", "users", "metric", "difference", "from", "to", "+/-/=", "p")
    out = [one["over_users"][0] > 0 or one["over_users"][1] < 0 for one in found["differences"]]
    return [
        figures_table,
        TextTable(
            f"less {base}; 95% interval over users; users better, worse and alike (+/-/=), and the "
            f"sign test's p{', also corrected by Holm for several runs' if several else ''}",
            (*names, *(["p, Holm"] if several else [])),
            apart,
            [tuple(sure and name == "difference" for name in names) + (False,) * several
             for sure in out],
            3,
        ),
    ]  # fmt: skip


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else f"{value:.1e}"


def markdown(found: Sequence[TextTable]) -> str:
    """Tables with their titles above them."""
    parts = []
    for table in found:
        rule = ["---"] * table.left + ["--:"] * (len(table.header) - table.left)
        cells = [
            [f"**{cell}**" if strong else cell for cell, strong in zip(row, marks, strict=True)]
            for row, marks in zip(table.rows, table.bold, strict=True)
        ]
        lines = ([c.replace("|", "\\|") for c in row] for row in [table.header, rule, *cells])
        body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        parts.append(f"{table.title}\n\n{body}")
    return "\n".join(parts)


def latex(found: Sequence[TextTable]) -> str:
    """``table`` environments with the rules of the package ``booktabs``."""
    parts = [r"% \usepackage{booktabs}" + "\n"]
    for table in found:
        columns = "l" * table.left + "r" * (len(table.header) - table.left)
        lines = [" & ".join(map(_tex, table.header)) + r" \\", r"\midrule"]
        for row, marks in zip(table.rows, table.bold, strict=True):
            cells = (
                rf"\textbf{{{_tex(cell)}}}" if strong else _tex(cell)
                for cell, strong in zip(row, marks, strict=True)
            )
            lines.append(" & ".join(cells) + r" \\")
        body = "\n".join(lines)
        parts.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{_tex(table.title)}}}\n"
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n"
            "\\end{tabular}\n\\end{table}\n"
        )
    return "\n".join(parts)


def _tex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def csv_text(found: Mapping[str, Any]) -> str:
    """A row a run and group of users, unrounded: its metrics, and its differences from the first
    run, whose own are empty."""
    rows: list[dict[str, Any]] = []
    for run in found["runs"]:
        for users in ("all", "sparse"):
            if run[users] is None:
                continue
            row = {"run": run["run"], "model": run["model"], "parameters": run["parameters"],
                   "part": found["part"], "users": users, **run[users]}  # fmt: skip
            for one in found["differences"]:
                if (one["run"], one["users"]) == (run["run"], users):
                    metric, (low, high) = one["metric"], one["over_users"]
                    row |= {f"{metric} difference": one["difference"], f"{metric} low": low,
                            f"{metric} high": high}  # fmt: skip
                    row |= {f"{metric} {name}": value for name, value in one["sign_test"].items()}
            rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

"""``adarec-fast docs``: the pages for people, which come with the package."""

from __future__ import annotations

import difflib
import json
import re
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ..config import ConfigError
from .console import command, hint, out, waiting

FOLDER = Path(__file__).parents[1] / "docs"
# In the order in which they are read; the others by name.
_FIRST = (
    "getting-started", "your-data", "choosing-a-model", "training", "evaluation", "serving",
)  # fmt: skip
_CELL, _WORDS = "# %%", "# %% [markdown]"


class Page(NamedTuple):
    """A page or a tutorial.

    Attributes:
        name: what ``adarec-fast docs`` calls it.
        path: a Markdown file, or Python in percent format.
    """

    name: str
    path: Path

    @property
    def is_tutorial(self) -> bool:
        return self.path.suffix == ".py"

    def markdown(self) -> str:
        """The page as Markdown."""
        text = self.path.read_text(encoding="utf-8")
        return as_markdown(text) if self.is_tutorial else text

    def about(self) -> str:
        """Its first sentence, or its title where it begins with something else."""
        title, _, rest = self.markdown().partition("\n")
        paragraph = " ".join(rest.strip().partition("\n\n")[0].split())
        sentence = re.match(r"[A-Z][^`#|]*?[.?:](?= |$)", paragraph.replace("`", ""))
        return title.lstrip("# ") if sentence is None else sentence[0].rstrip(":")


def pages() -> list[Page]:
    """All pages: those to begin with, the others by name, and the tutorials."""
    names = sorted(path.stem for path in FOLDER.glob("*.md"))
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    tutorials = sorted((FOLDER / "tutorials").glob("*.py"))
    return [
        *(Page(name, FOLDER / f"{name}.md") for name in names),
        *(Page(path.stem, path) for path in tutorials),
    ]


def cells(text: str) -> list[tuple[bool, str]]:
    """The cells of Python in percent format: whether each is words, and its text."""
    found: list[tuple[bool, list[str]]] = []
    for line in text.splitlines():
        if line.startswith(_CELL):
            found.append((line == _WORDS, []))
        elif found:
            words = found[-1][0]
            found[-1][1].append(line.removeprefix("#").removeprefix(" ") if words else line)
    return [(words, "\n".join(lines).strip("\n")) for words, lines in found]


def as_markdown(text: str) -> str:
    """Python in percent format as Markdown, its code in fenced blocks."""
    parts = (body if words else f"```python\n{body}\n```" for words, body in cells(text))
    return "\n\n".join(parts) + "\n"


@command
def docs(
    page: Annotated[
        str | None, typer.Argument(metavar="[PAGE]", help="A page's name; without, their list.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write the API there as HTML, from the docstrings. Needs the "
            "extra docs.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The list as JSON on stdout.")
    ] = False,
) -> None:
    """List the pages of the documentation, or show one in the terminal.

    In a file or pipe a page stands as it was written: a tutorial is a program, so that adarec-fast
    docs write-an-op > write-an-op.py makes one.
    """
    if html is not None:
        if page is not None or as_json:
            raise ConfigError("--html is of the API alone; leave the rest out")
        with waiting("writing the API"):
            from .docs_html import write_html

            first = write_html(html)
        print(first)
        return
    every = {one.name: one for one in pages()}
    if page is None:
        if as_json:
            print(json.dumps([
                {"name": one.name, "about": one.about(), "path": str(one.path)}
                for one in every.values()
            ], indent=2))  # fmt: skip
            return
        for kind, wanted in (("page", False), ("tutorial", True)):
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
            table.add_column(kind, no_wrap=True)
            table.add_column("about", overflow="fold")
            for one in every.values():
                if one.is_tutorial == wanted:
                    table.add_row(one.name, Text(one.about()))
            out.print(table)
        hint("adarec-fast docs PAGE shows one")
        return
    name = page.removesuffix(".md").removesuffix(".py")
    if name not in every:
        near = difflib.get_close_matches(name, every, n=1)
        raise ConfigError(
            f"there is no page {page!r}" + (f", did you mean {near[0]}?" if near else "")
            + "; adarec-fast docs lists them"
        )
    if as_json:
        raise ConfigError("--json is of the list of pages; leave it out to read one")
    if out.is_terminal:
        from rich.markdown import Markdown  # brings a parser that no other command needs

        out.print(Markdown(every[name].markdown(), hyperlinks=False))
    else:
        sys.stdout.write(every[name].path.read_text(encoding="utf-8"))

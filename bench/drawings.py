"""Pictures for the pages, PNG and SVG: ``python -m bench.drawings NAME [--out DIR]``.

    house   the layers of the package, as adarec_fast/docs/architecture.md lists them
    peers   time of an epoch beside other implementations, of the newest record of a CPU

Drawn with matplotlib (``adarec_fast[viz]``), unlike :mod:`bench.picture`, which needs nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adarec_fast.plotting.style import COLOURS, FORMATS, NEUTRAL, look, new_figure, save

from . import records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOCS = Path(__file__).parents[1] / "adarec_fast" / "docs"
_SUBJECT, _FORM = "Beauty epoch", "beside SASRec"
# What a variant of the record is, for a reader who has not seen the benchmarks.
_NAMES = {
    "adarec_fast": "ADARec, adarec_fast",
    "adarec_fast SASRec": "SASRec, adarec_fast",
    "packed eager": "ADARec, packed PyTorch",
    "packed SASRec": "SASRec, packed PyTorch",
    "compiled packed SASRec": "SASRec, packed, torch.compile",
}


def layers() -> list[list[str]]:
    """The rooms of each layer, from the top."""
    page = (_DOCS / "architecture.md").read_text(encoding="utf-8")
    block = page.partition("```text\n")[2].partition("```")[0]
    return [line.split(", ") for line in block.splitlines() if line]


def house() -> Figure:
    """A floor a layer; what stands higher imports what stands below."""
    floors = layers()[::-1]
    figure = new_figure(0.42 * len(floors) + 0.3)
    axes = figure.add_subplot()
    for height, rooms in enumerate(floors):
        widths = [len(room) + 3 for room in rooms]
        begin = 0.0
        for room, width in zip(rooms, widths, strict=True):
            share = width / sum(widths)
            axes.barh(
                height, share - 0.006, 0.8, left=begin, color=COLOURS[height % len(COLOURS)],
                alpha=0.22,
            )  # fmt: skip
            axes.text(
                begin + share / 2, height, room, ha="center", va="center",
                fontsize=8 if len(rooms) < 7 else 6.5,
            )  # fmt: skip
            begin += share
    axes.annotate(
        "", (1.03, 0), (1.03, len(floors) - 1), annotation_clip=False,
        arrowprops={"arrowstyle": "->", "color": NEUTRAL},
    )  # fmt: skip
    axes.text(
        1.04, (len(floors) - 1) / 2, "imports", rotation=270, va="center", color=NEUTRAL, fontsize=8
    )
    axes.set(xlim=(0, 1.07), ylim=(-0.5, len(floors) - 0.5))
    axes.set_axis_off()
    return figure


def epochs(record: dict[str, Any]) -> list[tuple[str, float]]:
    """Name and seconds of an epoch of each variant that was timed, the fastest first."""
    found = [
        (_NAMES.get(row["variant"], row["variant"]), row["seconds"]["median"] * row["stretches"])
        for row in record["rows"]
        if (row["subject"], row["form"]) == (_SUBJECT, _FORM) and "seconds" in row
    ]
    return sorted(found, key=lambda pair: pair[1])


def peers(record: dict[str, Any]) -> Figure:
    """Bars of :func:`epochs`."""
    timed = epochs(record)[::-1]
    figure = new_figure(0.34 * len(timed) + 1.0)
    axes = figure.add_subplot()
    for place, (name, seconds) in enumerate(timed):
        ours = name.endswith("adarec_fast")
        axes.barh(place, seconds, 0.7, color=COLOURS[0] if ours else NEUTRAL, alpha=0.85)
        axes.text(seconds, place, f" {seconds:.3g} s", va="center", fontsize=8)
    axes.set_yticks(range(len(timed)), [name for name, _ in timed])
    axes.grid(False, axis="y")
    axes.margins(x=0.12)
    machine = record["machine"]
    axes.set_title("An epoch of Beauty, D = 64, two layers, every position (T = 4)", loc="left")
    axes.set_xlabel(
        f"seconds; {machine['cpu']}, {machine['cores']} cores, {machine['instructions']}, torch "
        f"{record['versions']['torch']}, {record['date'][:10]}"
    )
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.drawings", description=__doc__)
    parser.add_argument("name", choices=("house", "peers"))
    parser.add_argument("--out", type=Path, metavar="DIR", default=_DOCS)
    given = parser.parse_args()
    record = records.newest("cpu")
    if record is None:
        parser.error(f"{records.FOLDER} has no result of a cpu run")
    with look():
        figure = house() if given.name == "house" else peers(record)
        for path in save(figure, given.out / given.name, FORMATS, dpi=150):
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A picture of what was measured, as SVG text: the same record gives the same bytes.

Drawn without a plotting library, so that :mod:`bench.report` needs none and a test can compare.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

from . import summary
from .harness import COMPILED, EAGER, PACKED

# Comparisons that are drawn, by subject, form and workload, with what they are called.
_SHOWN = {
    ("training step", "", "train"): "training step, 256 histories",
    ("recommend", "", "serve-1"): "recommend to one user",
    ("recommend", "", "serve-1024"): "recommend to 1,024 users",
}
_BARS = {None: "#0f6b5c", PACKED: "#7d8fa3", COMPILED: "#a9b4c0", EAGER: "#cfd6dd"}
_LEFT, _WIDTH, _BAR, _GAP, _TOP = 170, 430, 15, 26, 34


def draw(record: dict[str, Any]) -> str:
    """Bars of the median times, ours and the baselines', on a logarithmic axis."""
    groups = []
    for comparison in summary.comparisons(record["rows"]):
        ours = comparison.ours
        key = ours and (ours["subject"], ours["form"], ours["workload"])
        if ours is None or key not in _SHOWN:
            continue
        timed = {
            variant: ours if variant is None else comparison.rows.get(variant)
            for variant in _BARS
        }
        bars = [
            (variant, row["seconds"]["median"] * 1e3)
            for variant, row in timed.items()
            if row is not None and "seconds" in row
        ]
        groups.append((_SHOWN[key], bars))
    times = [time for _, bars in groups for _, time in bars]
    low = 10.0 ** math.floor(math.log10(min(times)))
    high = 10.0 ** math.ceil(math.log10(max(times)))
    scale = _WIDTH / math.log10(high / low)
    body, y = [], _TOP
    for title, bars in groups:
        body.append(_text(10, y + 12, title, weight="bold"))
        y += 20
        for variant, time in bars:
            width = scale * math.log10(time / low)
            body.append(_text(_LEFT - 8, y + 12, variant or "adarec_fast", anchor="end"))
            body.append(
                f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" '
                f'fill="{_BARS[variant]}"/>'
            )
            shown = f"{time:.0f} ms" if time >= 100 else f"{time:.3g} ms"
            body.append(_text(_LEFT + width + 6, y + 12, shown))
            y += _BAR + 3
        y += _GAP - 10
    machine, height = record["machine"], y + 30
    where = (
        f"medians, logarithmic axis; D = 64, T = 8, 12,101 items; {machine['cpu']}, "
        f"{machine['cores']} cores, {machine.get('instructions', '')}, "
        f"torch {record['versions']['torch']}, {record['date'][:10]}"
    )
    body += [_text(10, 18, "Time of one call", weight="bold"), _text(10, height - 12, where, 11)]
    wide = _LEFT + _WIDTH + 80
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {height}" width="{wide}" '
        f'height="{height}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="{wide}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _text(
    x: float, y: float, text: str, size: int = 13, *, anchor: str = "start", weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="#1b2530">{escape(text)}</text>'
    )

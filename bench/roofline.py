"""Where ops lie under a machine's two ceilings: arithmetic and memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

NEAR, FAR = 0.7, 0.15  # shares of the roofline; below the second neither ceiling explains a time


class Point(NamedTuple):
    """What was measured of one op.

    Attributes:
        name: of the op.
        flops, bytes: floating-point operations in matrix products and bytes at least moved.
        seconds: that they took.
    """

    name: str
    flops: float
    bytes: float
    seconds: float

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.bytes

    @property
    def gflops(self) -> float:
        return self.flops / self.seconds / 1e9

    @property
    def gbps(self) -> float:
        return self.bytes / self.seconds / 1e9

    def bound_by_arithmetic(self, peaks: dict[str, float]) -> bool:
        """Whether the arithmetic of this op needs longer than its bytes, both at their peaks."""
        return self.flops / peaks["gflops"] > self.bytes / peaks["gbps"]

    def share(self, peaks: dict[str, float]) -> float:
        """The time that the slower of both needs at its peak, over the time taken."""
        return max(self.gflops / peaks["gflops"], self.gbps / peaks["gbps"])


def draw(points: Sequence[Point], peaks: dict[str, float], title: str, path: Path) -> None:
    """Write the roofline as a PNG, whole or not at all.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    ridge = peaks["gflops"] / peaks["gbps"]
    values = [point.intensity for point in points]
    low, high = min([ridge / 8, *values]) / 2, max([ridge * 8, *values]) * 2
    axes.plot(
        [low, ridge, high], [low * peaks["gbps"], peaks["gflops"], peaks["gflops"]],
        color="black", linewidth=1.2,
        label=f"{peaks['gbps']:.4g} GB/s, {peaks['gflops']:.4g} GFLOP/s (measured)",
    )  # fmt: skip
    # An op has a colour and a sign; its backward pass is hollow.
    ops = list(dict.fromkeys(point.name.rsplit(" ", 1)[0] for point in points))
    for point in points:
        op, direction = point.name.rsplit(" ", 1)
        number = ops.index(op)
        axes.plot(
            [point.intensity], [point.gflops], linestyle="none", markersize=8,
            color=f"C{number % 10}", marker="o^sDvP*X<>ph"[number % 12],
            markerfacecolor="none" if direction == "backward" else None,
            label=f"{point.name}: {point.share(peaks):.0%}",
        )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="GFLOP/s", title=title,
        xlim=(low, high),
    )
    axes.grid(True, which="both", linewidth=0.3, alpha=0.5)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False)
    save_figure(figure, path)


def save_figure(figure: object, path: Path) -> None:
    """Write a matplotlib figure under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".png")
    os.close(handle)
    try:
        figure.savefig(temporary, dpi=110)  # type: ignore[attr-defined]
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

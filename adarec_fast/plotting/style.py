"""One look for all pictures, and files that are the same whenever they are made again."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ConfigError
from ..files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Paul Tol's "muted" scheme: told apart with any of the common colour deficiencies.
COLOURS = (
    "#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933",
    "#AA4499",
)  # fmt: skip
MARKERS = "osD^vP<>X"
NEUTRAL = "#777777"
WIDTH = 7.0  # inches: two columns of a paper
FORMATS = ("png", "svg")
_RC = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "svg.fonttype": "path",
    # Ids inside an SVG are hashes; without a salt of their own they differ in every process.
    "svg.hashsalt": "adarec_fast",
}


class PlottingUnavailable(ConfigError):
    """matplotlib or scikit-learn is not installed."""


@contextmanager
def look() -> Iterator[None]:
    """Draw and save inside this; the caller's own matplotlib settings are left alone.

    Raises:
        PlottingUnavailable: naming the extra to install.
    """
    matplotlib = require("matplotlib")
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_RC}):
        yield


def require(module: str) -> Any:
    """Import a module of the extra ``viz``.

    Raises:
        PlottingUnavailable: it is not installed.
    """
    try:
        with _no_backend_named():
            return importlib.import_module(module)
    except ImportError as error:
        raise PlottingUnavailable(
            f"pictures need {module.split('.')[0]}, which cannot be imported ({error}); "
            'pip install "adarec_fast[viz]"'
        ) from None


@contextmanager
def _no_backend_named() -> Iterator[None]:
    """``MPLBACKEND`` of a notebook is inherited, and matplotlib does not load if it lacks that one.

    Files need none. A program that goes on to show pictures finds the variable in force.
    """
    named = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
            with suppress(KeyError, ValueError):  # not imported, or no such backend
                sys.modules["matplotlib"].rcParams["backend"] = named


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, in inches; it belongs to no window and no global state.

    Saving it as PNG goes through the Agg backend, whatever backend is set.
    """
    figure: Figure = require("matplotlib.figure").Figure(
        figsize=(width, height), layout="constrained"
    )
    return figure


def level_colours(levels: int) -> list[Any]:
    """A colour a level, from dark (level 0) to light: levels are ordered, and so is lightness."""
    cividis = require("matplotlib").colormaps["cividis"]
    return [cividis(0.95 * k / max(levels - 1, 1)) for k in range(levels)]


def mark_best(axes: Any, epoch: int | None) -> None:
    """A line at the epoch whose weights are kept."""
    if epoch is not None:
        label = f"best epoch ({epoch})"
        axes.axvline(epoch, color=NEUTRAL, linestyle=":", linewidth=1, label=label)


def whole_epochs(axes: Any) -> None:
    """Ticks at whole numbers alone."""
    ticker = require("matplotlib.ticker")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")


def save(figure: Figure, stem: Path, formats: Sequence[str], dpi: int) -> list[Path]:
    """Write a figure in each format, whole or not at all; the same figure gives the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in formats:
        path = stem.with_name(f"{stem.name}.{kind}")
        # Without these a file names the date, or the version that made it.
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        with replacing(path) as fresh:
            figure.savefig(fresh, format=kind, dpi=dpi, metadata=metadata)
        paths.append(path)
    return paths

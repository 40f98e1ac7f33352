"""The paper's figures, drawn from the runs of ``adarec-fast reproduce``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..config import ConfigError
from ..defaults import on_cpu
from ..experiments import Group, paper, summarise
from ..experiments.definition import RESULT, run_name
from ..experiments.reproduction import Reproduction
from ..experiments.tables import Row, data_set_of
from ..training import load_run
from . import intents, measure
from .sensitivity import sensitivity
from .style import COLOURS, FORMATS, MARKERS, look, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_USERS, _CLUSTERS, _SEED = 2000, 8, 0


@on_cpu()
def draw(
    wanted: Reproduction,
    path: str,
    folder: Path,
    out: Path,
    *,
    formats: Sequence[str] = FORMATS,
    dpi: int = 200,
) -> list[Path]:
    """Draw a figure of the paper for one data set.

    Args:
        wanted: the figure and its runs.
        path: of ``wanted.data``.
        folder: of the runs.
        out: folder of the files; of several data sets their names end in that of the data.
        formats: file types.
        dpi: pixels an inch, of PNG and of points inside an SVG.

    Returns:
        The files written.

    Raises:
        PlottingUnavailable: the extra is not installed.
        ConfigError: a run that is drawn is not finished, or too few users are there.
    """
    table = wanted.table
    with look():
        if table.swept:
            groups = summarise(folder, wanted.sweep().combinations)
            points = _points(wanted, path, groups)
            figure = (
                _costs(points, table.swept[0]) if paper.COSTS[0] in table.columns
                else sensitivity(points, "HR@20")
            )  # fmt: skip
        else:
            figure = _maps(wanted, path, folder)
        name = table.name
        if len(wanted.data) > 1:
            name += f"-{data_set_of(path) or Path(path).stem}"
        return save(figure, out / name, formats, dpi)


def _points(wanted: Reproduction, path: str, groups: Sequence[Group]) -> list[Group]:
    """A group for each value that was swept, the fields' defaults among them."""
    found = []
    for row in wanted.table.rows:
        key, _, value = row.label.partition("=")
        sought = wanted.combination(row, path)
        found += [
            Group({key: float(value)}, group.results) for group in groups if group.values == sought
        ]
    return found


def _costs(points: Sequence[Group], key: str) -> Figure:
    """HR@20, and beside it the seconds of an epoch's training."""
    done = [group for group in points if group.results]
    if not done:
        raise ConfigError(f"{key}: no run is finished yet")
    figure = new_figure(2.9)
    panels = figure.subplots(1, 2)
    shown = (("test", "HR@20", "HR@20, test users"),
             ("seconds_per_epoch", None, "training, seconds an epoch"))  # fmt: skip
    for axes, (part, metric, label) in zip(panels, shown, strict=True):
        found = [group.mean_std(part, metric) for group in done]
        axes.errorbar(
            [group.values[key] for group in done], [mean for mean, _ in found],
            yerr=[deviation or 0.0 for _, deviation in found], capsize=3, color=COLOURS[0],
            marker=MARKERS[0],
        )  # fmt: skip
        axes.set(xlabel=key.replace("_", " "), ylabel=label)
        axes.set_xticks([group.values[key] for group in done])
    return figure


def _maps(wanted: Reproduction, path: str, folder: Path) -> Figure:
    """Users by the first seed's models."""
    panels: list[tuple[str, Tensor]] = []
    for row in wanted.table.rows:
        if row.values is None:
            continue
        run = load_run(_finished(wanted, row, path, folder))
        groups = (False, True) if wanted.table.name == "figure2" and not panels else (True,)
        for sparse in groups:
            users = measure.sample_users(run.split, _USERS, seed=_SEED, sparse=sparse)
            points = measure.representations(run, users)["user"]
            who = "at most 5 items" if sparse else "all"
            panels.append((f"{row.label}, {who}", points))
    return intents.t_sne(panels, _CLUSTERS, _SEED)


def _finished(wanted: Reproduction, row: Row, path: str, folder: Path) -> Path:
    combination = {**wanted.combination(row, path), "seed": wanted.seeds[0]}
    run = folder / run_name(combination)
    if not (run / RESULT).exists():
        raise ConfigError(
            f"{wanted.table.name}: {row.label} is not trained yet; the same command goes on"
        )
    return run

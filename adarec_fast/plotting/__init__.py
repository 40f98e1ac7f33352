"""Pictures of runs and sweeps. Needs matplotlib and scikit-learn: ``adarec_fast[viz]``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import ConfigError
from ..data import InteractionData
from ..defaults import on_cpu
from ..experiments import summarise
from ..ranking.evaluation import evaluate
from ..training import Run
from ..training.run_folder import fingerprint
from . import curves, hierarchy, intents, measure, quality, users
from .sensitivity import sensitivity
from .style import FORMATS, PlottingUnavailable, look, require, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWN, _LONGEST_DRAWN = 8, 30  # users and tokens that a picture of two columns holds

__all__ = ["FORMATS", "PICTURES", "PlottingUnavailable", "RunPictures", "plot_run", "plot_sweep"]


@dataclass
class RunPictures:
    """The pictures of one run; what several of them need is computed once.

    Attributes:
        run: read by :func:`adarec_fast.training.load_run`.
        users: drawn for t-SNE and the cluster scores.
        clusters: of k-means.
        seed: of the draw, of k-means and of t-SNE.
        sparse: draw among users with at most five items of history.
        compare: other runs on the same data, whose representations and quality stand beside.
        user: id of the one whose hierarchy is drawn; None: of those who go deepest the one of the
            shortest history.

    Raises:
        ConfigError: a run to compare with was trained on other data.
    """

    run: Run
    users: int = 2000
    clusters: int = 8
    seed: int = 0
    sparse: bool = False
    compare: Sequence[Run] = field(default_factory=tuple)
    user: str | int | None = None

    def __post_init__(self) -> None:
        mine = fingerprint(self.run.data)
        for other in self.compare:
            if fingerprint(other.data) != mine:
                raise ConfigError(
                    f"compare: {other.path} was trained on other data than {self.run.path}: "
                    f"{_size(other.data)} there, {_size(self.run.data)} here, of other users, "
                    "items or histories; points side by side would be other people"
                )

    @cached_property
    def _depths(self) -> measure.Depths:
        return measure.depths(self.run)

    def _sample(self, run: Run) -> Tensor:
        users = measure.sample_users(run.split, self.users, seed=self.seed, sparse=self.sparse)
        intents.check_clusters(self.clusters, users.numel())
        return users

    def losses(self) -> Figure:
        """Loss parts over epochs."""
        labels = self.run.model.diagnostics().labels()
        if not labels:
            raise ConfigError(f"losses: {type(self.run.model).__name__} is fitted and has none")
        return curves.losses(self.run.history, labels)

    def metrics(self) -> Figure:
        """Validation metrics over epochs."""
        if not any(line.get("valid") for line in self.run.history):
            raise ConfigError("metrics: the run has no validation yet")
        return curves.metrics(self.run.history)

    def depth(self) -> Figure:
        """Depths by history length."""
        return hierarchy.depth_by_length(self._depths, measure.adarec(self.run).config.max_depth)

    def gate(self) -> Figure:
        """Gate by level."""
        config = measure.adarec(self.run).config
        if not config.moe:
            raise ConfigError("gate: the model was trained with moe=False and has none")
        return hierarchy.gate_by_level(
            self._depths, self.run.history, config.max_depth
        )

    def length(self) -> Figure:
        """Quality by history length."""
        people = measure.sample_users(self.run.split, self.run.data.num_users, seed=0)
        lengths = self.run.split.inputs("test")[1].diff()[people]
        ranks = [
            (run.path.name, evaluate(
                run.model, run.split, "test", seen_mask=run.train_config.seen_mask, intents=False,
                batch_size=run.train_config.evaluation_batch_size,
            ).ranks)
            for run in (self.run, *self.compare)
        ]  # fmt: skip
        return quality.quality_by_length(lengths, ranks)

    def trajectory(self) -> Figure:
        """What is computed for some users, and what padding would add."""
        config = measure.adarec(self.run).config
        if not config.diffusion:
            raise ConfigError("trajectory: the model was trained with diffusion=False")
        limit = min(config.max_length, _LONGEST_DRAWN)
        chosen = users.spread(self._depths.lengths, limit, _DRAWN)
        if not chosen:
            raise ConfigError(f"trajectory: nobody has a history of at most {limit} items")
        lengths, depths = (t[chosen].tolist() for t in (self._depths.lengths, self._depths.depth))
        return users.trajectory(lengths, depths, config.max_depth)

    def hierarchy(self) -> Figure:
        """One user's levels: gates, and the items that they lie near."""
        model = measure.adarec(self.run)
        people = measure.sample_users(self.run.split, self.run.data.num_users, seed=0)
        if self.user is not None:
            index = int(self.run.data.users.encode([self.user])[0])
            if index not in people:
                raise ConfigError(f"hierarchy: user {self.user!r} has no history to read")
        else:
            deepest = self._depths.depth == self._depths.depth.max()
            index = int(people[torch.where(deepest, self._depths.lengths, 1 << 40).argmin()])
        vectors = measure.levels(self.run, torch.tensor([index]))["x0"][:, 0]
        values, offsets = self.run.split.inputs("test")
        history = values[int(offsets[index]) : int(offsets[index + 1])][-model.config.max_length :]
        found = users.user_hierarchy(
            model, history, vectors, self.run.data.users.ids[index], self.run.data.items.ids
        )
        return users.hierarchy_of_user(found, model.config.max_depth)

    def tsne(self) -> Figure:
        """Map of user representations, coloured by cluster."""
        found = measure.representations(self.run, self._sample(self.run))
        names = {"user": "user representation $h_u$", "coarse": r"coarse intent $z_{coar}$"}
        if not self.compare:
            panels = [(names[name], points) for name, points in found.items()]
        else:
            panels = [(_short(self.run.path.name), found["user"])]
            for other in self.compare:
                points = measure.representations(other, self._sample(other))["user"]
                panels.append((_short(other.path.name), points))
        return intents.t_sne(panels, self.clusters, self.seed)

    def clusters_by_level(self) -> Figure:
        """Cluster scores of each level."""
        users = self._sample(self.run)
        levels = measure.levels(self.run, users)
        labels = self.run.data.labels
        planted = None
        if labels is not None:
            planted = {
                "themes": labels.user_theme[users],
                "sub-themes": labels.user_subtheme[users],
            }
        return intents.cluster_scores(levels, self.clusters, self.seed, planted)


PICTURES: dict[str, Callable[[RunPictures], Any]] = {
    "losses": RunPictures.losses,
    "metrics": RunPictures.metrics,
    "length": RunPictures.length,
    "depth": RunPictures.depth,
    "gate": RunPictures.gate,
    "trajectory": RunPictures.trajectory,
    "hierarchy": RunPictures.hierarchy,
    "tsne": RunPictures.tsne,
    "clusters": RunPictures.clusters_by_level,
}


@on_cpu()
def plot_run(
    pictures: RunPictures,
    out: Path,
    *,
    only: Sequence[str] | None = None,
    formats: Sequence[str] = FORMATS,
    dpi: int = 200,
    skipped: Callable[[str], None] | None = None,
) -> list[Path]:
    """Draw pictures of a run.

    Args:
        pictures: the run, and how users are sampled.
        out: folder of the files, made if need be.
        only: names of :data:`PICTURES`; all that the model has something to show for by default.
        formats: file types.
        dpi: pixels an inch, of PNG and of points inside an SVG.
        skipped: told why a picture was left out, where ``only`` did not ask for it.

    Returns:
        The files written.

    Raises:
        PlottingUnavailable: the extra is not installed.
        ConfigError: an unknown picture or format, or one asked for that cannot be drawn.
    """
    _check(only or (), PICTURES, "picture")
    _check(formats, FORMATS, "format")
    if not pictures.run.history:
        raise ConfigError(f"{pictures.run.path}: the run has no completed epoch yet")
    if any(name in ("tsne", "clusters") for name in only or PICTURES):
        require("sklearn")
    written = []
    with look():
        for name in only or PICTURES:
            try:
                figure = PICTURES[name](pictures)
            except ConfigError as error:
                if only or skipped is None:
                    raise
                skipped(str(error) if str(error).startswith(name) else f"{name}: {error}")
                continue
            written += save(figure, out / name, formats, dpi)
    return written


def plot_sweep(
    folder: Path,
    out: Path,
    *,
    metric: str = "NDCG@20",
    sparse: bool = False,
    formats: Sequence[str] = FORMATS,
    dpi: int = 200,
) -> list[Path]:
    """Draw ``sensitivity`` of a sweep's folder; see :func:`.sensitivity.sensitivity`."""
    _check(formats, FORMATS, "format")
    with look():
        return save(
            sensitivity(summarise(folder), metric, sparse=sparse),
            out / "sensitivity",
            formats,
            dpi,
        )


def _size(data: InteractionData) -> str:
    return f"{data.name!r} with {data.num_users} users and {data.num_items} items"


def _short(name: str, limit: int = 36) -> str:
    """A run's name as a title: ``$h_u$ of NAME``, its middle left out where it is too long."""
    if len(name) > limit:
        name = f"{name[: limit // 2]}…{name[-(limit // 2 - 1) :]}"
    escaped = name.replace("$", r"\$")  # a bare one would begin a formula
    return f"$h_u$ of {escaped}"


def _check(given: Sequence[str], known: Any, what: str) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{what} {name!r} is not one of {', '.join(known)}")

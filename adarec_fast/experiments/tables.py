"""The paper's tables and figures: the runs that each needs, and their names.

Tables 1 to 4 and the figures share one sweep, so that the full model is trained once for all of
them; Table 5 has short runs of its own, one after the other. Which model a system is stands in
:mod:`.systems`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import ConfigError
from . import paper
from .systems import FULL, ORIGINAL, SYSTEMS, System

SPARSE_LENGTH = 5
# What says which line a run belongs to; set for all lines, it would belie their names.
OWN_KEYS = (
    "data", "seed", "model", "loss", "prediction", "truncate", "depth", "diffusion", "moe",
    "router",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: as shown.
        printed: its name in :mod:`.paper`; None where the paper has no such line.
        values: what makes a run one of this line; None where nothing is run.
        loss: the mode of its loss, ``"original"`` or ``"full_ce"``.
        part: of ``result.json``, for metrics.
        system: whose hyper-parameters it has beside ``values``.
        why: why nothing is run.
        rank: lines of lower ranks are run first, since they tell more.
    """

    label: str
    printed: str | None
    values: Mapping[str, Any] | None = None
    loss: str = FULL
    part: str = "test"
    system: System = SYSTEMS["ADARec"]
    why: str | None = None
    rank: int = 0

    def settings(self, data_set: str | None) -> dict[str, Any]:
        """Hyper-parameters on a data set, which may be set otherwise for the whole table."""
        return self.system.settings_on(data_set, self.loss)


@dataclass(frozen=True)
class Table:
    """A table of the paper, or what a figure of it is drawn from.

    Attributes:
        name, title: ``"table1"``, and what it shows.
        columns: figures of each line.
        rows: lines.
        printed: the paper's figures by data set and line; none of what it shows as a picture.
        notes: what a reader has to know.
        defaults: values of all runs that are not the fields' own defaults.
        folder: of its runs, below that of the tables.
        swept: fields that its lines are values of.
        brief: whether its runs are long enough to be timed alone.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    printed: Mapping[str, Mapping[str, paper.Figures]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=lambda: {"supervision": "all"})
    folder: str = "runs"
    swept: tuple[str, ...] = ()
    brief: bool = False

    @property
    def is_figure(self) -> bool:
        """Whether a picture belongs to it."""
        return self.name.startswith("figure")

    @property
    def by_rank(self) -> list[Row]:
        """Lines that are run, those first that tell most."""
        return sorted((row for row in self.rows if row.values is not None), key=lambda r: r.rank)


# Lines in the order in which they answer the tables' questions; the others follow.
_FIRST = (
    ("ADARec", FULL), ("SASRec", ORIGINAL), ("ELCRec", ORIGINAL), ("SASRec", FULL),
    ("ADARec w/ ELCRec", FULL), ("ELCRec", FULL), ("ICLRec", ORIGINAL), ("ICLRec", FULL),
    ("ADARec w/ ICLRec", FULL), ("BASRec", ORIGINAL), ("Caser", ORIGINAL), ("BERT4Rec", FULL),
    ("DiffDiv", FULL), ("IOCRec", FULL), ("PDRec", ORIGINAL), ("GlobalDiff", FULL),
)  # fmt: skip


def _lines(
    systems: Iterable[str],
    *,
    suffix: str = "",
    printed: Iterable[str] | None = None,
    part: str = "test",
    later: int = 0,
    values: Mapping[str, Any] | None = None,
) -> list[Row]:
    """A line for each system and loss; one without runs for a system that is not here.

    Args:
        systems: the paper's names.
        suffix: of the labels.
        printed: those with figures in the paper; all by default.
        part: of the results.
        later: added to the ranks.
        values: of all these runs.
    """
    systems = tuple(systems)
    known = systems if printed is None else tuple(printed)
    found = []
    for name in systems:
        system = SYSTEMS[name]
        its = name if name in known else None
        if system.why_missing is not None:
            row = Row(name + suffix, its, None, system.losses[0], part, system, system.why_missing)
            found.append(row)
            continue
        for loss in system.losses:
            rank = _FIRST.index((name, loss)) if (name, loss) in _FIRST else len(_FIRST)
            chosen = {**system.values(loss), **(values or {})}
            found.append(
                Row(name + suffix, its, chosen, loss, part, system, rank=rank + later)
            )
    return found


def _with_reading_b(name: str) -> list[Row]:
    """Of ADARec on another system, its lines of the other reading, too."""
    other = f"{name}, reading B"
    found = _lines([name])
    if other in SYSTEMS:
        found += [replace(row, printed=name) for row in _lines([other])]
    return found


def _ablation(label: str, **values: Any) -> Row:
    return Row(label, label, values)


def _points(key: str, values: Iterable[float]) -> list[Row]:
    """A line for each value of a field; the model's default is a run that other tables have."""
    default = {"lambda_expl": 0.01, "lambda_deno": 0.1, "num_experts": 2}[key]
    return [
        Row(f"{key}={value:g}", None, {} if value == default else {key: value}, rank=number)
        for number, value in enumerate(values)
    ]


# Five items are read before each target: an example's target is a sixth training item. The authors'
# repository cuts histories in this way with --shorten_seq_to 5.
TRUNCATED = {"truncate": SPARSE_LENGTH + 1, "max_length": SPARSE_LENGTH}
_CUT = ("SASRec", *paper.TABLE2["Beauty"])
_COMPARE = (
    "original: a system's own loss, which the published figures were made with; full_ce: Eq. 13, "
    "as of ADARec. Figures differ more by the loss than by most systems: compare within one."
)
TABLES = {
    table.name: table
    for table in (
        Table(
            "table1",
            "overall performance",
            paper.METRICS,
            tuple(_lines(paper.TABLE1["Beauty"])),
            paper.TABLE1,
            (_COMPARE,),
        ),
        Table(
            "table2",
            f"sparse sequences, history of at most {SPARSE_LENGTH}",
            paper.METRICS,
            (
                *_lines(
                    _CUT, suffix=", histories cut", printed=paper.TABLE2["Beauty"],
                    later=len(_FIRST), values=TRUNCATED,
                ),
                *_lines(
                    paper.TABLE1["Beauty"], suffix=", sparse users", printed=(),
                    part="test_sparse",
                ),
            ),
            paper.TABLE2,
            (
                _COMPARE,
                f"Histories cut: all users, trained and tested on the {SPARSE_LENGTH} items before "
                "each target, as the paper's figures seem to be; sparse users: those with at most "
                f"{SPARSE_LENGTH} items before the test item, by the models of table1.",
            ),
        ),
        Table(
            "table3",
            "ADARec on other systems",
            paper.METRICS[2:],
            tuple(row for name in paper.TABLE3["Beauty"] for row in _with_reading_b(name)),
            paper.TABLE3,
            (
                _COMPARE,
                "ADARec w/ a system: h_u ranks in the place of the system's last vector, and the "
                "system's other losses stay. Reading B: the system's own read-out of the levels' "
                "mean ranks, without HP-MoE and L_cont. The paper's figures may be of either.",
            ),
        ),
        Table(
            "table4",
            "ablation of the components",
            paper.METRICS[2:],
            (
                _ablation("full"),
                _ablation("no ADC", depth="fixed"),
                _ablation("no HDA", diffusion=False),
                _ablation("no ADC, no HDA", depth="fixed", diffusion=False),
                _ablation("no HP-MoE", moe=False),
                _ablation("no content-aware router", router="level"),
                _ablation("no L_cont", lambda_cont=0.0),
            ),
            paper.TABLE4,
            (
                "no ADC: depth T_max for everybody; no HDA: every level is E itself; no HP-MoE: "
                "the mean of the levels; no content-aware router: the gate sees the level alone.",
            ),
        ),
        Table(
            "table5",
            "efficiency",
            paper.COSTS,
            tuple(_lines(paper.TABLE1["Beauty"], printed=paper.TABLE5["Beauty"])),
            paper.TABLE5,
            (
                "The paper's figures are of an RTX 3090. Here: median seconds of an epoch's "
                "training, and median milliseconds from one user's history to the 20 best items, "
                "of short runs of their own, all systems once and then all of them again; each in "
                "its own batches and without its first stage. Read them only if nothing else ran "
                "on the machine.",
            ),
            {"supervision": "all", "epochs": 3},
            "times",
            brief=True,
        ),
        Table(
            "figure2",
            "user representations of rich and of sparse histories",
            paper.METRICS[2:],
            (
                *(row for row in _lines(["ELCRec"]) if row.loss == ORIGINAL),
                *(row for row in _lines(["DiffDiv"]) if row.loss == FULL),
            ),
            notes=(
                "The picture: all users by ELCRec, those with at most 5 items of history by it, "
                "and these by DiffDiv, of the first seed.",
            ),
        ),
        Table(
            "figure4",
            "weights of the losses",
            paper.METRICS[2:],
            (
                *_points("lambda_expl", (0.001, 0.003, 0.01, 0.03, 0.1)),
                *_points("lambda_deno", (0.01, 0.03, 0.05, 0.1, 0.15)),
            ),
            swept=("lambda_expl", "lambda_deno"),
        ),
        Table(
            "figure5",
            "number of experts",
            ("HR@20", paper.COSTS[0]),
            tuple(_points("num_experts", (2, 3, 4))),
            notes=(
                "Two experts have kernels of their own, more of them are run by plain PyTorch in "
                "part, which a CPU's time for an epoch shows.",
            ),
            swept=("num_experts",),
        ),
        Table(
            "figure6",
            "intents of users with sparse histories",
            paper.METRICS[2:],
            (
                *(row for row in _lines(["DiffDiv"]) if row.loss == FULL),
                *_lines(["ADARec"]),
            ),
            notes=(
                "The picture: users with at most 5 items of history, by the models of the first "
                "seed.",
            ),
        ),
    )
}


def data_set_of(path: str) -> str | None:
    """Which of the paper's data sets a file is, by its name; None if it is none of them."""
    stem = Path(path).stem.lower()
    for name, about in paper.DATA_SETS.items():
        if stem in (name.lower(), about.file.lower()):
            return name
    return None


def get_table(name: str) -> Table:
    """The table of that name.

    Raises:
        ConfigError: there is none; says which there are.
    """
    if name not in TABLES:
        raise ConfigError(f"table {name!r} is not one of {', '.join(TABLES)}")
    return TABLES[name]

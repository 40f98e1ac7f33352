"""The phases of a run, in order of value, and how they share its time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Phase(NamedTuple):
    """A part of the run; ``bench.gpu.phases.<name>`` does it.

    Attributes:
        name: the module's.
        weight: its share of the time, in seconds of a run that has enough of it.
        about: what it finds out.
    """

    name: str
    weight: float
    about: str


PHASES = (
    Phase("environment", 15, "machine, versions, peaks"),
    Phase("accuracy", 60, "each op against packed PyTorch in float64, on the card"),
    Phase("flows", 45, "captured training steps and requests against plain ones"),
    Phase("ops", 75, "each op by graph replay: train and large; IEEE, TF32, bf16"),
    Phase("whole", 65, "captured and eager step, an epoch, requests of 1 and of 1024 users"),
    Phase("profile", 25, "the kernels of a captured step and of a request, with a trace"),
    Phase("tests", 110, "the tests marked gpu, the most telling first"),
    Phase("sanitizer", 40, "compute-sanitizer memcheck on a step of 64"),
    Phase("baselines", 150, "eager, compiled and packed PyTorch beside ours"),
    Phase("counters", 60, "Nsight Compute on the slowest kernels"),
    Phase("beauty", 130, "training on real data, with its quality"),
)
# What a first visit to a card is for, and what is left for a second one.
GROUPS = {
    "all": tuple(phase.name for phase in PHASES),
    "first": tuple(phase.name for phase in PHASES[:8]),
    "second": ("environment", *(phase.name for phase in PHASES[8:])),
}
_LEAST = 5.0  # seconds; a phase that would get less is not begun


def chosen(names: str) -> tuple[Phase, ...]:
    """The phases of a comma-separated list of names and groups, in the order of ``PHASES``.

    Raises:
        ValueError: an unknown name.
    """
    wanted: set[str] = set()
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in GROUPS and name not in GROUPS["all"]:
            known = ", ".join((*GROUPS, *GROUPS["all"]))
            raise ValueError(f"--phases: {name!r} is unknown; choose from {known}")
        wanted.update(GROUPS.get(name, (name,)))
    if not wanted:
        raise ValueError(f"--phases: {names!r} names none; choose from {', '.join(GROUPS['all'])}")
    return tuple(phase for phase in PHASES if phase.name in wanted)


def share(phase: Phase, rest: Iterable[Phase], left: float) -> float | None:
    """Seconds for a phase: of what is left its part by weight among all that follow.

    What a phase does not need so goes to those behind it. Seldom more than its weight twice: none
    of them gains by it. None: too little to begin.
    """
    total = phase.weight + sum(other.weight for other in rest)
    seconds = min(left * phase.weight / total, 2 * phase.weight)
    return seconds if seconds >= _LEAST else None

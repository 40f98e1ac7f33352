"""What a comparison trains: named arms, each on every data set with every seed.

::

    arms:                                  # the first one is the baseline, unless ...
      backbone: {model: sasrec}
      three layers: {model: sasrec, num_layers: 3}
      paper: paper                         # a preset
      no contrast: {preset: paper, lambda_cont: 0}
    baseline: backbone                     # ... it is named
    epochs: 60                             # any field for all arms, which may override it
    notes: [What a reader of the table has to know.]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ConfigError, read_mapping
from ..training.presets import preset
from ..training.values import SECTIONS, Values, from_mapping
from .definition import Sweep

_PRESET = "preset"
# The comparison itself gives each run these.
_OWN = ("data", "seed")
# Of the data an arm may set this alone: the users and what they are asked for stay the same.
_HARMLESS = {"truncate"}


@dataclass(frozen=True)
class Arms:
    """A comparison's definition, but for data and seeds.

    Attributes:
        arms: what each sets on top of ``shared``, by key as in a sweep's combination; presets are
            written out.
        baseline: the arm that the others are compared with.
        shared: values of all arms.
        notes: of the one who wrote them, for the reader of the table.
    """

    arms: dict[str, dict[str, Any]]
    baseline: str
    shared: Values
    notes: tuple[str, ...] = ()

    @classmethod
    def create(
        cls,
        arms: Mapping[str, Mapping[str, Any] | str | None],
        *,
        baseline: str | None = None,
        shared: Values | None = None,
        over: Values | None = None,
        notes: Iterable[str] = (),
        source: str = "arms",
    ) -> Arms:
        """Check and complete what a file says.

        Args:
            arms: by name: a preset's name, or values, flat or in sections, ``preset`` among them.
            baseline: by default the first arm.
            shared: values of all arms, which an arm may override.
            over: values of all arms, in the place of what they or ``shared`` set.
            notes: sentences.
            source: opens the message of an error.

        Raises:
            ConfigError: there is no arm, a key or a preset is unknown, an arm sets a seed or what
                changes the users or their items, two arms are the same, or the baseline is none
                of them.
        """
        if not arms:
            raise ConfigError(f"{source}: arms must name one arm or more")
        over = over or Values()
        shared = (shared or Values()).update(over)
        _refuse_own(shared, source)
        found = {}
        for name, entry in arms.items():
            own = _flat(_arm(entry, f"{source}, arm {name!r}", shared.system))
            found[str(name)] = {k: v for k, v in own.items() if k not in _flat(over)}
        names = list(found)
        for number, name in enumerate(names):
            for other in names[:number]:
                if found[other] == found[name]:
                    raise ConfigError(
                        f"{source}: the arms {other!r} and {name!r} set the same; leave out one"
                    )
        baseline = names[0] if baseline is None else baseline
        if baseline not in found:
            raise ConfigError(
                f"{source}: baseline={baseline!r} must be one of {', '.join(map(repr, names))}"
            )
        return cls(found, baseline, shared, tuple(notes))

    def keys(self, data: Iterable[str], seeds: Iterable[int]) -> list[tuple[str, str, int]]:
        """Arm, data and seed of every run: all arms of a seed first, so that they compare."""
        return [(arm, name, seed) for seed in seeds for name in data for arm in self.arms]

    def sweep(self, data: Sequence[str], seeds: Sequence[int]) -> Sweep:
        """The runs on some files, in the order of :meth:`keys`."""
        return Sweep.create(
            self.shared,
            combinations=[
                {"data": path, **self.arms[arm], "seed": seed}
                for arm, path, seed in self.keys(data, seeds)
            ],
        )


def read_arms(
    path: Path, *, baseline: str | None = None, over: Values | None = None
) -> Arms:
    """A YAML or JSON file of arms; see the module.

    Args:
        path: the file.
        baseline: in the place of the file's.
        over: as :meth:`Arms.create` takes it.

    Raises:
        ConfigError: the file does not parse, or as :meth:`Arms.create`.
    """
    mapping = dict(read_mapping(path))
    arms, named = mapping.pop("arms", None), mapping.pop("baseline", None)
    notes = mapping.pop("notes", [])
    if not isinstance(arms, dict):
        raise ConfigError(f"{path}, arms: must be a mapping of names to values or presets")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ConfigError(f"{path}, notes: must be a list of sentences")
    return Arms.create(
        arms,
        baseline=baseline if baseline is not None else named,
        shared=from_mapping(mapping, str(path)),
        over=over,
        notes=notes,
        source=str(path),
    )


def _arm(entry: Mapping[str, Any] | str | None, where: str, system: str | None) -> Values:
    if isinstance(entry, str):
        return preset(entry, f"{where}: preset")
    if entry is None:
        return Values()
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: must be a mapping of keys to values, or a preset's name")
    own, values = dict(entry), Values()
    if _PRESET in own:
        values = preset(own.pop(_PRESET), f"{where}: preset")
    given = from_mapping(own, where, values.system or system)
    if values.system not in (None, given.system or values.system):
        raise ConfigError(
            f"{where}: its preset is of the model {values.system}, and it names {given.system}; "
            "leave out one of the two"
        )
    values = values.update(given)
    _refuse_own(values, where)
    other = sorted(values.data.keys() - _HARMLESS)
    if other:
        raise ConfigError(
            f"{where}: {', '.join(other)}: all arms must be asked the same; give it for all of "
            "them, beside arms"
        )
    return values


def _refuse_own(values: Values, where: str) -> None:
    for section in SECTIONS:
        for key in _OWN:
            if key in values.section(section):
                raise ConfigError(f"{where}: {key} is given by --data and --seeds; leave it out")


def _flat(values: Values) -> dict[str, Any]:
    """By key; of sections that share no key but those that are refused."""
    return {**values.data, **values.model, **values.train}

"""What a sweep is: shared values, and the combinations of values that its runs differ in.

::

    sweep.json     the definition; a folder has one, and keeps it
    RUN/           a run folder a combination, see :mod:`adarec_fast.training.run_folder`
    RUN/ranks.safetensors  the ranks of its users
    RUN/result.json  written last: this combination is finished
    summary.json summary.csv  means and standard deviations over the seeds
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ConfigError, DataConfig, TrainConfig, absolute_source, read_mapping
from ..documents import DocumentError, parse_yaml
from ..files import locked
from ..models.registry import DEFAULT, create_config, described
from ..training.checkpoint import read_json, write_atomically
from ..training.errors import RunFolderError
from ..training.values import SECTIONS, Values, from_mapping, known_keys, place

DEFINITION, RESULT, LOCKS = "sweep.json", "result.json", ".locks"
_FORMAT = 1
# A result does not depend on these, or only by rounding; they may change when a sweep goes on.
_FREE = {
    "model": {"backend"},
    "train": {"device", "log_every", "checkpoint_every", "evaluation_batch_size",
              "shard_items", "worker_timeout", "save_timeout"},
    "data": set[str](),
}
_SEEDS = ("seed", "model.seed", "train.seed")
_LONGEST_NAME = 150  # bytes; file systems allow 255


class SweepError(RunFolderError):
    """A folder that holds another sweep, or no sweep."""


@dataclass(frozen=True)
class Sweep:
    """A definition.

    Attributes:
        base: what all runs share, by section, as given (absent fields keep their defaults).
        combinations: what each run sets on top, by key (``"lambda_deno"``, ``"model.seed"``);
            no two alike.

    Raises:
        ConfigError: a key is unknown or a value out of range, in any combination; nothing to run;
            two combinations are the same.
    """

    base: Values
    combinations: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        if not self.combinations:
            raise ConfigError("a sweep needs at least one combination; give --grid KEY=V1,V2")
        seen: dict[str, dict[str, Any]] = {}
        for combination in self.combinations:
            name = run_name(combination)
            if name in seen:
                raise ConfigError(f"the combination {name} is there twice; each must differ")
            seen[name] = combination
            values = self.values(combination)
            DataConfig.create(**values.data)
            create_config({"num_items": 1, **values.model})
            TrainConfig.create(**values.train)

    @classmethod
    def create(
        cls,
        base: Values | None = None,
        grid: Mapping[str, Sequence[Any]] | None = None,
        combinations: Iterable[Mapping[str, Any]] | None = None,
    ) -> Sweep:
        """Each of ``combinations`` (one empty one by default) with each point of ``grid``.

        Raises:
            ConfigError: as the class; a grid's key has no values, or a combination sets it too.
        """
        grid = dict(grid or {})
        for key, values in grid.items():
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise ConfigError(f"grid: {key}={values!r} must be a list of one value or more")
        made = []
        for given in combinations if combinations is not None else [{}]:
            both = sorted(set(given) & set(grid))
            if both:
                raise ConfigError(f"{', '.join(both)}: in the grid and in a combination; choose")
            for point in itertools.product(*grid.values()):
                made.append({**given, **dict(zip(grid, point, strict=True))})
        base = _resolved(base or Values())
        return cls(base, tuple(_plain(combination, base.system) for combination in made))

    def values(self, combination: Mapping[str, Any]) -> Values:
        """The base with a combination on top; of another model, what both know of the base."""
        own = place(combination, system=self.base.system)
        base = self.base
        if own.system not in (None, base.system or DEFAULT):
            known = known_keys("model", own.system)
            shared = {name: value for name, value in base.model.items() if name in known}
            base = Values(base.data, shared, base.train)
        return base.update(own)

    def to_json(self) -> dict[str, Any]:
        """JSON-able, with every default written out, so that a later version's cannot creep in."""
        data = DataConfig.create(**self.base.data).to_dict()
        model = described(create_config({"num_items": 1, **self.base.model}))
        del model["num_items"]
        return {
            "format": _FORMAT,
            "base": {
                "data": data,
                "model": model,
                "train": TrainConfig.create(**self.base.train).to_dict(),
            },
            "combinations": list(self.combinations),
        }

    @classmethod
    def load(cls, folder: Path) -> Sweep:
        """Read the definition of a sweep's folder.

        Raises:
            SweepError: there is none, or it does not parse.
        """
        path = folder / DEFINITION
        if not path.exists():
            raise SweepError(f"{str(folder)!r} holds no sweep: {path} does not exist")
        stored = read_json(path)
        base, combinations = stored.get("base"), stored.get("combinations")
        if stored.get("format") != _FORMAT or not isinstance(base, dict):
            raise SweepError(f"{path}: no sweep's definition of format {_FORMAT}")
        if not isinstance(combinations, list) or not all(isinstance(c, dict) for c in combinations):
            raise SweepError(f"{path}: combinations must be a list of objects")
        return cls(from_mapping(base, str(path)), tuple(combinations))

    def store(self, folder: Path, *, extend: bool = False) -> None:
        """Write the definition, or compare it with the one that is there.

        Args:
            folder: made if need be.
            extend: combinations may be added to a sweep that is otherwise the same; those that
                are there stay.

        Raises:
            SweepError: the folder holds another sweep; the first difference is named.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            merged = self.merged(folder, extend=extend)
            text = json.dumps(merged.to_json(), indent=1) + "\n"
            write_atomically(folder / DEFINITION, text)

    def merged(self, folder: Path, *, extend: bool = False) -> Sweep:
        """This sweep, with the older combinations of its folder before its own; see ``store``."""
        if not (folder / DEFINITION).exists():
            return self
        old = Sweep.load(folder)
        self._check_same_base(old, folder)
        mine = {run_name(c): c for c in self.combinations}
        theirs = {run_name(c): c for c in old.combinations}
        if mine.keys() != theirs.keys() and not extend:
            new, gone = sorted(mine.keys() - theirs), sorted(theirs.keys() - mine)
            parts = [f"{w}: {', '.join(n)}" for w, n in (("new", new), ("gone", gone)) if n]
            raise SweepError(
                f"{str(folder)!r} holds a sweep over other combinations ({'; '.join(parts)}); run "
                "it as it was, add to it with --extend, or choose another folder"
            )
        return Sweep(self.base, tuple({**theirs, **mine}.values()))

    def _check_same_base(self, old: Sweep, folder: Path) -> None:
        before, now = old.to_json()["base"], self.to_json()["base"]
        for section in SECTIONS:
            for key, value in now[section].items():
                if key not in _FREE[section] and before[section].get(key) != value:
                    raise SweepError(
                        f"{str(folder)!r} holds another sweep: {section}.{key} is "
                        f"{before[section].get(key)!r} there and {value!r} now; go on with the old "
                        "value or choose another folder"
                    )


def run_name(combination: Mapping[str, Any]) -> str:
    """A folder name: ``lambda_deno=0.1,seed=0``; what a file system dislikes becomes ``-``."""
    parts, exact = [], []
    for key, value in sorted(combination.items(), key=lambda pair: (pair[0] in _SEEDS, pair[0])):
        plain = json.dumps(value) if not isinstance(value, str) else value
        exact.append(f"{key}={plain}")
        # Of a path its last part is enough to read; the checksum below keeps names apart.
        short = Path(plain).stem if key in ("data", "data.data") else plain
        parts.append(f"{key}={re.sub(r'[^A-Za-z0-9.+-]+', '-', short)}")
    name = ",".join(parts) or "base"
    if name != (",".join(exact) or "base") or len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(",".join(exact).encode()).hexdigest()[:8]
        name = f"{name[:_LONGEST_NAME]},{digest}"
    return name


def _plain(combination: Mapping[str, Any], system: str | None) -> dict[str, Any]:
    """A combination's values as the configurations hold them: ``"1e-3"`` becomes 0.001.

    ``system``: the model, where the combination does not name it.

    Raises:
        ConfigError: a key is unknown, or a value out of range.
    """
    placed = _resolved(place(combination, system=system))
    model = {"num_items": 1, "model": system or DEFAULT, **placed.model}
    values = {
        "data": DataConfig.create(**placed.data).to_dict(),
        "model": described(create_config(model)),
        "train": TrainConfig.create(**placed.train).to_dict(),
    }
    result = {}
    for key in combination:
        section, _, name = key.rpartition(".")
        home = section or next(home for home in SECTIONS if name in placed.section(home))
        result[key] = values[home][name]
    return result


def _resolved(values: Values) -> Values:
    """The same, with absolute paths to the data."""
    return Values(absolute_source(values.data), dict(values.model), dict(values.train))


def without_seeds(combination: Mapping[str, Any]) -> dict[str, Any]:
    """A combination's values other than its seeds."""
    return {key: value for key, value in combination.items() if key not in _SEEDS}


def parse_grid(texts: Iterable[str]) -> dict[str, list[Any]]:
    """``KEY=V1,V2,...`` as typed on the command line; values are read as YAML.

    Raises:
        ConfigError: no ``=``, no value, a value that does not parse, or a key named twice.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        key = key.strip()
        try:
            values = parse_yaml(f"[{listed}]") if equals else None
        except DocumentError:
            values = None
        if not key or not values or any(isinstance(v, dict | list) for v in values):
            raise ConfigError(f"--grid {text!r}: write KEY=V1,V2, such as lambda_deno=0.03,0.1")
        if key in grid:
            raise ConfigError(f"--grid {key}: named twice; put its values into one list")
        grid[key] = values
    return grid


def read_sweep_file(
    path: Path,
) -> tuple[Values, dict[str, list[Any]], list[dict[str, Any]] | None]:
    """A YAML or JSON file: any configuration, ``grid`` (lists by key), ``list`` (of mappings).

    Raises:
        ConfigError: it does not parse, a key is unknown, or ``grid`` or ``list`` has no such form.
    """
    mapping = dict(read_mapping(path))
    grid, listed = mapping.pop("grid", {}), mapping.pop("list", None)
    if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
        raise ConfigError(f"{path}, grid: must give each key a list of one value or more")
    if listed is not None and not (
        isinstance(listed, list) and listed and all(isinstance(entry, dict) for entry in listed)
    ):
        raise ConfigError(f"{path}, list: must be a list of mappings of keys to values")
    return from_mapping(mapping, str(path)), grid, listed


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Wait for, then hold, the small files of a sweep's folder.

    Raises:
        OSError: the folder cannot be written, or its file system gives no locks.
    """
    locks = folder / LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    with locked(locks / "files"):
        yield

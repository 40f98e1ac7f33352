"""Chosen values of the configurations' fields, by section: of files, options and assignments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from ..config import (
    BaseConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    TrainConfig,
    read_mapping,
    unknown_keys,
)
from ..documents import DocumentError, parse_yaml
from ..models.registry import BUILT_IN, DEFAULT, config_type

SECTIONS: dict[str, type[BaseConfig]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "train": TrainConfig,
}
# What comes from the data.
_NOT_CHOSEN = {"num_items", "num_users"}
# In the section ``model``, beside the fields of the model that it names.
KIND = "model"


@dataclass
class Values:
    """Chosen values by section; what is absent keeps the field's default."""

    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    def section(self, name: str) -> dict[str, Any]:
        values: dict[str, Any] = getattr(self, name)
        return values

    @property
    def system(self) -> str | None:
        """The name of the model, where it is chosen."""
        found = self.model.get(KIND)
        return found if isinstance(found, str) else None

    def update(self, other: Values) -> Values:
        """These values, with those of ``other`` on top."""
        return Values(**{name: self.section(name) | other.section(name) for name in SECTIONS})


def fields(section: str, system: str | None = None) -> dict[str, FieldInfo]:
    """Fields that a section may hold, by name; of all models of this package if none is named.

    Raises:
        ConfigError: there is no such model.
    """
    if section != "model":
        return SECTIONS[section].model_fields
    found: dict[str, FieldInfo] = {}
    for name in BUILT_IN if system is None else [system]:
        found = config_type(name).model_fields | found
    return {name: info for name, info in found.items() if name not in _NOT_CHOSEN}


def known_keys(section: str, system: str | None = None) -> list[str]:
    """Keys that a section of a configuration may hold, for a model or for any of this package."""
    return [*([KIND] if section == "model" else []), *fields(section, system)]


def read_config(path: Path, system: str | None = None) -> Values:
    """Values of a JSON or YAML file, flat or with the sections ``data``, ``model``, ``train``.

    Args:
        path: the file.
        system: the model whose fields they are, where the file does not name it.

    Raises:
        ConfigError: the file does not parse, or names an unknown key.
    """
    return from_mapping(read_mapping(path), str(path), system)


def from_mapping(mapping: Mapping[str, Any], source: str, system: str | None = None) -> Values:
    """Values of a mapping, flat or with the sections ``data``, ``model``, ``train``.

    Raises:
        ConfigError: an unknown key; ``source`` opens the message.
    """
    flat: dict[str, Any] = {}
    sections = Values()
    nested = mapping.get("model")
    system = _kind(nested if isinstance(nested, Mapping) else mapping) or system
    for key, value in mapping.items():
        if key in SECTIONS and isinstance(value, Mapping):
            known = known_keys(key, system)
            unknown = [str(name) for name in value if name not in known]
            if unknown:
                raise ConfigError(f"{source}, {key}: {unknown_keys(unknown, known)}")
            sections.section(key).update(_plain(value, key, system))
        else:
            flat[key] = value
    return place(flat, f"{source}: ", system).update(sections)


def place(values: Mapping[str, Any], where: str = "", system: str | None = None) -> Values:
    """Give flat (or ``section.key``) values to the sections that know their keys.

    Args:
        values: by key.
        where: opens the message of an error.
        system: the model whose fields they are, where they do not name it themselves; None: of
            any model of this package.

    Raises:
        ConfigError: a key is unknown.
    """
    result = Values()
    unknown = []
    system = _kind(values) or system
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        homes = [s for s in ([section] if section else SECTIONS) if s in SECTIONS]
        homes = [s for s in homes if name in known_keys(s, system)]
        if not homes:
            unknown.append(key)
        for home in homes:
            result.section(home).update(_plain({name: value}, home, system))
    if unknown:
        known = dict.fromkeys(key for s in SECTIONS for key in known_keys(s, system))
        model = "" if system in (None, DEFAULT) else f"model {system}: "
        raise ConfigError(where + model + unknown_keys(unknown, [*known, *SECTIONS]))
    return result


def _kind(values: Mapping[str, Any]) -> str | None:
    """The model that values name."""
    found = values.get(KIND, values.get(f"model.{KIND}"))
    return found if isinstance(found, str) else None


def read_assignments(assignments: Iterable[str], system: str | None = None) -> Values:
    """Values of ``--set key=value``, of a model; a value is read as YAML.

    Raises:
        ConfigError: there is no ``=``, the value does not parse, or the key is unknown.
    """
    values = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {assignment!r}: write key=value, such as dropout=0.3")
        try:
            values[key.strip()] = parse_yaml(text)
        except DocumentError:
            raise ConfigError(f"--set {assignment!r}: the value is not YAML") from None
    return place(values, "--set: ", system)


def renamed(values: Values) -> Values:
    """The same, with ``precision`` of the model in the place of the ``amp`` that it once was.

    Raises:
        ConfigError: both are given and contradict each other.
    """
    if "amp" not in values.train:
        return values
    train = dict(values.train)
    amp = TrainConfig.create(amp=train.pop("amp")).amp
    precision = {"off": "ieee", "bf16": "bf16"}[amp]
    if values.model.get("precision", precision) != precision:
        raise ConfigError(
            f"amp={amp} contradicts precision={values.model['precision']}; leave out amp, its "
            f"former name"
        )
    return Values(values.data, {**values.model, "precision": precision}, train)


def _plain(values: Mapping[str, Any], section: str, system: str | None) -> dict[str, Any]:
    """YAML reads a bare ``off`` as false; where ``off`` is a choice, that is what was meant."""
    result, known = dict(values), fields(section, system)
    for name, value in result.items():
        if value is False and name in known and "off" in get_args(known[name].annotation):
            result[name] = "off"
    return result

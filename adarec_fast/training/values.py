"""Chosen values of the configurations' fields, by section: of files, options and assignments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ..config import ConfigError, DataConfig, TrainConfig, _Base, read_mapping, unknown_keys
from ..documents import DocumentError, parse_yaml
from ..models.adarec.config import ADARecConfig

SECTIONS: dict[str, type[_Base]] = {
    "data": DataConfig,
    "model": ADARecConfig,
    "train": TrainConfig,
}
# The catalogue's size comes from the data.
_NOT_CHOSEN = {"num_items"}


@dataclass
class Values:
    """Chosen values by section; what is absent keeps the field's default."""

    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    def section(self, name: str) -> dict[str, Any]:
        values: dict[str, Any] = getattr(self, name)
        return values

    def update(self, other: Values) -> Values:
        """These values, with those of ``other`` on top."""
        return Values(**{name: self.section(name) | other.section(name) for name in SECTIONS})


def known_keys(section: str) -> list[str]:
    """Keys that a section of a configuration may hold."""
    return [name for name in SECTIONS[section].model_fields if name not in _NOT_CHOSEN]


def read_config(path: Path) -> Values:
    """Values of a JSON or YAML file, flat or with the sections ``data``, ``model``, ``train``.

    Raises:
        ConfigError: the file does not parse, or names an unknown key.
    """
    return from_mapping(read_mapping(path), str(path))


def from_mapping(mapping: Mapping[str, Any], source: str) -> Values:
    """Values of a mapping, flat or with the sections ``data``, ``model``, ``train``.

    Raises:
        ConfigError: an unknown key; ``source`` opens the message.
    """
    flat: dict[str, Any] = {}
    sections = Values()
    for key, value in mapping.items():
        if key in SECTIONS and isinstance(value, Mapping):
            unknown = [str(name) for name in value if name not in known_keys(key)]
            if unknown:
                raise ConfigError(f"{source}, {key}: {unknown_keys(unknown, known_keys(key))}")
            sections.section(key).update(_plain(value, key))
        else:
            flat[key] = value
    return place(flat, f"{source}: ").update(sections)


def place(values: Mapping[str, Any], where: str = "") -> Values:
    """Give flat (or ``section.key``) values to the sections that know their keys.

    Raises:
        ConfigError: a key is unknown; ``where`` opens the message.
    """
    result = Values()
    unknown = []
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        homes = [s for s in ([section] if section else SECTIONS) if s in SECTIONS]
        homes = [s for s in homes if name in known_keys(s)]
        if not homes:
            unknown.append(key)
        for home in homes:
            result.section(home).update(_plain({name: value}, home))
    if unknown:
        known = dict.fromkeys(name for section in SECTIONS for name in known_keys(section))
        raise ConfigError(where + unknown_keys(unknown, [*known, *SECTIONS]))
    return result


def read_assignments(assignments: Iterable[str]) -> Values:
    """Values of ``--set key=value``; a value is read as YAML.

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
    return place(values, "--set: ")


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


def _plain(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """YAML reads a bare ``off`` as false; where ``off`` is a choice, that is what was meant."""
    result = dict(values)
    for name, value in result.items():
        if value is False and "off" in get_args(SECTIONS[section].model_fields[name].annotation):
            result[name] = "off"
    return result

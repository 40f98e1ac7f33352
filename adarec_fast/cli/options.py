"""Command-line options made from the configurations' fields, and where their values come from.

Every field of :class:`DataConfig`, ``ADARecConfig`` and ``TrainConfig`` is an option of ``train``
with the field's own description, so names, help, defaults and checks are written once. Values are
taken from, each overriding those before: the fields' defaults, the data set's (``synthetic`` is
small), the configuration file, options.
"""

from __future__ import annotations

import enum
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import Field
from pydantic.fields import FieldInfo

from ..config import ADARecConfig, ConfigError, TrainConfig, _Base, read_mapping, unknown_keys
from ..documents import DocumentError, parse_yaml
from .console import with_signature

if TYPE_CHECKING:
    from ..data import InteractionData


class DataConfig(_Base):
    """Which interactions a run learns from, and what is done to them first."""

    data: str = Field("synthetic", description="file of interactions, or synthetic")
    format: Literal["auto", "sequences", "pairs", "inter", "csv", "tsv", "jsonl", "parquet"] = (
        Field("auto", description="format of the file; auto tells it by the content")
    )
    user_column: str | None = Field(None, description="column of the user ids")
    item_column: str | None = Field(None, description="column of the item ids")
    time_column: str | None = Field(None, description="column to sort each history by")
    k_core: int = Field(0, ge=0, description="keep users and items with so many interactions")
    deduplicate: Literal["off", "consecutive", "all"] = Field(
        "off", description="drop repeats of an item in a history: adjacent ones, or all"
    )
    min_length: int = Field(3, ge=3, description="drop users with fewer interactions")
    truncate: int | None = Field(
        None, ge=1, description="cut histories to their last so many training items"
    )


SECTIONS: dict[str, type[_Base]] = {
    "data": DataConfig,
    "model": ADARecConfig,
    "train": TrainConfig,
}
_PANELS = {"data": "Data", "model": "Model", "train": "Training"}
# The catalogue's size comes from the data.
_NOT_CHOSEN = {"num_items"}
# One seed on the command line; --set model.seed=1 sets one alone.
_SEED_HELP = "seed of the weights, the noise and the batches' order"


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


def config_options(
    *sections: str, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option for every field of some sections; the function gets ``chosen: Values``."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        generated: dict[str, inspect.Parameter] = {}
        for section in sections:
            for name in known_keys(section):
                if name not in without:
                    info = SECTIONS[section].model_fields[name]
                    generated[name] = _parameter(name, info, _PANELS[section])

        @functools.wraps(function)
        def wrapper(**options: Any) -> None:
            flat = {}
            for name in generated:
                value = options.pop(name)
                if value is not None:
                    flat[name] = value.value if isinstance(value, enum.Enum) else value
            function(**options, chosen=place(flat))

        own = inspect.signature(function, eval_str=True).parameters.values()
        kept = [p for p in own if p.name != "chosen"]
        return with_signature(wrapper, [*kept, *generated.values()])

    return decorate


def field_options(
    config: type[_Base], panel: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option for every field of one configuration; the function gets ``chosen: dict``."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        generated = {
            name: _parameter(name, info, panel) for name, info in config.model_fields.items()
        }

        @functools.wraps(function)
        def wrapper(**options: Any) -> None:
            values = {name: options.pop(name) for name in generated}
            chosen = {
                name: value.value if isinstance(value, enum.Enum) else value
                for name, value in values.items()
                if value is not None
            }
            function(**options, chosen=chosen)

        own = inspect.signature(function, eval_str=True).parameters.values()
        kept = [p for p in own if p.name != "chosen"]
        return with_signature(wrapper, [*kept, *generated.values()])

    return decorate


def load_data(values: Mapping[str, Any]) -> InteractionData:
    """The interactions that the values of the section ``data`` describe.

    Raises:
        ConfigError: a value is out of range.
        DataError: the file cannot be read; the message names file and line.
    """
    from ..data import load, synthetic

    config = DataConfig.create(**values)
    if config.data == "synthetic":
        # A stored section names every field; only one with another value than its default matters.
        unchanged = DataConfig.create().to_dict()
        changed = [name for name, value in config.to_dict().items() if value != unchanged[name]]
        if changed:
            raise ConfigError(f"{', '.join(changed)}: these are for files, not for data=synthetic")
        return synthetic()
    return load(
        config.data,
        format=config.format,
        user=config.user_column,
        item=config.item_column,
        time=config.time_column,
        k_core=config.k_core,
        deduplicate=None if config.deduplicate == "off" else config.deduplicate,
        min_length=config.min_length,
        truncate=config.truncate,
    )


def _parameter(name: str, info: FieldInfo, panel: str) -> inspect.Parameter:
    kind: Any = _inner(info.annotation)
    flag = "--" + name.replace("_", "-")
    shown = info.default
    if kind is bool:
        flag = f"{flag}/--no-{flag[2:]}"
        shown = "on" if info.default else "off"
        panel += " switches"  # a panel of their own keeps the columns of the others wide
    elif get_origin(kind) is Literal:
        make: Any = enum.Enum  # mypy wants literals
        kind = make(name, {value: value for value in get_args(kind)}, type=str)
    text = _SEED_HELP if name == "seed" else info.description
    option = typer.Option(
        flag,
        help=text if shown is None else f"{text} [dim]({shown})[/]",
        show_default=False,
        rich_help_panel=panel,
    )
    annotation = Annotated[Union[kind, None], option]  # noqa: UP007 (kind is a run-time value)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _inner(annotation: Any) -> Any:
    """``X`` of ``X | None``, and anything else as it is."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(arg for arg in get_args(annotation) if arg is not type(None))
    return annotation


def _plain(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """YAML reads a bare ``off`` as false; where ``off`` is a choice, that is what was meant."""
    result = dict(values)
    for name, value in result.items():
        if value is False and "off" in get_args(SECTIONS[section].model_fields[name].annotation):
            result[name] = "off"
    return result

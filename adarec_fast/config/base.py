"""What every configuration is: frozen, validated, read from a file, and its errors' plain words."""

from __future__ import annotations

import difflib
import json
import textwrap
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from ..documents import LARGEST, DocumentError, parse_json, parse_yaml, read_text, shown

_Config = TypeVar("_Config", bound="BaseConfig")
_MOST_COMPLAINTS = 5


class ConfigError(ValueError):
    """A configuration that names an unknown key or holds a value out of range.

    Example:
        >>> af.ADARec(num_items=12, dropuot=0.1)
        Traceback (most recent call last):
        ...
        adarec_fast.config.base.ConfigError: unknown key 'dropuot', did you mean 'dropout'?
    """


class BaseConfig(BaseModel):
    """Frozen, strict about its keys, and validated whole; made by :meth:`create`."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def create(cls: type[_Config], **values: Any) -> _Config:
        """Build and validate; every complaint in one :class:`ConfigError`, in plain words.

        Example:
            >>> af.TrainConfig.create(epochs=0, patience=-1)
            Traceback (most recent call last):
            ...
            adarec_fast.config.base.ConfigError: epochs=0: ...; patience=-1: ...
        """
        unknown = [key for key in values if key not in cls.model_fields]
        if unknown:
            raise ConfigError(unknown_keys(unknown, list(cls.model_fields)))
        for key, value in values.items():
            if isinstance(value, int) and value.bit_length() > 63:
                raise ConfigError(f"{key}={shown(value)}: does not fit in 64 bits")
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(_plain_words(error)) from None

    @classmethod
    def load(cls: type[_Config], path: str | Path) -> _Config:
        """Read a JSON or YAML file. Raises :class:`ConfigError` naming the file.

        Example:
            >>> _ = (folder / "train.yaml").write_text("epochs: 3")
            >>> af.TrainConfig.load(folder / "train.yaml").epochs
            3
        """
        return cls.create(**read_mapping(path))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values of every field.

        Example:
            >>> af.TrainConfig(epochs=3).to_dict()["epochs"]
            3
        """
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """Indented JSON, keys in the order of the class.

        Example:
            >>> af.TrainConfig(epochs=3).to_json().splitlines()[1].strip()
            '"epochs": 3,'
        """
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def replace(self: _Config, **changes: Any) -> _Config:
        """A validated copy with some fields changed.

        Example:
            >>> af.TrainConfig().replace(epochs=3).epochs
            3
        """
        return type(self).create(**{**self.model_dump(), **changes})


def listed_fields(kind: type[BaseConfig]) -> str:
    """The fields of a configuration for a docstring, a line or two each: name, default, meaning."""
    lines = []
    for name, field in kind.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        default = "" if field.is_required() else f"={field.default!r}"
        text = f"{name}{default}: {field.description}"
        text += f"; one of {', '.join(map(repr, choices))}." if choices else "."
        lines += textwrap.wrap(text, 92, initial_indent=" " * 8, subsequent_indent=" " * 12)
    return "\n".join(lines)


def read_mapping(path: str | Path, largest: int | None = LARGEST) -> dict[str, Any]:
    """A JSON or YAML file that holds one mapping with string keys.

    Raises:
        ConfigError: the file is missing, has more than ``largest`` bytes, is not UTF-8, does not
            parse, holds what :mod:`adarec_fast.documents` refuses, or is no mapping.
    """
    path = Path(path)
    try:
        text = read_text(path, largest)
        values = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except DocumentError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: holds no mapping of names to values")
    return values


def unknown_keys(unknown: list[str], known: list[str]) -> str:
    """A message that names the unknown keys and the known ones that they most resemble."""
    parts = []
    for key in unknown[:_MOST_COMPLAINTS]:
        close = difflib.get_close_matches(key[:80], known, n=1, cutoff=0.5)
        hint = f", did you mean {close[0]!r}?" if close else ""
        parts.append(f"unknown key {shown(key)}{hint}")
    hint = "" if all("did you mean" in part for part in parts) else f"; known: {', '.join(known)}"
    return "; ".join(parts) + hint


def _plain_words(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        # Of a field that may be one value or several, pydantic complains for each of the two.
        if "list[str]" in item["loc"]:
            continue
        where = ".".join(str(part) for part in item["loc"] if part != "str")
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "missing":
            lines.append(f"{where} is missing")
        elif where:
            lines.append(f"{where}={shown(item['input'])}: {message[0].lower()}{message[1:]}")
        else:
            lines.append(message)
    return "; ".join(lines)

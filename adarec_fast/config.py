"""Validated configurations: what all models' have, and the training run's.

Both are frozen pydantic models. Unknown keys are errors that suggest the right key, values out of
range name the field and what would be right, and both go to JSON or YAML and back unchanged.
"""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from .documents import LARGEST, DocumentError, parse_json, parse_yaml, read_text, shown

Supervision = Literal["prefix", "all", "cloze", "windows"]
Precision = Literal["ieee", "tf32", "bf16"]
Backend = Literal["auto", "reference", "packed", "cpp", "triton", "cuda"]

LOGGERS = ("tensorboard", "wandb", "mlflow")

_Config = TypeVar("_Config", bound="_Base")
_MOST_COMPLAINTS = 5


class ConfigError(ValueError):
    """A configuration that names an unknown key or holds a value out of range.

    Example:
        >>> af.ADARec(num_items=12, dropuot=0.1)
        Traceback (most recent call last):
        ...
        adarec_fast.config.ConfigError: unknown key 'dropuot', did you mean 'dropout'?
    """


class _Base(BaseModel):
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
            adarec_fast.config.ConfigError: epochs=0: ...; patience=-1: ...
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


class DataConfig(_Base):
    """Which interactions a run learns from, and what is done to them first."""

    data: str | list[str] = Field(
        "synthetic",
        description="file of interactions, 'several*.csv' as one, or synthetic; may be repeated",
    )
    format: Literal[
        "auto", "sequences", "pairs", "inter", "csv", "tsv", "json", "jsonl", "parquet"
    ] = Field("auto", description="format of the file; auto tells it by the content")
    user_column: str | None = Field(None, description="column of the user ids")
    item_column: str | None = Field(None, description="column of the item ids")
    time_column: str | None = Field(
        None,
        description="column to sort each history by, or several as in date,time; file-order sorts "
        "by none",
    )
    time_format: str | None = Field(
        None, description="how times are written, as for strptime, where it is not told by itself"
    )
    ids: Literal["auto", "text"] = Field(
        "auto", description="auto: integers where all ids are; text: as they are written"
    )
    event_column: str | None = Field(
        None, description="column that says what happened, in a log of several kinds of events"
    )
    keep: str | None = Field(None, description="the events that count, such as view,purchase")
    separator: str | None = Field(
        None, description="what stands between fields, such as ';' or tab; found out if not given"
    )
    columns: str | None = Field(
        None, description="names of the columns of a file without a header: user,item,_,time"
    )
    k_core: int = Field(0, ge=0, description="keep users and items with so many interactions")
    deduplicate: Literal["off", "consecutive", "all"] = Field(
        "off", description="drop repeats of an item in a history: adjacent ones, or all"
    )
    min_length: int = Field(
        3, ge=1, description="drop users with fewer interactions; 1 by default with --split time"
    )
    truncate: int | None = Field(
        None, ge=1, description="cut histories to their last so many training items"
    )
    split: Literal["leave-one-out", "time", "none"] = Field(
        "leave-one-out",
        description="what is held out: the last items of each history, what comes at a time or "
        "later, or nothing",
    )
    at: str | None = Field(
        None,
        description="with --split time, where test begins: a date such as 2026-01-01, or the share "
        "of the interactions before it, such as 0.8",
    )
    valid_at: str | None = Field(
        None,
        description="where validation begins, likewise; by default so that as many interactions "
        "validate as test",
    )
    items: str | None = Field(
        None,
        description="file of what is known of items: categories, numbers, vectors; its items join "
        "the catalogue",
    )
    items_id_column: str | None = Field(None, description="its column of the item ids")
    features: str | None = Field(
        None, description="its columns to use, as in brand,price:number; all of use by default"
    )

    @field_validator("at", "valid_at", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """YAML makes numbers of shares."""
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        return str(value) if plain else value

    @model_validator(mode="before")
    @classmethod
    def _shortest(cls, values: Any) -> Any:
        """One item is a history where none of it has to be held out."""
        if isinstance(values, dict) and values.get("split", "leave-one-out") != "leave-one-out":
            return {"min_length": 1, **values}
        return values

    def checked(self) -> DataConfig:
        """The same, if its fields go together; a sweep's swept ones alone need not.

        Raises:
            ConfigError: they do not.
        """
        if self.split == "leave-one-out" and self.min_length < 3:
            raise ConfigError(
                f"min_length={self.min_length}: leave-one-out holds out two items of each history "
                "and needs at least 3"
            )
        if self.split == "time" and self.at is None:
            raise ConfigError("split=time needs at, such as --at 2026-01-01 or --at 0.8")
        for name in ("at", "valid_at"):
            if self.split != "time" and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name}={getattr(self, name)}: cuts at a time; say split=time (--split time)"
                )
        for name in ("items_id_column", "features"):
            if self.items is None and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name}={getattr(self, name)}: names columns of a file of items (--items FILE)"
                )
        return self


def listed_fields(kind: type[_Base]) -> str:
    """The fields of a configuration for a docstring, a line or two each: name, default, meaning."""
    lines = []
    for name, field in kind.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        default = "" if field.is_required() else f"={field.default!r}"
        text = f"{name}{default}: {field.description}"
        text += f"; one of {', '.join(map(repr, choices))}." if choices else "."
        lines += textwrap.wrap(text, 92, initial_indent=" " * 8, subsequent_indent=" " * 12)
    return "\n".join(lines)


def absolute_paths(data: str | Sequence[str]) -> str | list[str]:
    """The value of ``data`` with absolute paths; ``synthetic`` is none."""
    if isinstance(data, str):
        return data if data == "synthetic" else str(Path(data).resolve())
    return [str(Path(path).resolve()) for path in data]


def absolute_source(section: Mapping[str, Any]) -> dict[str, Any]:
    """What a section ``data`` says, with absolute paths to its files."""
    found = dict(section)
    if "data" in found:
        found["data"] = absolute_paths(found["data"])
    if found.get("items") is not None:
        found["items"] = absolute_paths(found["items"])
    return found


def file_names(data: str | Sequence[str]) -> str:
    """The value of ``data`` as names of files, which mean the same on other machines."""
    return ",".join(Path(path).name for path in ([data] if isinstance(data, str) else data))


class ModelConfig(_Base):
    """What every model's configuration says; each kind of model adds its own fields."""

    # The name of the kind of model, as in ``--model NAME`` and in saved files.
    system: ClassVar[str] = ""
    # What its training examples may be, the default first.
    supervisions: ClassVar[tuple[Supervision, ...]] = ("prefix", "all")

    num_items: int = Field(
        ge=1, lt=2**31, description="items in the catalogue; ids are 1..num_items"
    )
    max_length: int = Field(50, ge=1, le=65_535, description="longest history read, in items")
    supervision: Supervision = Field(
        "prefix",
        description="an example a prefix, or a position; cloze: hidden items of a history; "
        "windows: the last items of a window of it",
    )
    memory: Literal["none", "transitions"] = Field(
        "none",
        description="what is added to every ranking: nothing, or counts of which items follow "
        "which, fitted on the validation part when training ends",
    )
    memory_neighbours: int = Field(
        128, ge=1, le=65_536, description="largest weights that the memory keeps of an item"
    )
    feature_net: Literal["sum", "mlp"] = Field(
        "sum",
        description="how features of items (--items) become part of an item's vector: a sum of "
        "theirs, or through a hidden layer",
    )
    id_dropout: float = Field(
        0.2, ge=0.0, lt=1.0,
        description="items whose own vector a step leaves out, so that features learn to stand "
        "alone; where there are features",
    )  # fmt: skip
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the weights and of the noise")
    backend: Backend = Field("auto", description="who runs the ops, see adarec_fast.ops")
    precision: Precision = Field(
        "ieee",
        description="products, in training and ever after: ieee float32, tf32 on a GPU's tensor "
        "cores (on a CPU float32), or bf16, bfloat16 autocast",
    )

    @field_validator("supervision")
    @classmethod
    def _supervision_is_its_own(cls, value: Supervision) -> Supervision:
        if value not in cls.supervisions:
            allowed = " or ".join(map(repr, cls.supervisions))
            raise ValueError(f"the model {cls.system} takes {allowed}")
        return value


def check_heads(hidden_size: int, num_heads: int) -> None:
    """ValueError unless so many heads divide a size."""
    if hidden_size % num_heads:
        raise ValueError(
            f"hidden_size={hidden_size} is not divisible by num_heads={num_heads}; choose a "
            f"multiple of {num_heads}"
        )


class TrainConfig(_Base):
    """How a model is trained. Defaults reproduce the figures in the README.

    Example:
        >>> af.TrainConfig(learning_rate=1e-4).epochs
        200
    """

    epochs: int = Field(200, ge=1, description="at most so many passes over the examples")
    batch_size: int = Field(256, ge=1, description="examples a step")
    learning_rate: float = Field(1e-3, gt=0.0, description="Adam's step size")
    learning_rate_schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="constant, or a cosine or a line that falls to 0 over all epochs"
    )
    warmup_steps: int = Field(
        0, ge=0, description="steps over which the rate rises to its full height, linearly"
    )
    weight_decay: float = Field(0.0, ge=0.0, description="L2 in Adam; the paper has 1e-4")
    gradient_clip: float = Field(5.0, ge=0.0, description="greatest gradient norm; 0: no clipping")
    amp: Literal["off", "bf16"] = Field(
        "off", description="former name of precision: off is ieee; will be removed"
    )
    patience: int = Field(10, ge=1, description="evaluations without a better one before the end")
    evaluate_every: int = Field(1, ge=1, description="epochs between two validations")
    evaluation_batch_size: int = Field(1024, ge=1, description="users scored at once")
    ks: str = Field(
        "5,10,20", description="cut-offs of validation metrics; the best epoch is by NDCG@20"
    )
    seen_mask: Literal["neg-inf", "official", "off"] = Field(
        "neg-inf", description="score of seen items: -inf, 0 as in the authors' code, or untouched"
    )
    log: str = Field(
        "auto",
        description="who gets the metrics, too: tensorboard, wandb (offline) and mlflow (a folder) "
        "with commas between them, none, or auto, TensorBoard where it is installed",
    )
    log_every: int = Field(50, ge=1, description="steps between two readings of the losses")
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: each epoch")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the batches' order")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    contrast_negatives: Literal["batch", "rank"] = Field(
        "batch", description="several workers: Eq. 6 compares users of the batch, or of a worker"
    )
    shard_items: bool = Field(
        False, description="several workers: split the item table and its losses over them"
    )
    worker_timeout: float = Field(
        45.0, gt=0.0, description="seconds that a step or an evaluation waits for another worker"
    )
    save_timeout: float = Field(
        0.0, ge=0.0,
        description="seconds that the other workers wait while the first one saves; 0: "
        "worker_timeout, and one for each 20 MB",
    )  # fmt: skip

    @field_validator("log")
    @classmethod
    def _are_loggers(cls, value: str) -> str:
        loggers_of(value)
        return value

    @field_validator("ks")
    @classmethod
    def _are_cutoffs(cls, value: str) -> str:
        read_cutoffs(value)
        return value


def loggers_of(log: str) -> tuple[str, ...]:
    """The names in a configuration's ``log``; none of ``auto`` and of ``none``.

    Raises:
        ConfigError: one is unknown, or named twice.
    """
    if log in ("auto", "none"):
        return ()
    names = tuple(name.strip() for name in log.split(","))
    if not set(names) <= set(LOGGERS) or len(set(names)) < len(names):
        raise ConfigError(
            f"must be auto, none, or one or more of {', '.join(LOGGERS)}, each once, with commas "
            "between them"
        )
    return names


def read_cutoffs(text: str, option: str = "") -> tuple[int, ...]:
    """``"5,10,20"`` as rising numbers, each once.

    Raises:
        ConfigError: it is something else; ``option`` and the text open the message.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and 0 < len(part) < 10 for part in parts) or (
        any(int(part) < 1 for part in parts)
    ):
        opening = f"{option} {text}: " if option else ""
        raise ConfigError(
            f"{opening}must be cut-offs of at least 1 with commas between them, as in 5,10,20"
        )
    return tuple(sorted({int(part) for part in parts}))


def training_precision(model: ModelConfig, train: TrainConfig) -> Precision:
    """How a training step multiplies: the model's ``precision``, or what ``amp`` says of old runs.

    Those trained under ``amp`` and evaluate in float32, as they always did.

    Raises:
        ConfigError: the two contradict each other.
    """
    if train.amp == "off":
        return model.precision
    if model.precision == "tf32":
        raise ConfigError("amp='bf16' contradicts precision='tf32'; leave out amp, its former name")
    return "bf16"


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

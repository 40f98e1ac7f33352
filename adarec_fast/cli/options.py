"""Command-line options made from the configurations' fields, and where their values come from.

Every field of ``DataConfig``, ``TrainConfig`` and the models' configurations is an option of
``train`` with the field's own description, so names, help, defaults and checks are written once.
Values are taken from, each overriding those before: the fields' defaults, the data set's
(``synthetic`` is small), the configuration file, options.
"""

from __future__ import annotations

import enum
import functools
import inspect
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from ..config import BaseConfig, ConfigError
from ..models.registry import DEFAULT
from ..training.presets import preset as preset_values
from ..training.values import KIND, Values, fields, known_keys, place, read_assignments, read_config
from .console import with_signature

_PANELS = {"data": "Data", "model": "Model", "train": "Training"}
# One seed on the command line; --set model.seed=1 sets one alone.
_SEED_HELP = "seed of the weights, the noise and the batches' order"


def config_options(
    *sections: str, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option for every field of some sections; the function gets ``chosen: Values``."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        generated: dict[str, inspect.Parameter] = {}
        for section in sections:
            for name in known_keys(section):
                if name == KIND:
                    generated[name] = _model_parameter()
                elif name not in without:
                    generated[name] = _parameter(name, fields(section)[name], _PANELS[section])

        @functools.wraps(function)
        def wrapper(**options: Any) -> None:
            flat: dict[str, Any] = {}
            for name in generated:
                value = options.pop(name)
                if isinstance(value, list):  # of an option that may be repeated
                    value = value[0] if len(value) == 1 else value or None
                if value is not None:
                    flat[name] = value.value if isinstance(value, enum.Enum) else value
            function(**options, chosen=place(flat))

        own = inspect.signature(function, eval_str=True).parameters.values()
        kept = [p for p in own if p.name != "chosen"]
        return with_signature(wrapper, [*kept, *generated.values()])

    return decorate


def given_values(
    chosen: Values, assignments: Iterable[str] | None, *, preset: str | None = None,
    config: Path | Values | None = None,
) -> Values:
    """What a command is given, each overriding those before: a preset, a file, options, ``--set``.

    Args:
        chosen: by the options of :func:`config_options`.
        assignments: of ``--set``.
        preset: of ``--preset``.
        config: of ``--config``, or what was read from it.

    Raises:
        ConfigError: a preset, a file or a key that is not known, or another model than the
            preset's.
    """
    given = Values() if preset is None else preset_values(preset, "--preset")
    own = given.system
    if isinstance(config, Path):
        config = read_config(config, chosen.system or own)
    if config is not None:
        given = given.update(config)
    given = given.update(chosen)
    given = given.update(read_assignments(assignments or [], given.system))
    if preset is not None and given.system != own:
        raise ConfigError(
            f"--preset {preset} is of the model {own}, and --model names {given.system}; leave out "
            "one of the two"
        )
    return given


def field_options(
    config: type[BaseConfig], panel: str
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


def _model_parameter() -> inspect.Parameter:
    option = typer.Option(
        "--model", metavar="NAME", show_default=False, rich_help_panel="Model",
        help=f"kind of model, see adarec-fast models [dim]({DEFAULT})[/]",
    )  # fmt: skip
    return inspect.Parameter(
        KIND, inspect.Parameter.KEYWORD_ONLY, default=None,
        annotation=Annotated[Union[str, None], option],  # noqa: UP007
    )  # fmt: skip


def _inner(annotation: Any) -> Any:
    """``X`` of ``X | None``, the list of ``X | list[X]``, and anything else as it is."""
    if get_origin(annotation) in (Union, types.UnionType):
        several = next((arg for arg in get_args(annotation) if get_origin(arg) is list), None)
        if several is not None:
            return several
        return next(arg for arg in get_args(annotation) if arg is not type(None))
    return annotation

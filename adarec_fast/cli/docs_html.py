"""The API as HTML pages, made of the docstrings by pdoc (extra ``docs``)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ..config import ConfigError
from ..version import __version__

# What users, and those who add models, import from; other modules are the package's own, and
# adarec_fast.export would load the whole of torch's compiler.
MODULES = (
    "adarec_fast",
    "adarec_fast.config",
    "adarec_fast.data",
    "adarec_fast.distributed",
    "adarec_fast.experiments",
    "adarec_fast.experiments.arms",
    "adarec_fast.experiments.comparison",
    "adarec_fast.experiments.runs",
    "adarec_fast.models.base",
    "adarec_fast.ops",
    "adarec_fast.plotting",
    "adarec_fast.ragged",
    "adarec_fast.ranking.comparison",
    "adarec_fast.ranking.evaluation",
    "adarec_fast.ranking.reasons",
    "adarec_fast.ranking.segments",
    "adarec_fast.serving",
    "adarec_fast.training",
    "adarec_fast.training.further",
)


def write_html(folder: Path, names: Sequence[str] = MODULES) -> Path:
    """Write the pages of some modules into a folder; the one to begin with.

    Raises:
        ConfigError: pdoc is not installed, or what a module needs.
    """
    try:
        import pdoc
        import pdoc.render
    except ImportError:
        raise ConfigError('--html needs pdoc: pip install "adarec_fast[docs]"') from None
    modules = [_loaded(name) for name in names]
    pdoc.render.configure(
        docformat="google", math=True, show_source=False, footer_text=f"adarec_fast {__version__}"
    )
    # Without these a module's page would lead on to all of its files.
    others = [f"!{name}\\..*" for name in ("adarec_fast.ops", "adarec_fast.plotting")]
    with _without_constructors(modules):
        pdoc.pdoc(*names, *others, output_directory=folder)
    return folder / "adarec_fast.html"


def _loaded(name: str) -> ModuleType:
    """A module with the names that it loads when they are asked for."""
    module = importlib.import_module(name)
    for own in getattr(module, "__all__", ()):
        vars(module).setdefault(own, getattr(module, own))
    return module


@contextmanager
def _without_constructors(modules: list[ModuleType]) -> Iterator[None]:
    """Hide the constructors of named tuples: their annotations know no module to look names up in,
    and the fields are there anyway.
    """
    found: dict[Any, str | None] = {}
    for module in modules:
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, tuple) and hasattr(thing, "_fields"):
                found[thing.__new__] = thing.__new__.__doc__
    try:
        for made in found:
            made.__doc__ = "@private"
        yield
    finally:
        for made, doc in found.items():
            made.__doc__ = doc

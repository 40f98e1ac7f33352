"""What all commands share: the two consoles, and errors turned into one line and an exit code."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

# Results go to stdout, everything that is said about them to stderr.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

RUN_FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130

_Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        envvar="ADAREC_FAST_DEBUG",
        help="Show the traceback of an error.",
        rich_help_panel="Other",
    ),
]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--debug``, one clear line for an expected error, and its exit code.

    Bad data, configurations and checkpoints exit with 2, runs that fail with 1, Ctrl-C with 130
    and a training that SIGTERM ended with 143. Errors nobody expects keep their traceback.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, debug: bool, **options: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning  # type: ignore[assignment]
                function(*args, **options)
        except KeyboardInterrupt:
            err.print("[yellow]interrupted[/]")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            code = exit_code(error)
            if debug or code is None:
                raise
            message = str(error) or type(error).__name__
            err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
            raise typer.Exit(code) from None

    if function.__doc__ is not None:
        # Typer keeps the line breaks of a help text, which fit no terminal but the widest.
        paragraphs = inspect.cleandoc(function.__doc__).split("\n\n")
        wrapper.__doc__ = "\n\n".join(" ".join(text.split()) for text in paragraphs)
    signature = inspect.signature(function, eval_str=True)
    debug = inspect.Parameter(
        "debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug
    )
    return with_signature(wrapper, [*signature.parameters.values(), debug])


def with_signature(
    function: Callable[..., None], parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    """``function`` with the parameters that typer is to make options of."""
    # Typer reads the signature and the annotations, both.
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that a user can act on, None for all others."""
    # Imported here: these modules load torch, and `--help` should not wait for it.
    from ..config import ConfigError
    from ..data import DataError
    from ..distributed import WorkersError
    from ..export.errors import ExportError
    from ..ops import BackendError
    from ..ops.extension import ExtensionError
    from ..training import CheckpointError, CompilationFailed, RunFolderError, TrainingDiverged

    bad_input = (ConfigError, DataError, CheckpointError, BackendError, RunFolderError)
    if isinstance(error, bad_input):
        return BAD_INPUT
    if isinstance(error, BrokenPipeError):
        return None  # the reader of a pipe went away; typer ends quietly
    failures = (
        TrainingDiverged, CompilationFailed, WorkersError, ExtensionError, ExportError, OSError
    )
    if isinstance(error, failures):
        return RUN_FAILED
    return None


def _show_warning(message: Warning | str, *_: Any) -> None:
    """A warning as one line, without the place in the code that gave it."""
    err.print(f"[yellow]warning:[/] {escape(str(message))}", soft_wrap=True)

"""What all commands share: the consoles, and errors turned into one line and an exit code.

Ids and paths appear letter by letter: :func:`words` and rich's ``Text`` hold them, never markup.
"""

from __future__ import annotations

import codecs
import functools
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Union, get_args

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand

# A command's result goes to stdout, warnings and errors to stderr, whatever is asked for.
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)
# What is told on the way: on stdout, or on stderr where --json has that for itself; nowhere with
# --quiet, and neither are hints and waits.
said = Console(highlight=False, emoji=False)

RUN_FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
_FORMER = "former_"

_Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        envvar="ADAREC_FAST_DEBUG",
        help="Show the traceback of an error.",
        rich_help_panel="Other",
    ),
]

_Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        help="Print the result, warnings and errors alone.",
        rich_help_panel="Other",
    ),
]


def tell(text: str | Text, console: Console = said) -> None:
    """Print prose: a terminal's lines break between words, a file's not at all.

    What is to be copied, such as a path, stays whole.
    """
    shown = Text(text) if isinstance(text, str) else text
    if console.is_terminal:
        lines = [part for line in shown.split("\n") for part in _broken(line, console.width)]
        shown = Text("\n").join(lines)
    console.print(shown, soft_wrap=True)


def _broken(line: Text, width: int) -> list[Text]:
    """A line as several of at most ``width`` cells, or of one longer word. rich breaks words."""
    begun, breaks = 0, []
    for word in re.finditer(r"\S+", line.plain):
        if word.start() > begun and cell_len(line.plain[begun : word.end()]) > width:
            begun = word.start()
            breaks.append(begun)
    parts = list(line.divide(breaks))
    for part in parts:
        part.rstrip()
    return parts


def hint(text: str | Text) -> None:
    """What stderr is told of a result on stdout."""
    if not said.quiet:
        tell(text, err)


def waiting(what: str) -> AbstractContextManager[object]:
    """A sign in a terminal that something is under way; stdout is to be left alone meanwhile."""
    # Of several workers, which torchrun numbers, the first one speaks.
    another = os.environ.get("RANK", "0").strip() != "0"
    return nullcontext() if said.quiet or another else err.status(Text(what))


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--debug`` and ``--quiet``, one clear line for an expected error, and its
    exit code. With a parameter ``as_json`` of it, ``said`` goes to stderr.

    Bad data, configurations and checkpoints exit with 2, runs that fail with 1, Ctrl-C with 130
    and a training that SIGTERM ended with 143. Errors nobody expects keep their traceback.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, debug: bool, quiet: bool, **options: Any) -> None:
        said.quiet = quiet
        said.stderr = bool(options.get("as_json"))
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
            tell(words("[bold red]error:[/] {}", message), err)
            raise typer.Exit(code) from None

    if function.__doc__ is not None:
        # Typer keeps the line breaks of a help text, which fit no terminal but the widest.
        paragraphs = inspect.cleandoc(function.__doc__).split("\n\n")
        wrapper.__doc__ = "\n\n".join(" ".join(text.split()) for text in paragraphs)
    signature = inspect.signature(function, eval_str=True)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for name, option in (("quiet", _Quiet), ("debug", _Debug))
    ]
    return with_signature(wrapper, [*signature.parameters.values(), *shared])


def with_signature(
    function: Callable[..., None], parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    """``function`` with the parameters that typer is to make options of."""
    # Typer reads the signature and the annotations, both.
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


def formerly(**names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let options be given by former names, which the help leaves out and a note answers.

    ``formerly(file="to")`` takes ``--file`` for the parameter ``to``.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters
        hidden = [_former(old, own[new]) for old, new in names.items()]

        @functools.wraps(function)
        def wrapper(**options: Any) -> None:
            from ..config import ConfigError

            for old, new in names.items():
                value = options.pop(_FORMER + old)
                if value is None:
                    continue
                flag = _flag(own[new])
                if options[new] != own[new].default:
                    raise ConfigError(f"--{old} is the former name of {flag}: give {flag} alone")
                tell(f"--{old} is called {flag} now; the next version knows that name alone", err)
                options[new] = value
            function(**options)

        return with_signature(wrapper, [*own.values(), *hidden])

    return decorate


class Command(TyperCommand):
    """A command that never answers a mistyped option with a former name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # Those of an option that is not known, in click and in the one that typer brings.
            if near := getattr(error, "possibilities", None):
                shown = {
                    name
                    for option in self.get_params(ctx) if not getattr(option, "hidden", False)
                    for name in [*option.opts, *option.secondary_opts]
                }
                error.possibilities = [name for name in near if name in shown]  # type: ignore[attr-defined]
            raise


class Commands(typer.Typer):
    """A group of them."""

    def command(self, *args: Any, **options: Any) -> Any:
        """Typer's own, of :class:`Command`."""
        return super().command(*args, **{"cls": Command, **options})


def _former(old: str, now: inspect.Parameter) -> inspect.Parameter:
    kind: Any = get_args(now.annotation)[0]
    option = Annotated[Union[kind, None], typer.Option(f"--{old}", hidden=True)]  # noqa: UP007
    return inspect.Parameter(
        _FORMER + old, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option
    )


def _flag(parameter: inspect.Parameter) -> str:
    """The long name of an option on the command line."""
    info = get_args(parameter.annotation)[1]
    # In an annotation, typer's first name stands where a default would.
    declared = (info.default, *(info.param_decls or ()))
    own = (name for name in declared if isinstance(name, str) and name.startswith("--"))
    return next(own, "--" + parameter.name.replace("_", "-"))


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
    tell(words("[yellow]warning:[/] {}", message), err)


_HOLE = "\ue000"  # of Unicode's private letters


def words(template: str, *values: object) -> Text:
    """rich's markup with a ``{}`` for each value, which stands there letter by letter.

    rich's own ``escape`` loses or doubles backslashes, and reads ``:new:`` as a picture.
    """
    text = Text.from_markup(template.replace("{}", _HOLE), emoji=False)
    for value in reversed(values):
        place = text.plain.rindex(_HOLE)
        filled = Text(str(value))
        for span in text.spans:
            if span.start <= place < span.end:
                filled.stylize(span.style)
        text = text[:place] + filled + text[place + 1 :]
    return text


# Letters of our own that a terminal may lack.
_INSTEAD = str.maketrans({
    "…": "...", "–": "-", "—": "-", "≥": ">=", "≤": "<=", "−": "-", "±": "+-", "×": "x", "ᾱ": "a",
    **{chr(dots): "*" for dots in range(0x2800, 0x2900)},  # the turning sign of a wait
})  # fmt: skip


def print_in_any_encoding() -> None:
    """Let standard output and error write what their encoding lacks in other letters.

    A lone surrogate is a byte of a file's name that is no letter, and is written as it was.
    """
    codecs.register_error("adarec_fast", _in_other_letters)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # neither closed nor another program's own
            stream.reconfigure(errors="adarec_fast")


def _in_other_letters(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":
        return bytes([ord(letter) & 0xFF]), error.start + 1
    instead = letter.translate(_INSTEAD)
    return instead.encode("ascii", "backslashreplace").decode(), error.start + 1


def print_exactly(text: str, option: str) -> None:
    """Print what programs read; ``option`` asked for it.

    Raises:
        ConfigError: standard output's encoding lacks a letter of it.
    """
    if sys.stdout is None:  # closed by who started the process
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError as error:
        from ..config import ConfigError

        raise ConfigError(
            f"{option}: standard output is in {encoding}, which lacks the letter "
            f"{text[error.start]!a}; set PYTHONIOENCODING=utf-8, or write to a file (--out)"
        ) from None
    sys.stdout.write(text)

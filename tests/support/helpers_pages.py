"""The pages for people: their fenced blocks, commands, links and names, and how each is checked.

tests/README.md says what a fence's words mean.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import typer.main
from torch.distributed.run import get_args_parser as torchrun_parser

from adarec_fast.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(ROOT / folder / "README.md" for folder in ("bench", "csrc", "kernels", "tests")),
    *sorted((ROOT / "adarec_fast" / "docs").glob("*.md")),
]
LANGUAGES = {"sh", "python", "yaml", "toml", "csv", "cpp", "text"}
NEEDS = {"gpu", "data", "network", "machines", "time"}
# Programs of others, whose options are theirs.
OTHERS = {"curl", "kill", "apt", "nvidia-smi", "nsys", "ncu", "git", "ruff", "mypy"}
_FENCE = re.compile(r"^```(\S*)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_GENERATED = re.compile(r"<!-- bench:([\w-]+) -->.*?<!-- /bench:\1 -->", re.DOTALL)
_TABLE_OF_OTHERS = re.compile(r"^\| there .*?(?=^$)", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, its words after that, its text and the line it begins on."""

    language: str
    words: dict[str, str]
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """A page's blocks in order.

    Raises:
        ValueError: a language or word that tests/README.md does not name.
    """
    found = []
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        words = dict(word.partition("=")[::2] for word in match[2].split())
        unknown = set(words) - {"needs", "from", "file"}
        if match[1] not in LANGUAGES or unknown or words.get("needs", "gpu") not in NEEDS:
            raise ValueError(f"{page.name}:{line}: ```{match[1]}{match[2]} means nothing here")
        found.append(Block(match[1], words, match[3], line))
    return found


def prose(page: Path) -> str:
    """A page without its blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def code_spans(page: Path) -> list[str]:
    """What stands in backticks in the prose, less what a table says of another program's.

    Of generated tables neither: a result's command is that of its day.
    """
    text = _GENERATED.sub("", prose(page))
    for table in _TABLE_OF_OTHERS.findall(text):
        rows = [row.split(" | ", 1)[1] for row in table.splitlines() if " | " in row]
        text = text.replace(table, "\n".join(rows))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def lines(text: str) -> list[str]:
    """The commands of a shell block, one each, without comments; ``a && b`` are two."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            found.append(shlex.join(words[: words.index("&&")]))
            words = words[words.index("&&") + 1 :]
        if words:
            # A lone & stays what it is, and %1 and ? are nothing to quote here.
            behind = words[-1] == "&"
            found.append(shlex.join(words[:-1] if behind else words) + " &" * behind)
    return found


@functools.cache
def cli() -> Any:
    """The command line, ready to parse."""
    return typer.main.get_command(app)


def subcommand(words: list[str]) -> tuple[Any, list[str]]:
    """The command that ``adarec-fast`` would run, and the words left for it."""
    command: Any = cli()
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            break
        command, words = command.commands[words[0]], words[1:]
    return command, words


def check_mention(span: str) -> None:
    """What :func:`check_command` does, for prose: a program's or command's bare name will do.

    Raises:
        AssertionError: as there.
    """
    words = span.split()
    if words[:2] == ["python", "-m"] and len(words) == 3:
        assert exists(words[2]), f"{span}: no module {words[2]}"
    elif words[0] == "adarec-fast" and not any(word.startswith("-") for word in words):
        command, rest = subcommand(words[1:])
        if rest or hasattr(command, "commands"):
            _check_cli(span, words[1:])
    else:
        check_command(span)


def check_command(line: str) -> None:
    """Parse a command with its own program's parser, and run nothing.

    Raises:
        AssertionError: there is no such program, option, choice, extra or file.
    """
    words = [word for word in shlex.split(line) if word != "&"]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, arguments = words[0], words[1:]
    if program == "adarec-fast":
        _check_cli(line, arguments)
    elif program == "python" and arguments[:1] == ["-m"]:
        if arguments[1] == "adarec_fast.cli":
            _check_cli(line, arguments[2:])
        else:
            _check_module(line, arguments[1], arguments[2:])
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), f"{line}: no file {arguments[0]}"
    elif program == "pytest":
        _check_pytest(line, arguments)
    elif program == "pip":
        _check_pip(line, arguments)
    elif program == "torchrun":
        _check_torchrun(line, arguments)
    else:
        assert program in OTHERS, f"{line}: {program} is no program that this checks"


def _check_cli(line: str, words: list[str]) -> None:
    command, rest = subcommand(words)
    assert not hasattr(command, "commands"), f"{line}: adarec-fast has no such command"
    try:
        with command.make_context(command.name, list(rest)):
            pass
    except Exception as error:  # of click, or of the click that typer may bring
        raise AssertionError(f"{line}: {getattr(error, 'message', repr(error))}") from None


class _Parsed(Exception):
    pass


@contextlib.contextmanager
def _parsing_only() -> Iterator[list[argparse.ArgumentParser]]:
    """A module's ``main`` ends when its arguments are parsed; gives the parser."""
    parse = argparse.ArgumentParser.parse_args
    seen: list[argparse.ArgumentParser] = []

    def parse_args(self: argparse.ArgumentParser, *given: Any, **options: Any) -> Any:
        seen.append(self)
        parse(self, *given, **options)
        raise _Parsed

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args):
        yield seen


def run_module(module: str, arguments: list[str]) -> Any:
    """``python -m module`` in this process; what its ``main`` returns."""
    if (ROOT / module.replace(".", "/") / "cli.py").is_file():
        module += ".cli"
    with mock.patch.object(sys, "argv", [module, *arguments]):
        main = importlib.import_module(module).main
        return main(arguments) if inspect.signature(main).parameters else main()


def _check_module(line: str, module: str, arguments: list[str]) -> None:
    assert module.startswith("bench."), f"{line}: {module} is no module that this checks"
    with _parsing_only():
        try:
            run_module(module, arguments)
        except _Parsed:
            return
        except SystemExit as end:
            raise AssertionError(f"{line}: {module} refuses its arguments ({end.code})") from None
    raise AssertionError(f"{line}: {module} parses no arguments")


@functools.cache
def bench_options() -> frozenset[str]:
    """Options of ``pytest bench/`` that bench/conftest.py adds."""
    from bench.conftest import pytest_addoption

    parser = pytest.Parser(_ispytest=True)
    pytest_addoption(parser)
    return frozenset(n for g in parser._groups for option in g.options for n in option.names())


def pytest_options(config: pytest.Config) -> set[str]:
    """What pytest itself and its plugins take."""
    groups = [*config._parser._groups, config._parser._anonymous]
    return {name for group in groups for option in group.options for name in option.names()}


_pytest_knows: set[str] = set()


def know_pytest(config: pytest.Config) -> None:
    """Tell which options pytest has here."""
    _pytest_knows.update(pytest_options(config), bench_options())


def _check_pytest(line: str, arguments: list[str]) -> None:
    for word in arguments:
        if word.startswith("-"):
            assert word.partition("=")[0] in _pytest_knows, f"{line}: pytest has no {word}"
        elif "/" in word:
            assert (ROOT / word).exists(), f"{line}: no {word}"


def _check_pip(line: str, arguments: list[str]) -> None:
    assert arguments[0] == "install", line
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    _, _, extras = project.partition("[project.optional-dependencies]\n")
    known = set(re.findall(r"^(\w+) = \[", extras.partition("\n[")[0], re.MULTILINE))
    for word in arguments[1:]:
        if word.startswith(".["):
            unknown = set(word[2:-1].split(",")) - known
            assert not unknown, f"{line}: pyproject.toml has no extra {', '.join(unknown)}"


def _check_torchrun(line: str, arguments: list[str]) -> None:
    try:
        options = torchrun_parser().parse_args(arguments)
    except SystemExit:
        raise AssertionError(f"{line}: torchrun refuses its arguments") from None
    script, rest = options.training_script, options.training_script_args
    assert script == ("adarec_fast.cli" if options.module else "adarec-fast"), line
    _check_cli(line, rest)


@functools.cache
def known_options() -> frozenset[str]:
    """Every option of the command line, of the modules of ``bench`` and of ``pytest bench/``."""

    def of(command: Any) -> set[str]:
        names = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        return names.union(*(of(child) for child in getattr(command, "commands", {}).values()))

    found = of(cli()) | bench_options()
    for path in (ROOT / "bench").glob("*.py"):
        if "argparse" in path.read_text(encoding="utf-8"):
            found |= _options_of(f"bench.{path.stem}")
    return frozenset(found | _options_of("bench.gpu"))


def _options_of(module: str) -> set[str]:
    with _parsing_only() as seen, contextlib.suppress(_Parsed, SystemExit), mock.patch.object(
        argparse.ArgumentParser, "error", side_effect=_Parsed
    ):
        run_module(module, [])
    return {name for parser in seen for action in parser._actions for name in action.option_strings}


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-").strip() for heading in found
    }


def links(page: Path) -> list[tuple[str, str]]:
    """Path and anchor of every link and picture that does not lead to the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [link.partition("#")[::2] for link in found if not link.startswith("http")]  # type: ignore[misc]


def exists(dotted: str) -> bool:
    """Whether a name of the package or of ``bench`` is there, without importing its module."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            spec = importlib.util.find_spec(".".join(parts[:cut]))
            if spec is None or spec.origin is None:
                continue
            rest = parts[cut:]
            return not rest or rest[0] in _names(Path(spec.origin)) or _has(parts[:cut], rest)
    return False


def _has(module: list[str], rest: list[str]) -> bool:
    return hasattr(importlib.import_module(".".join(module)), rest[0])


def _names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


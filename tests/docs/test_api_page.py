"""The page of public names: what is there.

``python tests/docs/test_api_page.py`` writes it again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adarec_fast
from adarec_fast.models.base import SequenceModel

PAGE = Path(__file__).parents[2] / "adarec_fast" / "docs" / "api.md"
_BEGINNING = """# API

The public names, all from `adarec_fast`; they stay where they are whatever moves inside. Their
docstrings (`help(adarec_fast.ADARec)`) give shapes, dtypes, errors, equations and an example, which
a test runs with a small `data`, its `split`, `batches`, a `model` and its `recommender`; that of a
model lists its options. `adarec-fast docs --html DIR` (`.[docs]`) writes them as pages to browse,
those of `adarec_fast.training`, `adarec_fast.ranking` and others among them. This page is written
by `python tests/docs/test_api_page.py`.

"""


def rendered() -> str:
    """The page as it should be."""
    parts = []
    for name in adarec_fast.__all__:
        thing = getattr(adarec_fast, name)
        lines = [_signature(name, thing)]
        if inspect.isclass(thing):
            lines += [_signature(f"{name}.{m}", f) for m, f in _methods(thing)]
        parts.append(f"## {name}\n\n{_first_sentence(thing)}\n\n```text\n" + "\n".join(lines))
    return _BEGINNING + "\n```\n\n".join(parts) + "\n```\n"


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """What a class offers to be called, in the order in which it is written, and then what those
    offer that it is made of; not the protocol of models, which has its own page."""
    told = set()
    for part in cls.__mro__:
        if part is SequenceModel:
            continue
        for name, member in vars(part).items():
            bound = isinstance(member, (classmethod, staticmethod))
            function = member.__func__ if bound else member
            # What dataclasses, named tuples and pydantic make has no docstring of ours.
            ours = inspect.isfunction(function) and function.__module__.startswith("adarec_fast")
            if ours and not name.startswith("_") and function.__doc__ and name not in told:
                told.add(name)
                yield name, getattr(cls, name)


def _signature(name: str, thing: Any) -> str:
    """Names and defaults, without types: those are in the docstrings."""
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return f"{name}({thing.__mro__[1].__name__})"
    taken = inspect.signature(thing)
    kept = [p.replace(annotation=p.empty) for p in taken.parameters.values() if p.name != "self"]
    text = str(taken.replace(parameters=kept, return_annotation=taken.empty))
    if len(name + text) <= 100:
        return name + text
    return f"{name}(\n" + "".join(f"    {part},\n" for part in _split(text[1:-1])) + ")"


def _split(arguments: str) -> list[str]:
    """``a, b=(1, 2)`` at its outer commas, several to a line of at most 90 characters."""
    parts, depth = [""], 0
    for sign in arguments:
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    lines = [parts[0].strip()]
    for part in (part.strip() for part in parts[1:]):
        if len(lines[-1]) + len(part) > 88:
            lines.append(part)
        else:
            lines[-1] += ", " + part
    return lines


def _first_sentence(thing: Any) -> str:
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return text.replace("``", "`").replace(":class:", "").replace(":func:", "")


def test_the_page_lists_what_is_public() -> None:
    assert PAGE.read_text(encoding="utf-8") == rendered(), (
        "docs/api.md is not of these names and signatures; "
        "python tests/docs/test_api_page.py writes it"
    )


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")

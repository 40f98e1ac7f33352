"""The interpreter without what it repeats: `triton.language` is patched once a launch.

Triton patches every function of its language when a kernel is launched, and again at each call of
one jitted function by another, though nothing restored them in between: 3 ms a call, a third of
the time of kernels that are made of helpers.
"""

from __future__ import annotations

import inspect
from typing import Any

from triton import language
from triton.runtime import interpreter


def patch() -> None:
    """Replace the interpreter's patching for the rest of the process."""
    original = interpreter._patch_lang
    launch = interpreter.GridExecutor.__call__
    done: set[frozenset[int]] = set()  # Modules that are patched, in the launch under way.
    seen_by: dict[Any, frozenset[int]] = {}

    def once(fn: Any) -> Any:
        if fn not in seen_by:
            modules = [value for value in fn.__globals__.values() if inspect.ismodule(value)]
            seen_by[fn] = frozenset(
                id(module) for module in modules if module in (language, language.core)
            )
        if seen_by[fn] in done:
            return None
        done.add(seen_by[fn])
        return original(fn)

    def launched(self: Any, *arguments: Any, **options: Any) -> None:
        done.clear()
        launch(self, *arguments, **options)

    interpreter._patch_lang = once
    interpreter.GridExecutor.__call__ = launched

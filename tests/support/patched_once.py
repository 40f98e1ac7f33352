"""The interpreter without what it repeats.

Triton patches every function of its language when a kernel is launched, and again at each call of
one jitted function by another, though nothing restored them in between: 3 ms a call, a third of
the time of kernels that are made of helpers. And every value that a kernel computes has its shape
built, checked and named anew, several times: a third of what is left.
"""

from __future__ import annotations

import inspect
from typing import Any

from triton import language
from triton.runtime import interpreter


def patch() -> None:
    """Replace the interpreter's patching, and how types are made, for the rest of the process."""
    _patch_languages()
    _patch_types()


def _patch_languages() -> None:
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


def _patch_types() -> None:
    """What follows from a type alone is kept from the first of that type: nothing changes it."""
    core = language.core
    blocks: dict[tuple[Any, ...], dict[str, Any]] = {}
    tensors: dict[tuple[Any, ...], dict[str, Any]] = {}
    numpys: dict[str, Any] = {}
    plain = (int, float, core.dtype, core.block_type, core.pointer_type, core.tensor)
    block, tensor, equal = core.block_type.__init__, core.tensor.__init__, core.dtype.__eq__
    unwrap, numpy_of = core._unwrap_if_constexpr, interpreter._get_np_dtype

    def named(scalar: Any) -> Any:
        pointer = scalar.is_ptr()
        return (scalar.name, scalar.address_space, scalar.const) if pointer else scalar.name

    def make_block(self: Any, element_ty: Any, shape: Any) -> None:
        key = named(element_ty), *(s.value if type(s) is core.constexpr else s for s in shape)
        found = blocks.get(key)
        if found is None:
            block(self, element_ty, shape)
            blocks[key] = dict(vars(self))
        else:
            vars(self).update(found)

    def make_tensor(self: Any, handle: Any, type: Any) -> None:
        key = named(type.scalar), *(type.shape if type.is_block() else ())
        found = tensors.get(key)
        if found is None:
            tensor(self, handle, type)
            found = tensors[key] = dict(vars(self))
            del found["handle"], found["type"]
        else:
            vars(self).update(found, handle=handle, type=type)

    core.block_type.__init__ = make_block
    core.tensor.__init__ = make_tensor
    core.dtype.__eq__ = lambda self, other: self is other or equal(self, other)
    core._unwrap_if_constexpr = lambda o: (
        o.value if type(o) is core.constexpr else o if type(o) in plain else unwrap(o)
    )

    def numpy_type(of: Any) -> Any:
        if of.name not in numpys:
            numpys[of.name] = numpy_of(of)
        return numpys[of.name]

    interpreter._get_np_dtype = numpy_type

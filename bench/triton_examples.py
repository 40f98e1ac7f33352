"""Example inputs of every op, and the kernels that its launchers start for them.

The launchers run with their launches recorded instead of started, so exactly the configurations in
use are looked at. An op's first examples are training as the model does it by default; the others,
its variants, differ in what kernels are specialised on: dropout, last positions only, no noise, no
gradient. A variant's kernels that the first example has already are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from adarec_fast import rng
from adarec_fast.kernels._launch import Launch, padded_size, recording
from adarec_fast.kernels.fused_trajectory import LARGEST
from adarec_fast.ops._library import implementation
from adarec_fast.ops.level_infonce import Prepared

LEVELS = 9


class Example(NamedTuple):
    """Arguments of fwd, and of bwd where the op has one and the example needs it."""

    forward: list[Any]
    backward: list[Any] | None = None


def _batch(size: int) -> dict[str, Tensor]:
    offsets = torch.tensor([0, 5, 11, 40])
    return {
        "offsets": offsets,
        "depth": torch.tensor([3, 0, 8]),
        "e": torch.zeros(48, size),
        "x": torch.zeros(LEVELS, 48, size),
        "z": torch.zeros(LEVELS, 3, size),
        "seed": rng.at_place(rng.as_seed(1)),
    }


def _hda(size: int) -> Iterator[Example]:
    b, hidden = _batch(size), 2 * size
    inputs = [
        b["e"], b["offsets"], b["depth"], torch.ones(LEVELS), torch.zeros(hidden, size),
        torch.zeros(LEVELS - 1, hidden), torch.zeros(size, hidden), torch.zeros(size),
    ]
    noisy = [*inputs, b["seed"], None, False]
    yield Example(noisy, [b["x"], torch.zeros(48), *noisy])
    yield Example([*inputs, None, None, False])


def _mlp(size: int) -> Iterator[Example]:
    b, hidden = _batch(size), 2 * size
    for seed, last_only in ((b["seed"], False), (b["seed"], True), (None, True), (None, False)):
        inputs = [
            b["x"], b["offsets"], b["depth"], torch.zeros(hidden, size), torch.zeros(hidden),
            torch.zeros(size, hidden), torch.zeros(size), torch.ones(size), torch.zeros(size),
            1e-12, 0.1, seed, rng.STREAM_COARSE_MLP, False, last_only,
        ]
        grad = b["z"] if last_only else b["x"]
        yield Example(inputs, None if seed is None else [grad, *inputs])


def _mlp_pooled(size: int) -> Iterator[Example]:
    b = _batch(size)
    inputs = next(_mlp(size)).forward[:-2]
    for content in (True, False):
        means = [b["z"], b["z"], b["z"] if content else torch.zeros(0)]
        given = [*inputs, False, content]
        yield Example(given, [*means, *given])


def _biases(size: int) -> Iterator[Example]:
    inputs = [torch.zeros(LEVELS, size)]
    for out in (2 * size, size):
        inputs += [torch.zeros(out, size), torch.zeros(out)]
    grads = [torch.zeros(LEVELS - 1, 2 * size), torch.zeros(LEVELS, size)]
    yield Example(inputs, [*grads, *inputs])


def _moe(size: int) -> Iterator[Example]:
    b = _batch(size)
    for pooled in (b["z"], None):
        inputs = [
            b["z"], b["z"], pooled, b["depth"], torch.ones(LEVELS, 3), torch.zeros(size, size),
            torch.zeros(LEVELS, size), torch.zeros(size), torch.zeros(1), torch.zeros(size, size),
            torch.zeros(size),
        ]
        saved = [torch.zeros(3, size), torch.zeros(LEVELS, 3), torch.zeros(3, size),
                 torch.zeros(3, size)]
        yield Example(inputs, [*saved, *inputs])


def _pool(size: int) -> Iterator[Example]:
    b = _batch(size)
    for causal, depth in ((False, b["depth"]), (True, b["depth"]), (False, None)):
        grad = b["x"] if causal else b["z"]
        yield Example(
            [b["x"], b["offsets"], depth, causal], [grad, b["offsets"], depth, causal, 48]
        )


def _encoder(size: int) -> Iterator[Example]:
    b, inner = _batch(size), 4 * size
    shapes = [(3 * size, size), (3 * size,), (size, size), (size,), (size,), (size,),
              (inner, size), (inner,), (size, inner), (size,), (size,), (size,)]
    backbone, expert = (b["x"][:1], None), (b["x"], b["depth"])
    for (x, depth), seed, last_only in (
        (backbone, b["seed"], False), (expert, b["seed"], True), (expert, b["seed"], False),
        (backbone, None, False), (expert, None, True), (expert, None, False),
        ((b["x"], None), None, False),  # a baseline's: of all depth
    ):
        inputs = [
            x, b["offsets"], depth, *(torch.zeros(shape) for shape in shapes),
            2, 1e-12, 0.1, 0.1, seed, rng.STREAM_FINE_EXPERT, last_only, 48, True,
        ]
        grad = b["z"] if last_only else x
        yield Example(inputs, None if seed is None else [grad, *inputs])


def _embedding(size: int) -> Iterator[Example]:
    b = _batch(size)
    # The second has more tokens than are ranked by counting.
    for tokens, seed in ((48, b["seed"]), (9000, b["seed"]), (48, None)):
        inputs = [
            torch.zeros(tokens, dtype=torch.int64), b["offsets"], torch.zeros(100, size),
            torch.zeros(50, size), torch.ones(size), torch.zeros(size), 1e-12, 0.1, seed,
        ]
        yield Example(inputs, [torch.zeros(tokens, size), torch.zeros(100, size), *inputs])


def _dropout(size: int) -> Iterator[Example]:
    b = _batch(size)
    yield Example([b["e"], b["seed"], 0.1, rng.STREAM_EMBEDDING])


def _local_path(size: int) -> Iterator[Example]:
    b = _batch(size)
    for seed in (b["seed"], None):
        inputs = [
            b["e"], b["offsets"], torch.zeros(3, size), torch.ones(size), torch.zeros(size),
            1e-12, 0.1, seed, rng.STREAM_BACKBONE + rng.SITE_LOCAL_PATH,
        ]
        yield Example(inputs, [b["e"], *inputs])


def _objective(size: int) -> Iterator[Example]:
    b, scalar = _batch(size), torch.zeros(())
    for levels in (LEVELS, 5):
        logits, gates, error = torch.zeros(3, levels), torch.zeros(levels, 3), torch.zeros(48)
        # The whole model, and one with a part of it alone.
        for given in ((scalar, error, logits, gates), (None, error, None, None)):
            cont, _, logits, gates = given
            forward = [scalar, cont, error, b["offsets"], b["depth"], logits, gates, b["depth"],
                       levels, size, 0.2, 0.1, 0.1]
            yield Example(forward, [scalar, scalar, b["offsets"], logits, 48, 0.2, 0.1, 0.1])


def _statistics(size: int) -> Iterator[Example]:
    b, scalar = _batch(size), torch.zeros(())
    for levels in (LEVELS, 5):
        for step in (torch.zeros((), dtype=torch.int64), None):
            yield Example([
                torch.zeros(8 + 3 * levels, dtype=torch.float64), b["offsets"][0],
                torch.zeros(6, dtype=torch.bool), *[scalar] * 8, b["depth"], torch.zeros(levels),
                step, 1,
            ])


def _weights(size: int) -> list[Tensor]:
    """Of a model's number and sizes, about."""
    return [torch.zeros(100, size), *(torch.zeros(4 * size, size) for _ in range(69))]


def _norm(size: int) -> Iterator[Example]:
    yield Example([_weights(size), torch.zeros((), dtype=torch.int32)])


def _adam(size: int) -> Iterator[Example]:
    lists, scalar = [_weights(size)] * 4, torch.zeros(())
    for decay, clip in ((0.0, 5.0), (0.1, 0.0)):
        yield Example([
            *lists, [scalar] * len(lists[0]), torch.zeros((), dtype=torch.int32), *[scalar] * 3,
            0.9, 0.999, 1e-8, decay, clip,
        ])


def _controller(size: int) -> Iterator[Example]:
    gates = 3 * size
    # Of few sequences a scan takes fewer at a time than of many.
    for sequences, levels in ((3, LEVELS), (5000, LEVELS), (3, 5)):
        offsets = torch.arange(sequences + 1)
        e = torch.zeros(sequences, size)
        inputs = [
            e, offsets, torch.zeros(sequences, gates), torch.zeros(gates, size),
            torch.zeros(gates, size), torch.zeros(gates), torch.zeros(levels, size),
            torch.zeros(levels), 40,
        ]
        yield Example(inputs, [torch.zeros(sequences, levels), e, *inputs])


def _choose(size: int) -> Iterator[Example]:
    b = _batch(size)
    for levels, (seed, offsets, every) in product((LEVELS, 5), (
        (b["seed"], None, False), (b["seed"], b["offsets"], False), (b["seed"], None, True),
        (b["seed"], b["offsets"], True), (None, None, False), (None, b["offsets"], False),
    )):  # fmt: skip
        logits, rows = torch.zeros(3, levels), 0 if offsets is None else 48
        grad = torch.zeros(levels, rows or 3)
        yield Example(
            [logits, seed, offsets, 0.5, every, rows],
            None if seed is None else [grad, logits, offsets, 0.5],
        )


def _length_bias(size: int) -> Iterator[Example]:
    inputs = [
        _batch(size)["offsets"], torch.zeros(size, 1), torch.zeros(size), torch.zeros(size, size),
        torch.zeros(size), torch.zeros(3 * size, size), torch.zeros(3 * size), 50,
    ]
    yield Example(inputs, [torch.zeros(3, 3 * size), torch.zeros(3, size), *inputs])


def _infonce(size: int) -> Iterator[Example]:
    b = _batch(size)
    inputs = [b["z"], b["depth"], torch.arange(3), 0.07]
    saved = torch.zeros(sum(Prepared.words(LEVELS, 3, size)))
    yield Example(inputs, [torch.ones(()), saved, *inputs])


def _cross_entropy(size: int) -> Iterator[Example]:
    inputs = [torch.zeros(48, size), torch.empty(1001, size), torch.ones(48, dtype=torch.int64)]
    saved = [torch.ones(()), torch.zeros(48, size), torch.zeros(97)]
    yield Example([*inputs, True], [*saved, *inputs])
    yield Example([*inputs, False])


def _topk(size: int) -> Iterator[Example]:
    b = _batch(size)
    # 100 take more than one round, whose kernels keep as much as they ever do. What is ranked last
    # is wider the more parts a catalogue has: these sizes need every width there is.
    small = [(10, items) for items in (60, 100, 200, 500, 1000, 2000, 4000, 8000, 16000)]
    for k, items in ((100, 1000), (20, 1000), *small):
        yield Example([
            torch.zeros(3, size), torch.empty(items + 1, size), torch.ones(40, dtype=torch.int64),
            b["offsets"], k, 0.0,
        ])


def _memory(size: int) -> Iterator[Example]:
    b = _batch(size)
    ids, rows = torch.ones(40, dtype=torch.int64), torch.zeros(1002, dtype=torch.int64)
    # As many keys of the k best as kernels ever keep, and the fewest.
    for k in (20, 10, 100, 1000):
        yield Example([
            torch.zeros(3, size), torch.empty(1001, size), ids, b["offsets"], ids, b["offsets"],
            rows, torch.ones(90, dtype=torch.int32), torch.ones(90), 90, k, 1.0, 1.0, 0.8,
        ])


def _fused(size: int) -> Iterator[Example]:
    # Inference's; what else the op launches are the kernels of the ops above.
    inputs = next(_hda(size)).forward
    layer, coarse, router = (next(made(size)).forward for made in (_encoder, _mlp, _moe))
    yield Example([
        *inputs[:3], torch.ones(LEVELS, 3), *inputs[3:8], *layer[3:15], *coarse[3:9],
        *router[5:], None, None, None, 2, 1e-5, 0.0, 0.0, False, False, True, False, True, 48,
    ])


# By op; shapes matter only where a kernel is specialised on them.
EXAMPLES: dict[str, Callable[[int], Iterator[Example]]] = {
    "hda_trajectory": _hda,
    "level_biases": _biases,
    "mlp_expert": _mlp,
    "mlp_expert_pooled": _mlp_pooled,
    "moe_aggregate": _moe,
    "level_pool": _pool,
    "encoder_layer": _encoder,
    "dropout": _dropout,
    "embedding": _embedding,
    "local_path": _local_path,
    "objective": _objective,
    "epoch_statistics": _statistics,
    "gradient_norm": _norm,
    "adam": _adam,
    "depth_controller": _controller,
    "choose_depth": _choose,
    "length_bias": _length_bias,
    "level_infonce": _infonce,
    "linear_cross_entropy": _cross_entropy,
    "score_topk": _topk,
    "memory_topk": _memory,
    "fused_trajectory": _fused,
}

# How many of an op's examples are training as the model does it by default, if not the first alone:
# the backbone's layer and the fine expert's, at last positions; a batch of 256 and one of 8,192.
BY_DEFAULT = {"encoder_layer": 2, "depth_controller": 2}


@contextmanager
def _precision(kind: str) -> Iterator[None]:
    """Autocast for "half"; torch's switch for "tf32" and "ieee"."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "half"):
            yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


# Constants that tell a kernel's variants apart but are no flag.
_NUMBERS = ("KEPT", "WIDTH", "LEVELS", "USERS", "CHOICES")
# Tensors that a kernel may do without.
_OPTIONAL = {
    "_attention_kernel": ("lse_ptr",), "_pool_kernel": ("content_ptr",),
    "_backward_kernel": ("last_ptr", "content_ptr"),
    "_partials_kernel": ("error_ptr", "logits_ptr", "gates_ptr"),
    "_total_kernel": ("cont_ptr", "error_ptr", "logits_ptr", "gates_ptr"),
    "_objective_backward_kernel": ("logits_ptr",),
    "_add_kernel": ("step_ptr",),
}


def variant_name(launch: Launch) -> str:
    """The kernel's name with what it is specialised on, ``attention_kernel[DROPOUT,LAST]``."""
    kernel, tags = launch.kernel.__name__.strip("_"), []
    for parameter in launch.kernel.params:
        name, value = parameter.name, launch.arguments[parameter.name]
        if value is True or (name == "NOISE" and value):
            tags.append(name)
        elif name == "OUT":
            tags.append(f"OUT={value // launch.arguments['D']}D")
        elif name == "table":
            tags.append(f"ENTRIES={len(value)}")
        elif name in _NUMBERS:
            tags.append(f"{name}={value}")
        elif name in _OPTIONAL.get(launch.kernel.__name__, ()) and value is not None:
            tags.append(name.removesuffix("_ptr"))
    return f"{kernel}[{','.join(tags)}]" if tags else kernel


def _compiled_as(launch: Launch) -> tuple[Any, ...]:
    """All that the compiler sees of a launch."""
    seen = []
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        if isinstance(value, Tensor):
            seen.append(value.dtype)
        elif parameter.is_constexpr or value is None:
            seen.append(value)
        elif isinstance(value, tuple):
            seen += [v.dtype for v in value if isinstance(v, Tensor)]
    return (launch.kernel, *seen, *sorted(launch.options.items()))


def fingerprint(launch: Launch) -> str:
    """Changes with all that the compiler sees, be it in a function that the kernel calls."""
    functions, constants, waiting = {}, {}, [launch.kernel]
    while waiting:
        function = waiting.pop()
        functions[function.__module__, function.__name__] = function.src
        for name in function.fn.__code__.co_names:
            value = function.fn.__globals__.get(name)
            if isinstance(value, triton.JITFunction):
                if (value.__module__, value.__name__) not in functions:
                    waiting.append(value)
            elif isinstance(value, tl.constexpr):
                constants[name] = value.value
    seen = [str(part) for part in _compiled_as(launch)[1:]]
    text = repr((sorted(functions.items()), sorted(constants.items()), seen))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def launches(
    op: str, size: int, precision: str, architecture: int, variants: bool
) -> dict[str, Launch]:
    """What an op starts on an architecture by ``variant_name``; without variants, by default.

    Raises:
        RuntimeError: one name for two different kernels.
    """
    code = implementation(op, "triton")
    found: dict[str, Launch] = {}
    if op == "fused_trajectory" and padded_size(size) != LARGEST:
        return found  # below, the tile is that of 64; above, it runs the other ops' kernels
    for position, example in enumerate(EXAMPLES[op](size), 1):
        with recording(architecture) as started, _precision(precision):
            code.fwd(*example.forward)
            if example.backward is not None:
                code.bwd(*example.backward)
        for launch in started:
            name = variant_name(launch)
            known = found.setdefault(name, launch)
            if _compiled_as(known) != _compiled_as(launch):
                raise RuntimeError(f"{op}: {name} names two kernels; see variant_name")
        if not variants and position == BY_DEFAULT.get(op, 1):
            break
    return found


# An op's example that is training by default, or a request of 20 items, if not the first.
_USUAL = {"encoder_layer[last]": 1, "score_topk": 1}


def launches_of_op(op: str, size: int, precision: str, architecture: int) -> tuple[int, int]:
    """How many kernels an op starts forward and backward, in training as it is by default.

    ``op`` is a key of ``EXAMPLES``, perhaps with a form, ``"encoder_layer[last]"``.
    """
    name = op.partition("[")[0]
    code = implementation(name, "triton")
    if name == "fused_trajectory" and padded_size(size) != LARGEST:
        return 0, 0
    example = list(EXAMPLES[name](size))[_USUAL.get(op, 0)]
    counts = []
    for run, arguments in ((code.fwd, example.forward), (code.bwd, example.backward)):
        with recording(architecture) as started, _precision(precision):
            if arguments is not None:
                run(*arguments)
        counts.append(len(started))
    return counts[0], counts[1]

"""The CUDA kernels' own source, run on the CPU: tests/support/cuda_emulation plays the device.

It shows that indices, barriers, warp exchanges and the arithmetic are right, not how fast they are.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adarec_fast import ragged
from adarec_fast.reference.moe_aggregate import moe_aggregate as reference

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++")


class Problem(ctypes.Structure):
    """``adarec::cuda::MoEAggregate``."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("levels", ctypes.c_int),
        ("dim", ctypes.c_int),
        ("hidden", ctypes.c_int),
        ("bf16", ctypes.c_bool),
        *((name, ctypes.c_void_p) for name in (
            "fine", "coarse", "pooled", "depth", "level_mass", "router_w1", "router_level_bias",
            "router_w2", "router_b2", "gate_w", "gate_b",
        )),
    )


INPUTS = tuple(name for name, _ in Problem._fields_[5:])
OUTPUTS = ("user", "gates", "z_fine", "z_coarse")
GRADIENTS = tuple(name for name in INPUTS if name != "depth")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    library = tmp_path_factory.mktemp("emulation") / "moe_aggregate.so"
    assert COMPILER is not None
    subprocess.run(
        [COMPILER, "-std=c++17", "-O2", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-fPIC",
         "-shared", f"-I{ROOT / 'tests/support/cuda_emulation'}", f"-I{ROOT / 'csrc'}",
         str(ROOT / "tests/support/cuda_emulation/moe_aggregate.cpp"), "-o", str(library)],
        check=True, timeout=300,
    )
    loaded = ctypes.CDLL(str(library))
    loaded.scratch_size.restype = ctypes.c_int64
    yield loaded
    loaded.set_reversed(0)


def problem(
    levels: int, rows: int, dim: int, hidden: int, *, content: bool, dtype: torch.dtype
) -> dict[str, Tensor | None]:
    """Random inputs, NaN wherever nothing may be read."""
    generator = torch.Generator().manual_seed(levels * 1000 + rows + dim)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    depth = torch.randint(-1, levels, (rows,), generator=generator)
    unreached = ~ragged.reached_levels(depth, levels)
    inputs: dict[str, Tensor | None] = {
        "fine": random(levels, rows, dim).to(dtype),
        "coarse": random(levels, rows, dim).to(dtype),
        "pooled": random(levels, rows, dim).to(dtype) if content else None,
        "depth": depth,
        "level_mass": torch.rand(levels, rows, generator=generator) + 0.5,
        "router_w1": random(hidden, dim) / dim**0.5,
        "router_level_bias": random(levels, hidden),
        "router_w2": random(hidden) / hidden**0.5,
        "router_b2": random(1),
        "gate_w": random(dim, dim) / dim**0.5,
        "gate_b": random(dim),
    }
    for name in ("fine", "coarse", "pooled", "level_mass"):
        values = inputs[name]
        if values is not None:
            values[unreached] = float("nan")
    return inputs


def describe(inputs: dict[str, Tensor | None]) -> Problem:
    fine, bias = inputs["fine"], inputs["router_level_bias"]
    assert fine is not None
    assert bias is not None
    levels, rows, dim = fine.shape
    pointers = {k: None if v is None else v.data_ptr() for k, v in inputs.items()}
    return Problem(rows, levels, dim, bias.shape[1], fine.dtype == torch.bfloat16, **pointers)


def pointers(tensors: list[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    """A structure of pointers."""
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def run(device: ctypes.CDLL, inputs: dict[str, Tensor | None], upstream: Tensor
        ) -> dict[str, Tensor]:
    """Outputs and gradients of the kernels, from memory that holds NaN."""
    fine = inputs["fine"]
    assert fine is not None
    levels, rows, dim = fine.shape

    def blank(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, float("nan"), dtype=dtype)

    out = {"user": blank(rows, dim, dtype=fine.dtype), "gates": blank(levels, rows),
           "z_fine": blank(rows, dim), "z_coarse": blank(rows, dim)}
    op = describe(inputs)
    assert device.forward(ctypes.byref(op), pointers(list(out.values()))) == 0
    scratch = blank(device.scratch_size(ctypes.byref(op)))
    grads = {name: None if inputs[name] is None else torch.full_like(inputs[name], float("nan"))
             for name in GRADIENTS}
    arguments = [upstream, *list(out.values())[1:], *grads.values(), scratch]
    assert device.backward(ctypes.byref(op), pointers(arguments)) == 0
    return {**out, **{f"d_{k}": v for k, v in grads.items() if v is not None}}


def expected(inputs: dict[str, Tensor | None], upstream: Tensor, dtype: torch.dtype
             ) -> dict[str, Tensor]:
    """The same from the reference and autograd, in another precision."""
    depth, fine = inputs["depth"], inputs["fine"]
    assert depth is not None
    assert fine is not None
    reached = ragged.reached_levels(depth, fine.shape[0])
    leaves = {}
    for name in GRADIENTS:
        values = inputs[name]
        if values is None:
            continue
        if name in ("fine", "coarse", "pooled", "level_mass"):
            shape = reached if name == "level_mass" else reached[..., None]
            values = torch.where(shape, values, torch.zeros_like(values))
        leaves[name] = values.detach().to(dtype).requires_grad_()
    rest = [leaves[name] for name in GRADIENTS[3:]]
    outputs = reference(leaves["fine"], leaves["coarse"], leaves.get("pooled"), reached, *rest)
    outputs[0].backward(upstream.to(dtype))
    found = dict(zip(OUTPUTS, (t.detach() for t in outputs), strict=True))
    for name, leaf in leaves.items():
        found[f"d_{name}"] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return found


SHAPES = [  # levels, rows, D, H
    (1, 1, 4, 4), (9, 19, 64, 64), (3, 20, 16, 7), (5, 17, 40, 96), (3, 17, 128, 128),
    (4, 530, 8, 8),
]
KINDS = [
    (dtype, content) for dtype in (torch.float32, torch.bfloat16) for content in (True, False)
]
# Fibers make wide and many blocks slow: in bfloat16, where smaller shapes show the rounding, they
# are long sweeps; of the widest each dtype and each router once.
LARGE = SHAPES[-2:]
CASES = [
    *(pytest.param(shape, dtype, content,
                   marks=[pytest.mark.slow] * (shape in LARGE and dtype == torch.bfloat16))
      for dtype, content in KINDS for shape in SHAPES),
    *(pytest.param((2, 3, 256, 256), dtype, content, marks=pytest.mark.slow)
      for dtype, content in ((torch.float32, True), (torch.bfloat16, False))),
]


@pytest.mark.parametrize(("shape", "dtype", "content"), CASES, ids=str)
def test_kernels_match_the_reference(
    device: ctypes.CDLL, shape: tuple[int, int, int, int], dtype: torch.dtype, content: bool
) -> None:
    levels, rows, dim, hidden = shape
    if dtype == torch.bfloat16 and dim % 8:
        pytest.skip("bfloat16 rows come in words of 8")
    inputs = problem(levels, rows, dim, hidden, content=content, dtype=dtype)
    upstream = torch.randn(rows, dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    device.set_reversed(0)
    ours = run(device, inputs, upstream)
    device.set_reversed(1)
    again = run(device, inputs, upstream)
    gold, same = (expected(inputs, upstream, d) for d in (torch.float64, torch.float32))
    depth = inputs["depth"]
    assert depth is not None
    unreached = ~ragged.reached_levels(depth, levels)
    for name, wanted in gold.items():
        got = ours[name]
        assert torch.equal(got.nan_to_num(7.0), again[name].nan_to_num(7.0)), (
            f"{name} depends on the order of the warps"
        )
        if name in ("d_fine", "d_coarse", "d_pooled"):
            assert got[unreached].isnan().all(), f"{name} was written beyond the depth"
            got = got.masked_fill(unreached[..., None], 0.0)
        error = (got.double() - wanted).abs().max().item()
        plain = (same[name].double() - wanted).abs().max().item()
        # Rows of bfloat16 are rounded once, when they are written.
        rounding = 2.0**-8 if got.dtype == torch.bfloat16 else 2e-6
        # b2's gradient is a sum of terms of the level masses' size, most of which cancel.
        terms = gold["d_level_mass"] if name == "d_router_b2" else wanted
        assert error <= 2 * plain + rounding * max(terms.abs().max().item(), 1e-3), name

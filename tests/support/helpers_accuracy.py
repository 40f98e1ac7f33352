"""The accuracy rule that every op is held to: how far from the float64 reference it may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from helpers import Backend, OpCase, Result, evaluate
from torch import Tensor

from adarec_fast.ops._library import collecting
from adarec_fast.precision import computing

# Half a unit in the last place of 1. For float64, which has no wider reference, a wide margin.
APPROXIMATION = 4  # roundings of float32 in PTX's 2^-22
ROUNDING = {torch.float64: 2.0**-48, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}
TF32_ROUNDING = 2.0**-12


def assert_close_to_float64(
    ours: Tensor,
    same: Tensor,
    gold: Tensor,
    name: str,
    *,
    rounding: float = ROUNDING[torch.float32],
    scale: float = 1.0,
    sensitivity: Callable[[], float] = float,
    terms: int = 0,
) -> None:
    """|ours - gold| <= 2 |same - gold| + tiny, in the maximum norm of the tensor.

    ``gold`` is the reference in float64 and ``same`` the reference in our own precision, so that an
    op may err twice as much as plain PyTorch does. ``tiny`` is for results in which PyTorch, by
    luck, errs hardly at all: sixteen roundings of the tensor's greatest value (1e-6 of it in
    float32), two of ``scale``, the size of the terms that went into it and may have cancelled, and
    twice ``sensitivity()``, what one rounding of the inputs does to the float64 result (asked for
    only where the rest does not suffice).

    A GPU's kernels (``terms`` > 0: of the longest sum) may err by more, for two reasons that have
    nothing to do with their being right:

    * functions are the hardware's. Of ex2.approx, rsqrt.approx, sqrt.approx, lg2.approx and
      div.full PTX promises 2 units in the last place, 2^-22 of the value, where the reference's are
      rounded: an intermediate is off by ``APPROXIMATION`` = 4 roundings in place of one, and what
      that does to the result is four times what one rounding of what came before does.
    * sums run one term after the other (an FMA's accumulator), the reference's in blocks. n
      roundings of partial sums of at most the tensor's greatest value, each up to ``rounding`` of
      it and as often up as down, walk sqrt(n) roundings far; three times that is allowed.
    """
    assert ours.shape == gold.shape, f"{name}: shape {list(ours.shape)}, not {list(gold.shape)}"
    ours, same, gold = (t.detach().cpu().to(torch.float64) for t in (ours, same, gold))
    assert torch.isfinite(gold).all(), f"{name}: the float64 reference is not finite"
    assert torch.isfinite(ours).all(), f"{name}: not finite where it must be written"
    if not gold.numel():
        return
    error, allowed = (ours - gold).abs().max(), (same - gold).abs().max()
    walk = 3 * terms**0.5
    bound = 2 * allowed + rounding * ((16 + walk) * gold.abs().max() + 2 * scale)
    if error > bound:
        bound = bound + 2 * (APPROXIMATION if terms else 1) * sensitivity()
    assert error <= bound, (
        f"{name}: off by {error:.3e}; twice the reference's own error and tiny are {bound:.3e}"
    )


def input_sensitivity(case: OpCase, gold: Result, rounding: float) -> dict[str, float]:
    """How far one rounding of every input moves the float64 results, by name; the worst of 3."""
    moved: dict[str, float] = {}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        arguments = {
            name: value.double()
            * (1 + rounding * (2 * torch.randint(2, value.shape, generator=generator) - 1))
            if value is not None and value.is_floating_point() and name not in case.fixed
            else value
            for name, value in case.arguments.items()
        }
        result = evaluate(replace(case, arguments=arguments), "reference", torch.float64)
        for name, value in result.named().items():
            if value.is_floating_point() and value.numel():
                change = float((value - gold.named()[name]).abs().max())
                moved[name] = max(moved.get(name, 0.0), change)
    return moved


def longest_sum(case: OpCase) -> int:
    """No sum of an op has more terms: rows of its largest argument, or a feed-forward's columns."""
    floats = [t for t in case.arguments.values() if t is not None and t.is_floating_point()]
    rows = max((t.numel() // max(t.shape[-1], 1) for t in floats if t.dim()), default=1)
    return max(rows, 4 * max((t.shape[-1] for t in floats if t.dim()), default=1))


def rounded(case: OpCase, dtype: torch.dtype) -> OpCase:
    """The case with its floats rounded to a dtype, so that float64 sees what the dtype sees."""
    arguments = {
        name: value.to(dtype).float()
        if value is not None and value.is_floating_point() and name not in case.fixed
        else value
        for name, value in case.arguments.items()
    }
    return replace(case, arguments=arguments)


def check_against_float64(
    case: OpCase, backend: Backend, dtype: torch.dtype, *, autocast: bool = False,
    tf32: bool = False,
) -> None:
    """Hold outputs and every gradient of a backend to :func:`assert_close_to_float64`.

    ``tf32``: float32 products are to be those of TF32, forward and backward.
    """
    if tf32:
        with computing("tf32", backend.device):
            ours = evaluate(case, backend.name, dtype, backend.device, autocast)
        exactly = evaluate(case, backend.name, dtype, backend.device, autocast)
        assert any(
            not torch.equal(one, exactly.named()[name]) for name, one in ours.named().items()
        ), "nothing was rounded"
    else:
        ours = evaluate(case, backend.name, dtype, backend.device, autocast)
    if collecting():
        return  # what is launched is all that was asked: the values are packed PyTorch's
    same = ours
    if backend.name != "reference":
        same = evaluate(case, "reference", dtype, backend.device, autocast)
    gold = evaluate(rounded(case, dtype), "reference", torch.float64)
    rounding = TF32_ROUNDING if tf32 else ROUNDING[torch.bfloat16 if autocast else dtype]
    terms = longest_sum(case) if backend.approximates else 0
    for name, got in ours.named().items():
        wanted = gold.named()[name]
        if not got.is_floating_point():
            assert torch.equal(got.cpu(), wanted), f"{name} differs"
            continue
        assert_close_to_float64(
            got,
            same.named()[name],
            wanted,
            name,
            rounding=rounding,
            scale=case.scale,
            terms=terms,
            sensitivity=lambda n=name: input_sensitivity(rounded(case, dtype), gold, rounding)[n],
        )

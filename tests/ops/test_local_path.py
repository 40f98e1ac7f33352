"""`local_path`: a causal depthwise convolution with residual and LayerNorm, on packed tokens."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from helpers import Backend, Batch, OpCase
from helpers_suite import OpSuite

from adarec_fast import rng
from adarec_fast.ops import local_path


def build(batch: Batch, *, taps: int = 3, p: float = 0.0) -> OpCase:
    g, size, real = batch.generator(), batch.size, batch.real()
    return OpCase(
        function=local_path,
        arguments={
            "x": torch.randn(batch.num_tokens, size, generator=g),
            "offsets": batch.offsets(),
            "taps": torch.randn(taps, size, generator=g),
            "norm_weight": 1 + torch.randn(size, generator=g) / 4,
            "norm_bias": torch.randn(size, generator=g) / 4,
            "seed": rng.as_seed(batch.seed) if p else None,
        },
        differentiable=("x", "taps", "norm_weight", "norm_bias"),
        options={"eps": 1e-5, "p": p, "max_length": 12},
        readable={"x": real},
        written=(real,),
        axes={"x": ("token", 0)},
        output_axes=(("token", 0),),
    )


class TestLocalPath(OpSuite):
    op = "local_path"
    variants: ClassVar = {
        "dropout": partial(build, p=0.5),
        "plain": build,
        "one-tap": partial(build, taps=1),
        "longest": partial(build, taps=16, p=0.2),
    }
    noisy = ("dropout", "longest")
    # Nothing but x has an axis of tokens, and offsets none that another argument knows.
    free = ("offsets",)

    def test_by_hand(self, backend: Backend) -> None:
        x = torch.tensor([[1.0, 2], [3, 5], [2, 0], [4, 1]])
        taps = torch.tensor([[1.0, 0.5], [2, -1]])
        arguments: dict[str, Any] = {"norm_weight": torch.ones(2), "norm_bias": torch.zeros(2)}
        arguments |= {"x": x, "taps": taps, "offsets": torch.tensor([0, 3, 4])}
        y = local_path(
            **{name: value.to(backend.device) for name, value in arguments.items()},
            eps=1e-5, max_length=3, backend=backend.name,
        )  # fmt: skip
        # x + taps_0 x_t + taps_1 x_{t-1}; the fourth token begins a sequence.
        before = torch.tensor([[2.0, 3], [8, 5.5], [10, -5], [8, 1.5]])
        torch.testing.assert_close(y.cpu(), torch.nn.functional.layer_norm(before, (2,)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taps": torch.ones(17, 8)}, "taps has 17 rows; it must have 1 to 16"),
        ({"taps": torch.ones(0, 8)}, "taps has 0 rows"),
        ({"p": 1.0}, r"p=1.0 must lie in \[0, 1\)"),
    ],
)
def test_bad_values_are_named(change: dict[str, Any], message: str) -> None:
    case = build(Batch(lengths=(3, 1), depths=(0, 0), size=8))
    with pytest.raises(ValueError, match=message):
        local_path(**{**case.arguments, **case.options, **change})

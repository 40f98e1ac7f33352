"""`fused_trajectory`: from E to h with no level in memory, and a backward pass in parts."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import Batch, OpCase, evaluate, random_batch
from helpers_suite import OpSuite
from test_encoder_layer import layer_weights
from torch import Tensor

from adarec_fast import ADARec, ConfigError, Recommender, rng
from adarec_fast.data import Batch as TrainingBatch
from adarec_fast.ops import LayerWeights, Trajectory, fused_trajectory
from adarec_fast.ops._library import collecting, unavailable
from adarec_fast.ops.fused_trajectory import separate
from adarec_fast.packed._parts import PART_TOKENS
from adarec_fast.reference.fused_trajectory import TrajectoryInputs

needs_cpp = pytest.mark.skipif(
    unavailable("fused_trajectory", "cpp", "cpu") is not None,
    reason="the C++ extension is not there",
)
DENOISER = ("w1", "level_bias", "w2", "b2")
COARSE = ("w1", "b1", "w2", "b2", "ln_w", "ln_b")
ROUTER = ("router_w1", "router_level_bias", "router_w2", "router_b2", "gate_w", "gate_b")


def trajectory(**arguments: Any) -> Trajectory:
    """The op with its parameters by name."""
    fine = LayerWeights(*(arguments.pop(name) for name in LayerWeights._fields))
    coarse = [arguments.pop(f"coarse_{name}") for name in COARSE]
    router = [arguments.pop(name) for name in ROUTER]
    denoiser = [arguments.pop(name) for name in DENOISER]
    return fused_trajectory(
        denoiser=denoiser, fine=fine, coarse=coarse, router=router, **arguments
    )


def parameters(size: int, levels: int, g: torch.Generator) -> dict[str, Tensor]:
    """Random weights of all parts by name."""

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g) / columns**0.5

    def vector(*shape: int, around: float = 0.0) -> Tensor:
        return around + torch.randn(shape, generator=g) / 4

    return {
        "w1": matrix(2 * size, size),
        "level_bias": vector(levels - 1, 2 * size),
        "w2": matrix(size, 2 * size),
        "b2": vector(size),
        **layer_weights(size, g),
        "coarse_w1": matrix(2 * size, size),
        "coarse_b1": vector(2 * size),
        "coarse_w2": matrix(size, 2 * size),
        "coarse_b2": vector(size),
        "coarse_ln_w": vector(size, around=1.0),
        "coarse_ln_b": vector(size),
        "router_w1": matrix(size, size),
        "router_level_bias": vector(levels, size),
        "router_w2": matrix(1, size)[0],
        "router_b2": vector(1),
        "gate_w": matrix(size, size),
        "gate_b": vector(size),
    }


def build(
    batch: Batch,
    *,
    last_only: bool = True,
    noise: str = "none",
    dropout: tuple[float, float] = (0.0, 0.0),
    content: bool = True,
    contrast: bool = False,
    bounded: bool = False,
    residual: bool = False,
    heads: int = 2,
) -> OpCase:
    """A case; ``noise`` is "none", "seed" or "explicit", ``dropout`` attention's and hidden."""
    g = batch.generator()
    size, levels, tokens = batch.size, batch.levels, batch.num_tokens
    computed, reached, real = batch.computed(), batch.reached(), batch.real()
    rows = reached if last_only else computed
    weights = parameters(size, levels, g)
    explicit = torch.randn(levels - 1, tokens, size, generator=g)
    learnt = [name for name in weights if content or name != "router_w1"]
    seed = rng.as_seed(batch.seed + 3)
    return OpCase(
        function=trajectory,
        arguments={
            "embeddings": torch.randn(tokens, size, generator=g),
            "offsets": batch.offsets(),
            "depth": batch.depth(),
            "level_mass": torch.rand(rows.shape, generator=g) + 0.5,
            "alpha_bar": torch.linspace(1.0, 0.3, levels),
            **weights,
            "noise_seed": seed if noise == "seed" else None,
            "noise": explicit if noise == "explicit" else None,
            "seed": seed if any(dropout) else None,
        },
        differentiable=("embeddings", "level_mass", *learnt),
        options={
            "heads": heads,
            "eps": 1e-5,
            "attention_dropout": dropout[0],
            "hidden_dropout": dropout[1],
            "bounded": bounded,
            "residual": residual,
            "content": content,
            "contrast": contrast,
            "last_only": last_only,
            "max_length": batch.max_length,
        },
        readable={"embeddings": real, "noise": computed[1:], "level_mass": rows},
        written=(None, real, None, None, None, reached if contrast else None),
        axes={
            "embeddings": ("token", 0),
            "depth": ("sequence", 0),
            "noise": ("token", 1),
            "level_mass": ("sequence" if last_only else "token", 1),
        },
        output_axes=(
            *(("sequence" if last_only else "token", dim) for dim in (0,)),
            ("token", 0),
            *(("sequence" if last_only else "token", dim) for dim in (1, 0, 0)),
            ("sequence", 1) if contrast else None,
        ),
        fixed=("alpha_bar",),
        scale=4 * size**0.5,
    )


VARIANTS = {
    "last": build,
    "training": partial(
        build, noise="seed", dropout=(0.5, 0.2), contrast=True
    ),
    "all": partial(build, last_only=False, noise="explicit", contrast=True),
    "level-only": partial(build, last_only=False, dropout=(0.2, 0.0), content=False),
    "bounded": partial(build, bounded=True, residual=True),
}


class TestFusedTrajectory(OpSuite):
    op = "fused_trajectory"
    variants: ClassVar = VARIANTS
    noisy = ("training", "level-only")
    fullest = ("training",)
    sizes = (20, 64)
    many = 200

    @pytest.fixture(autouse=True)
    def _many_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Parts of few tokens, so that every test sees several.

        Whole on a GPU, as its own parts are, they begin where 16 bytes do.
        """
        monkeypatch.setitem(PART_TOKENS, "cpu", 8 if collecting() else 7)
        monkeypatch.setitem(PART_TOKENS, "cuda", 8)


@pytest.mark.parametrize("build", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("length", [1, 11, 12, 1000])
@pytest.mark.parametrize("name", ["packed", pytest.param("cpp", marks=needs_cpp)])
def test_parts_change_nothing_but_rounding(
    build: Any, length: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not the noise and the dropout, which follow a token's place in the batch."""
    case = build(random_batch(9, max_depth=3, capacity=15, seed=4))
    monkeypatch.setitem(PART_TOKENS, "cpu", 1 << 20)
    dtype = torch.float64 if name == "packed" else torch.float32
    tight = {"rtol": 1e-9, "atol": 1e-11} if name == "packed" else {"rtol": 1e-4, "atol": 1e-5}
    whole = evaluate(case, name, dtype)
    monkeypatch.setitem(PART_TOKENS, "cpu", length)
    parts = evaluate(case, name, dtype)
    for output, value in whole.named().items():
        torch.testing.assert_close(parts.named()[output], value, **tight, msg=output)


SMALL: dict[str, Any] = {
    "num_items": 40, "hidden_size": 16, "num_layers": 1, "max_length": 8, "max_depth": 3,
}  # fmt: skip
VALUES = torch.tensor([3, 4, 9, 1, 2, 7, 5, 39, 40, 0, 0])
OFFSETS = torch.tensor([0, 2, 3, 9])


def loss_and_gradients(supervision: str, **options: Any) -> dict[str, Tensor]:
    """Of one training step in float64."""
    model = ADARec(**SMALL, supervision=supervision, **options).double()
    targets = VALUES.flip(0) if supervision == "all" else torch.tensor([5, 6, 5])
    loss = model.loss(TrainingBatch(VALUES, OFFSETS, targets, OFFSETS))
    loss.total.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "gate": loss.gate, "total": loss.total.detach()}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("supervision", ["prefix", "all"])
@pytest.mark.parametrize("depth_gradient", ["truncated", "full"])
@pytest.mark.parametrize("change", [{}, {"router": "level"}, {"lambda_cont": 0.0}], ids=str)
def test_a_model_trains_as_with_the_separate_ops(
    supervision: str, depth_gradient: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PART_TOKENS, "cpu", 3)
    options = {"backend": "packed", "depth_gradient": depth_gradient, **change}
    expected = loss_and_gradients(supervision, **options)
    found = loss_and_gradients(supervision, **options, fused_trajectory=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-12, msg=name)


@needs_cpp
@pytest.mark.parametrize(
    ("offsets", "message"),
    [([0, 3, 2, 5], "sequence 1 has length -1"), ([1, 2, 3, 4], "must begin at 0, got 1"),
     ([0, 1, 2, 10**6], "offsets end at 1000000, beyond the")],
)  # fmt: skip
def test_offsets_that_fit_no_batch_are_refused(offsets: list[int], message: str) -> None:
    case = build(random_batch(3, seed=1))
    case.arguments["offsets"] = torch.tensor(offsets)
    with pytest.raises(ValueError, match=message):
        evaluate(case, "cpp", torch.float32)


@pytest.mark.parametrize("change", [{}, {"residual": True}, {"evaluation_samples": 2}], ids=str)
def test_a_model_recommends_as_with_the_separate_ops(change: dict[str, Any]) -> None:
    request = (VALUES[:9], OFFSETS)
    found = []
    for fused in (False, True):
        model = ADARec(**SMALL, **change, fused_trajectory=fused).eval()
        with torch.no_grad():
            model.depth_controller.b_out += torch.tensor([0.0, 1.0, 3.0, 0.0])
            output = model(request, return_hierarchy=True, return_gates=True)
            user = model(request).user
        ranking = Recommender(model).recommend(request, k=5)
        levels = output.hierarchy.levels[: int(output.depth.min()) + 1]
        found.append((user, output.user, output.gates, levels, ranking.scores))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def test_what_cannot_be_fused_is_refused() -> None:
    for change in ({"diffusion": False}, {"moe": False}, {"coarse_expert": "transformer"}):
        with pytest.raises(ConfigError, match="fused_trajectory=True needs diffusion=True"):
            ADARec(**SMALL, **change, fused_trajectory=True)


def step_memory(folder: Path, fused: bool) -> int:
    """Bytes that forward and backward from E to h hold at most, by what torch says it allocates.

    Histories of 8 items, 4096 tokens, T = 8, D = 16.
    """
    batch = Batch((8,) * 512, (8,) * 512, size=16, max_depth=8, max_length=8)
    case = build(batch, noise="seed", dropout=(0.5, 0.5), contrast=True)
    if not fused:
        case = replace(case, function=by_separate_ops)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        evaluate(case, "packed", torch.float32)
    trace = folder / f"{fused}.json"
    profile.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = [e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]"]
    return max(held) - held[0]


def by_separate_ops(**arguments: Any) -> tuple[Tensor, ...]:
    """The same from the separate ops of a backend."""
    backend = arguments.pop("backend")
    given = [arguments[name] for name in TrajectoryInputs._fields]
    return tuple(separate(TrajectoryInputs(*given), backend))


def test_a_step_needs_less_than_half_the_memory(tmp_path: Path) -> None:
    fused, apart = step_memory(tmp_path, True), step_memory(tmp_path, False)
    # A part of 1024 tokens at a time, beside tensors and cotangents that the test holds itself.
    assert fused < apart / 2, (fused, apart)

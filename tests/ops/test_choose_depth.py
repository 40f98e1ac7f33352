"""`choose_depth`: a Gumbel-Softmax sample of the depth, and the mass of the levels (Eq. 3)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from helpers import Backend, Batch, OpCase, random_batch
from helpers_suite import OpSuite
from torch import Tensor

from adarec_fast import rng
from adarec_fast.ops import Depths, choose_depth
from adarec_fast.ops._library import check_shape

TEMPERATURE = 0.5


def clear_logits(batch: Batch, seed: Tensor | None) -> Tensor:
    """Logits of few bits, in which the depth's stands out by a quarter.

    Noise is not the same to the last place on every backend, so that where two perturbed logits are
    within rounding the depth may be either.
    """
    shape = (batch.num_sequences, batch.levels)
    logits = torch.randint(-32, 32, shape, generator=batch.generator()).double() / 16
    noise = 0.0 if seed is None else rng.gumbel(seed, *shape, torch.float64)
    best = (logits + noise).argmax(-1, keepdim=True)
    return logits.scatter_add(1, best, torch.full_like(best, 1, dtype=logits.dtype) / 4).float()


def spread(logits: Tensor, tokens: Tensor, **given: Any) -> Depths:
    """The op with a row for each of ``tokens``."""
    check_shape("tokens", tokens, None)
    return choose_depth(logits, num_tokens=tokens.shape[0], **given)


def build(
    batch: Batch, *, sampled: bool = True, by_token: bool = False, all_levels: bool = False
) -> OpCase:
    seed = rng.as_seed(batch.seed) if sampled else None
    arguments: dict[str, Tensor | None] = {"logits": clear_logits(batch, seed), "seed": seed}
    axes = {"logits": ("sequence", 0)}
    rows = "sequence"
    if by_token:
        arguments |= {"offsets": batch.offsets(), "tokens": torch.zeros(batch.num_tokens)}
        axes["tokens"] = ("token", 0)
        rows = "token"
    return OpCase(
        function=spread if by_token else choose_depth,
        arguments=arguments,
        differentiable=("logits",) if sampled else (),
        options={"temperature": TEMPERATURE, "all_levels": all_levels},
        readable={},
        written=(None,) * 4,
        axes=axes,
        output_axes=(("sequence", 0), ("sequence", 0), (rows, 0), (rows, 1)),
    )


class TestChooseDepth(OpSuite):
    op = "choose_depth"
    variants: ClassVar = {
        "sampled": build,
        "sampled-tokens": partial(build, by_token=True),
        "sampled-all-levels": partial(build, all_levels=True),
        "sampled-tokens-all-levels": partial(build, by_token=True, all_levels=True),
        "argmax": partial(build, sampled=False),
        "argmax-tokens": partial(build, sampled=False, by_token=True),
    }
    # The noise follows the place of a sequence in the batch.
    noisy = tuple(name for name in variants if name.startswith("sampled"))
    fullest = ("sampled", "sampled-tokens")
    sizes = (16,)
    free = ("logits", "tokens")
    # Straight through: what is differentiated is not what is returned.
    test_gradcheck = None

    @pytest.mark.parametrize("by_token", [False, True])
    def test_gradient_is_gumbel_softmaxs(self, backend: Backend, by_token: bool) -> None:
        batch = random_batch(40, max_depth=6, capacity=3)
        case = build(batch, by_token=by_token)
        for dtype in backend.dtypes:
            tensors = case.tensors(dtype, backend.device)
            logits = tensors["logits"]
            found = Depths(*case.call(tensors, backend.name))
            reached = torch.arange(7, device=logits.device)[:, None] <= found.row_depth
            assert torch.equal(found.mass, reached.to(dtype))
            wide = case.arguments["logits"].double().requires_grad_()
            noise = rng.gumbel(case.arguments["seed"], *wide.shape, torch.float64)
            soft = torch.softmax((wide + noise) / TEMPERATURE, -1)
            tails = torch.stack([soft[:, k:].sum(-1) for k in range(7)])
            if by_token:
                tails = tails.repeat_interleave(torch.tensor(batch.lengths), 1)
            weight = torch.randn(found.mass.shape, dtype=torch.float64)
            wanted = torch.autograd.grad((tails * weight[:, : tails.shape[1]]).sum(), wide)[0]
            weight = weight.to(logits)
            if by_token:
                weight[:, tails.shape[1] :] = float("nan")  # capacity
            got = torch.autograd.grad(found.mass, logits, weight)[0]
            rounding = 1e-5 if dtype == torch.float32 else 1e-12
            torch.testing.assert_close(got.cpu().double(), wanted, rtol=rounding, atol=rounding)

    @pytest.mark.parametrize("choices", [1, 2, 9, 17, 40])
    def test_depths_are_torchs_where_the_margin_is_clear(
        self, rival: Backend, choices: int
    ) -> None:
        generator = torch.Generator().manual_seed(choices)
        logits = torch.randn(600, choices, generator=generator)
        for seed in (None, rng.as_seed(3), torch.tensor([-7, 1000, 2**33])):
            noise = 0.0 if seed is None else rng.gumbel(seed, *logits.shape, torch.float64)
            perturbed = logits.double() + noise
            best = perturbed.topk(min(2, choices), -1).values
            clear = (best[:, 0] - best[:, -1] > 1e-5) | (choices == 1)
            assert clear.float().mean() > 0.99
            found = choose_depth(
                logits.to(rival.device), seed=None if seed is None else seed.to(rival.device),
                temperature=TEMPERATURE, backend=rival.name,
            )
            wanted = perturbed.argmax(-1)
            assert torch.equal(found.depth.cpu()[clear], wanted[clear])

    def test_samples_follow_the_softmax(self, rival: Backend) -> None:
        logits = torch.tensor([1.0, 0.0, -1.0, 0.5], device=rival.device).expand(20_000, 4)
        found = choose_depth(
            logits, seed=rng.as_seed(1, rival.device), temperature=TEMPERATURE, backend=rival.name
        )
        share = torch.bincount(found.depth.cpu(), minlength=4) / 20_000
        torch.testing.assert_close(share, torch.softmax(logits[0].cpu(), 0), rtol=0, atol=0.015)

    def test_the_first_of_equals_is_taken(self, rival: Backend) -> None:
        nan, inf = float("nan"), float("inf")
        logits = torch.tensor([
            [1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [-inf, -inf, -inf], [nan, nan, nan], [1.0, inf, inf],
        ], device=rival.device)
        found = choose_depth(logits, seed=None, temperature=1.0, backend=rival.name)
        assert found.depth.tolist() == [1, 0, 0, 0, 1]


def test_depth_noise_of_a_share_is_that_of_the_whole_batch() -> None:
    logits = torch.randn(6, 5)
    whole = choose_depth(logits, seed=rng.as_seed(5), temperature=1.0)
    place = rng.at_place(rng.as_seed(5), torch.tensor([17, 2]))
    share = choose_depth(logits[2:], seed=place, temperature=1.0)
    assert torch.equal(share.depth, whole.depth[2:])


def test_wrong_arguments_are_named() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be greater than 0"):
        choose_depth(logits, seed=None, temperature=0.0)
    with pytest.raises(ValueError, match="num_tokens=None belongs to offsets"):
        choose_depth(logits, seed=None, temperature=1.0, offsets=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="num_tokens=4 belongs to offsets"):
        choose_depth(logits, seed=None, temperature=1.0, num_tokens=4)

"""The token-wise C++ ops: the same bits for any number of threads, errors instead of crashes."""

from __future__ import annotations

from functools import partial

import pytest
import test_dropout
import test_hda_trajectory
import test_length_bias
import test_level_pool
import test_local_path
import test_mlp_expert
import test_objective
import torch
from helpers import Batch, evaluate, random_batch
from helpers_suite import OpSuite
from hypothesis import given
from hypothesis import strategies as st

from adarec_fast.ops import extension

pytestmark = pytest.mark.skipif(
    extension.unavailable("cpp") is not None, reason="the C++ extension is not there"
)

SUITES = [
    suite
    for module in (
        test_dropout, test_hda_trajectory, test_length_bias, test_level_pool, test_local_path,
        test_mlp_expert, test_objective,
    )
    for suite in vars(module).values()
    if isinstance(suite, type) and issubclass(suite, OpSuite) and suite is not OpSuite
]
CASES = [
    pytest.param(build, id=f"{suite.op}-{name}")
    for suite in SUITES
    for name, build in suite.variants.items()
]


@pytest.fixture
def _one_thread_after() -> object:
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_one_thread_after")
@pytest.mark.parametrize("build", CASES)
def test_thread_count_does_not_change_a_bit(build: partial) -> None:
    # Enough tokens for several tiles and several groups of weight gradients.
    case = build(random_batch(250, size=20, capacity=2))
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(evaluate(case, "cpp", torch.float32, "cpu").named())
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


BATCH = Batch(lengths=(3, 1, 4), depths=(2, 0, 1), size=8, max_depth=2, capacity=2)
JAGGED = [
    pytest.param(partial(test_hda_trajectory.build, noise="seed"), id="hda_trajectory"),
    pytest.param(next(iter(test_mlp_expert.TestMLPExpert.variants.values())), id="mlp_expert"),
    pytest.param(next(iter(test_level_pool.TestLevelPool.variants.values())), id="level_pool"),
]
WITHOUT_DEPTH = [pytest.param(test_local_path.build, id="local_path")]
WILD = st.one_of(
    st.integers(-3, 12), st.sampled_from([-(2**63), 2**63 - 1, 2**31, -(2**31), 2**62])
)


def run(case: object, **changed: torch.Tensor) -> None:
    tensors = {**case.tensors(torch.float32, "cpu"), **changed}
    case.call(tensors, "cpp")


@pytest.mark.parametrize("build", [*JAGGED, *WITHOUT_DEPTH])
@given(offsets=st.lists(WILD, min_size=4, max_size=4))
def test_any_offsets_give_a_result_or_a_value_error(build: partial, offsets: list[int]) -> None:
    tokens = BATCH.num_tokens
    valid = offsets[0] == 0 and offsets == sorted(offsets) and offsets[-1] <= tokens
    wrong = torch.tensor(offsets)
    if valid:
        run(build(BATCH), offsets=wrong)
    else:
        with pytest.raises(ValueError, match="offsets"):
            run(build(BATCH), offsets=wrong)


@pytest.mark.parametrize("build", JAGGED)
@given(depth=st.lists(WILD, min_size=3, max_size=3))
def test_any_depth_gives_a_result_or_a_value_error(build: partial, depth: list[int]) -> None:
    levels = BATCH.levels
    wrong = torch.tensor(depth)
    if all(0 <= d < levels for d in depth):
        run(build(BATCH), depth=wrong)
    else:
        with pytest.raises(ValueError, match=r"depth\[\d\]="):
            run(build(BATCH), depth=wrong)


@pytest.mark.parametrize("build", JAGGED)
@pytest.mark.parametrize("name", ["offsets", "depth"])
def test_wrong_dtype_and_shape_of_indices(build: partial, name: str) -> None:
    case = build(BATCH)
    right = case.tensors(torch.float32, "cpu")[name]
    for wrong in (right.int(), right.float(), right[:-1], right[None]):
        with pytest.raises(ValueError, match=r"offsets|depth"):
            run(case, **{name: wrong})


def test_other_dtypes_are_refused_by_name() -> None:
    offsets = torch.tensor([0, 2])
    with pytest.raises(ValueError, match=r"x has dtype .*float32 or bfloat16"):
        torch.ops.adarec_fast_cpp.level_pool_fwd(
            torch.ones(1, 2, 4, dtype=torch.float64), offsets, None, False
        )


@pytest.mark.parametrize("build", [*JAGGED, *WITHOUT_DEPTH])
def test_tensors_that_are_not_contiguous(build: partial) -> None:
    case = build(BATCH)
    tensors = case.tensors(torch.float32, "cpu")
    strided = {
        name: torch.stack([value.detach(), value.detach()], -1)[..., 0]
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor)
    }
    plain, other = case.call(tensors, "cpp"), case.call({**tensors, **strided}, "cpp")
    for one, two, mask in zip(plain, other, case.written, strict=True):
        kept = torch.ones_like(one, dtype=torch.bool) if mask is None else mask
        assert torch.equal(one[kept], two[kept])

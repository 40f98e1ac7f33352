"""What the C++ ops of a step's end and of its small layers must show beside their suites."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers_accuracy import assert_close_to_float64
from torch import Tensor

from adarec_fast import ADARec, TrainConfig
from adarec_fast.data import Batch
from adarec_fast.ops import adam, extension, gradient_norm, length_bias, objective
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.statistics import EpochStatistics

pytestmark = pytest.mark.skipif(
    extension.unavailable("cpp") is not None, reason="the C++ extension is not there"
)


@pytest.fixture(autouse=True)
def _one_thread_after() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


# Nothing, part of a vector, one block and one element more, several blocks.
SIZES = [0, 1, 7, 16384, 16385, 100_003, *range(1, 40)]
CPU = torch.device("cpu")


def _tensors(seed: int, scale: float = 1.0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(size, generator=g) for size in SIZES]


def _done() -> Tensor:
    return torch.zeros((), dtype=torch.int32)


def _step(
    parameters: list[Tensor], moments: list[list[Tensor]], steps: list[Tensor],
    gradients: list[Tensor], **options: Any,
) -> Tensor:  # fmt: skip
    norm = gradient_norm(gradients, _done(), backend="cpp")
    adam(
        parameters, gradients, *moments, steps, _done(), norm, torch.zeros(()),
        lr=1e-3, betas=(0.9, 0.999), eps=1e-8, **options, backend="cpp",
    )  # fmt: skip
    return norm


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_thread_count_does_not_change_a_bit_of_a_step(decay: float) -> None:
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        parameters = _tensors(0)
        moments = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
        steps = [torch.zeros(()) for _ in parameters]
        norms = [
            _step(parameters, moments, steps, _tensors(n), weight_decay=decay, max_norm=5.0)
            for n in range(1, 4)
        ]
        results.append([*norms, *parameters, *moments[0], *moments[1], *steps])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("max_norm", [0.0, 5.0])
def test_steps_err_no_more_than_torchs(decay: float, max_norm: float) -> None:
    """Against torch's Adam and clipping in float64; torch's own in float32 is the measure."""
    ours = _tensors(0)
    moments = [[torch.zeros_like(p) for p in ours] for _ in range(2)]
    steps = [torch.zeros(()) for _ in ours]
    theirs, optimizers = {}, {}
    for dtype in (torch.float32, torch.float64):
        theirs[dtype] = [p.to(dtype, copy=True).requires_grad_() for p in _tensors(0)]
        optimizers[dtype] = torch.optim.Adam(
            theirs[dtype], 1e-3, weight_decay=decay, fused=dtype == torch.float32
        )
    for number in range(1, 7):
        gradients = _tensors(number, scale=10.0 ** (number % 3 - 1))
        for dtype, parameters in theirs.items():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.to(dtype, copy=True)
            if max_norm:
                torch.nn.utils.clip_grads_with_norm_(
                    parameters, max_norm,
                    torch.nn.utils.get_total_norm([p.grad for p in parameters]),
                )  # fmt: skip
            optimizers[dtype].step()
        _step(ours, moments, steps, gradients, weight_decay=decay, max_norm=max_norm)
    single, double = theirs.values()
    for place, (plain, gold) in enumerate(zip(single, double, strict=True)):
        states = [optimizers[p.dtype].state[p] for p in (plain, gold)]
        assert_close_to_float64(ours[place], plain, gold, "parameter")
        for moment, key in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
            assert_close_to_float64(moment[place], states[0][key], states[1][key], key)
        assert float(steps[place]) == float(states[1]["step"])


def test_the_norm_errs_no_more_than_torchs() -> None:
    gradients = _tensors(3)
    double = torch.nn.utils.get_total_norm([g.double() for g in gradients])
    norm = gradient_norm(gradients, _done(), backend="cpp")
    assert_close_to_float64(norm, torch.nn.utils.get_total_norm(gradients), double, "norm")


def test_an_update_is_seen_by_who_asks_for_versions() -> None:
    parameter = torch.ones(3)
    before = parameter._version
    moments = [[torch.zeros(3)], [torch.zeros(3)]]
    _step([parameter], moments, [torch.zeros(())], [torch.ones(3)], weight_decay=0.0, max_norm=0.0)
    assert parameter._version > before


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.ones(2, 3).double(), r"parameters\[0\] is Double on cpu"),
        (1, torch.ones(2, 3).bfloat16(), r"gradients\[0\] is BFloat16 on cpu"),
        (2, torch.ones(3, 2).T, r"firsts\[0\] has shape \[2, 3\] and strides \[1, 2\]"),
        (3, torch.ones(3, 2), r"seconds\[0\] has shape \[3, 2\] .* it must be \[2, 3\]"),
        (4, torch.ones(1), r"steps\[0\] has shape \[1\] .* it must be \[\]"),
    ],
)
def test_what_a_step_cannot_take_is_named(place: int, wrong: Tensor, message: str) -> None:
    lists = [[torch.ones(2, 3)] for _ in range(4)] + [[torch.zeros(())]]
    lists[place] = [wrong]
    zero = torch.zeros(())
    with pytest.raises(ValueError, match=message):
        torch.ops.adarec_fast_cpp.adam_fwd(*lists, _done(), zero, zero, zero, 0.9, 0.99, 0.1, 0, 0)
    lists[place] = []
    with pytest.raises(ValueError, match=r"are [01] for [01] parameters"):
        torch.ops.adarec_fast_cpp.adam_fwd(*lists, _done(), zero, zero, zero, 0.9, 0.99, 0.1, 0, 0)


BATCH = Batch(
    torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 2, 5]), torch.tensor([6, 7]),
    torch.tensor([0, 1]),
)  # fmt: skip


def _stepper(kernels: bool) -> tuple[Stepper, EpochStatistics]:
    torch.manual_seed(0)
    model = ADARec(num_items=9, hidden_size=16, max_depth=3, dropout=0.0).train()
    stepper = Stepper(model, TrainConfig(weight_decay=0.01, gradient_clip=0.5), CPU)
    assert stepper._kernels
    stepper._kernels = kernels
    return stepper, EpochStatistics(model.diagnostics(), CPU)


def _state(stepper: Stepper) -> dict[str, Tensor]:
    return {**stepper.model_state(), **stepper.state_tensors()}


def test_training_goes_on_from_what_torchs_adam_has_left() -> None:
    """A checkpoint of a run without the kernels is one of a run with them, and the other way."""
    whole = {}
    for first, then in ((True, True), (False, True), (True, False)):
        stepper, statistics = _stepper(first)
        for number in range(1, 4):
            stepper.step(BATCH, number, statistics)
        weights = {name: t.clone() for name, t in stepper.model_state().items()}
        saved = {name: t.clone() for name, t in stepper.state_tensors().items()}
        stepper, statistics = _stepper(then)
        stepper.model.load_state_dict(weights)
        stepper.load_state_tensors(saved, "here")
        for number in range(4, 7):
            stepper.step(BATCH, number, statistics)
        whole[first, then] = _state(stepper)
    wanted = whole.pop((True, True))
    for other in whole.values():
        assert other.keys() == wanted.keys()
        for name, tensor in wanted.items():
            # A key's bias is the same for all keys, which a softmax does not see: Adam takes
            # whole steps by what its gradient, 0, is rounded to.
            if not name.startswith("adam/") and name.endswith("qkv.bias"):
                continue
            torch.testing.assert_close(tensor, other[name], rtol=2e-4, atol=2e-6, msg=name)
            assert not name.endswith("/step") or float(tensor) == 6.0


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    stepper, statistics = _stepper(True)
    stepper.step(BATCH, 1, statistics)
    before = {name: t.clone() for name, t in _state(stepper).items() if "seed" not in name}
    weight = stepper._parameters[0]
    with torch.no_grad():
        kept = weight[1].clone()
        weight[1] = float("nan")
    stepper.step(BATCH, 2, statistics)
    with torch.no_grad():
        weight[1] = kept
    stepper.step(BATCH, 3, statistics)  # as every step behind it
    after = _state(stepper)
    assert all(torch.equal(t, after[name]) for name, t in before.items())
    assert statistics.diverged() is not None


def test_lengths_at_their_bounds() -> None:
    """No sequence, and lengths that no table holds."""
    g = torch.Generator().manual_seed(0)
    shapes = [(8, 1), (8,), (8, 8), (8,), (12, 8), (12,)]
    weights = [torch.randn(shape, generator=g) for shape in shapes]
    for offsets in ([0], [0, 0, 3, 2**62, 2**62 + 3]):
        ours, plain = (
            length_bias(torch.tensor(offsets), *weights, max_length=7, backend=backend)
            for backend in ("cpp", "packed")
        )
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    far = objective(
        torch.ones(()), None, None, torch.tensor([0, 2**62]), torch.tensor([3]), None, None,
        torch.tensor([3]), levels=4, size=2**40, weights=(1.0, 1.0, 1.0), backend="cpp",
    )  # fmt: skip
    assert float(far.total) == 1.0

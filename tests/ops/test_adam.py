"""`gradient_norm` and `adam`: what torch's functions do, for all tensors in one launch each."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import Backend, available, backends_for
from torch import Tensor

from adarec_fast.ops import adam, gradient_norm

# One element, a step of a program and one more, several programs; more than a launch takes.
SHAPES = [(1,), (3, 5), (2048,), (2049,), (8193,), (70, 300), *[(n + 1,) for n in range(80)]]


@pytest.fixture(params=backends_for("adam"))
def backend(request: pytest.FixtureRequest) -> Backend:
    return available(request.param)


def _tensors(seed: int, device: str, scale: float = 1.0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(shape, generator=g)).to(device) for shape in SHAPES]


def _done(device: str) -> Tensor:
    return torch.zeros((), dtype=torch.int32, device=device)


def test_the_norm_of_all_gradients(backend: Backend) -> None:
    gradients, done = _tensors(1, backend.device), _done(backend.device)
    for _ in range(2):
        norm = gradient_norm(gradients, done, backend=backend.name)
        wanted = torch.cat([g.double().flatten() for g in gradients]).norm()
        torch.testing.assert_close(norm.double(), wanted, rtol=1e-6, atol=0)
        assert int(done) == 0
    again = gradient_norm(gradients, done, backend=backend.name)
    assert torch.equal(norm, again)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite(backend: Backend, value: float) -> None:
    gradients = _tensors(1, backend.device)
    gradients[5][17, 3] = value
    norm = gradient_norm(gradients, _done(backend.device), backend=backend.name)
    assert not norm.isfinite()


OPTIONS: list[dict[str, Any]] = [
    {"max_norm": 5.0, "weight_decay": 0.0}, {"max_norm": 0.0, "weight_decay": 0.1},
    {"max_norm": 1e9, "weight_decay": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "lr": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_are_torchs(backend: Backend, options: dict[str, Any]) -> None:
    options = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, **options}
    device, done = backend.device, _done(backend.device)
    ours = _tensors(0, device)
    firsts, seconds = ([torch.zeros_like(p) for p in ours] for _ in range(2))
    steps = [torch.zeros((), device=device) for _ in ours]
    theirs = [p.double().requires_grad_() for p in ours]
    plain = torch.optim.Adam(theirs, options["lr"], options["betas"], options["eps"],
                             options["weight_decay"])
    for number in range(1, 5):
        gradients = _tensors(10 + number, device, scale=10.0 ** (number - 2))
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.double()
        norm = torch.nn.utils.get_total_norm([p.grad for p in theirs])
        if options["max_norm"]:
            torch.nn.utils.clip_grads_with_norm_(theirs, options["max_norm"], norm)
        plain.step()
        adam(ours, gradients, firsts, seconds, steps, done, norm.float(),
             torch.zeros((), device=device), **options, backend=backend.name)  # fmt: skip
        assert int(done) == 0
    for place, (parameter, wanted) in enumerate(zip(ours, theirs, strict=True)):
        state = plain.state[wanted]
        for tensor, gold in (
            (parameter, wanted.detach()), (firsts[place], state["exp_avg"]),
            (seconds[place], state["exp_avg_sq"]),
        ):  # fmt: skip
            # Moments of both signs may cancel, and then move a parameter by what is left.
            allowed = 1e-6 * max(float(gold.abs().max()), options["lr"])
            torch.testing.assert_close(tensor.double(), gold, rtol=1e-5, atol=allowed)
        assert float(steps[place]) == 4.0


def test_a_rate_that_is_a_tensor_is_read_at_each_step(backend: Backend) -> None:
    device, done = backend.device, _done(backend.device)
    rate, scalar = torch.zeros((), device=device), torch.zeros((), device=device)
    states = []
    for given in (rate, None):
        weights, firsts, seconds = ([torch.ones(3, device=device)] for _ in range(3))
        steps = [torch.zeros((), device=device)]
        for value in (0.25, 0.5):
            adam(weights, firsts, firsts, seconds, steps, done, scalar, scalar,
                 lr=value if given is None else given.fill_(value), betas=(0.9, 0.99), eps=1e-8,
                 weight_decay=0.0, max_norm=0.0, backend=backend.name)  # fmt: skip
        states.append(weights[0])
    assert torch.equal(*states)
    assert float(states[0][0]) < 0.5


def test_nothing_changes_once_a_step_was_not_finite(backend: Backend) -> None:
    device, done = backend.device, _done(backend.device)
    given = [_tensors(n, device) for n in range(2)] + [
        [t.square() for t in _tensors(n, device)] for n in (2, 3)
    ]
    parameters, gradients, firsts, seconds = given
    steps = [torch.tensor(3.0, device=device) for _ in parameters]
    gradients[0][0] = math.nan
    before = [t.clone() for tensors in (parameters, firsts, seconds, steps) for t in tensors]
    adam(
        parameters, gradients, firsts, seconds, steps, done,
        torch.tensor(math.nan, device=device), torch.ones((), device=device), lr=0.1,
        betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, max_norm=5.0, backend=backend.name,
    )  # fmt: skip
    after = [t for tensors in (parameters, firsts, seconds, steps) for t in tensors]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert int(done) == 0


def test_nothing_to_do(backend: Backend) -> None:
    done = _done(backend.device)
    assert float(gradient_norm([], done, backend=backend.name)) == 0.0
    scalar = torch.zeros((), device=backend.device)
    adam([], [], [], [], [], done, scalar, scalar, lr=0.1, betas=(0.9, 0.99), eps=1e-8,
         weight_decay=0.0, max_norm=0.0, backend=backend.name)  # fmt: skip


def test_opcheck(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("it is inlined")
    lists = [[torch.ones(3, device=backend.device), torch.ones(2, 2, device=backend.device)]
             for _ in range(4)]
    scalar, done = torch.ones((), device=backend.device), _done(backend.device)
    steps, found = [scalar.clone(), scalar.clone()], torch.zeros_like(scalar)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.adarec_fast.gradient_norm_fwd.default, (lists[0], done, backend.name),
        test_utils=utils,
    )
    torch.library.opcheck(
        torch.ops.adarec_fast.adam_fwd.default,
        (*lists, steps, done, scalar, found, scalar, 0.9, 0.999, 1e-8, 0.0, 5.0, backend.name),
        test_utils=utils,
    )


def test_errors_name_the_argument() -> None:
    ones, scalar = [torch.ones(2, 3)], torch.zeros(())
    options: dict[str, Any] = {
        "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "max_norm": 0.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"done has dtype torch\.float32"):
        gradient_norm(ones, torch.zeros(()))
    done = _done("cpu")
    with pytest.raises(ValueError, match="firsts are 0 for 1 parameters"):
        adam(ones, ones, [], ones, [scalar], done, scalar, scalar, **options)
    with pytest.raises(ValueError, match=r"lr has shape \[2\]; it must be \[\]"):
        adam(ones, ones, ones, ones, [scalar], done, scalar, scalar,
             **{**options, "lr": torch.ones(2)})  # fmt: skip
    with pytest.raises(ValueError, match=r"steps\[0\] has shape \[2, 3\]"):
        adam(ones, ones, ones, ones, ones, done, scalar, scalar, **options)
    with pytest.raises(ValueError, match=r"gradients\[0\] has shape \[2, 3\] and strides \[1, 2\]"):
        adam(ones, [torch.ones(3, 2).T], ones, ones, [scalar], done, scalar, scalar, **options)

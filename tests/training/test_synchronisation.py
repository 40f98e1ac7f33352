"""A training step never waits for the device, from gathering its batch to Adam's update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import gpu_device
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from adarec_fast import ADARec, TrainConfig, synthetic
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.models import registry
from adarec_fast.ops import linear_cross_entropy, synchronising
from adarec_fast.ops._library import collecting, implementation
from adarec_fast.training import train
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.statistics import EpochStatistics

DATA = synthetic(num_users=40, num_items=60, num_themes=3, subthemes_per_theme=2, seed=2)
SPLIT = Split(DATA)
MODEL: dict[str, Any] = {
    "num_items": 60, "hidden_size": 16, "num_layers": 1, "max_depth": 2, "max_length": 10,
}  # fmt: skip
_READS, _SHAPES = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
# In Python, above the dispatcher. On a CPU these leave no other trace.
_METHODS: dict[Any, str] = {
    getattr(Tensor, name): name
    for name in ("tolist", "numpy", "__array__", "__dlpack__", "cpu", "__bool__", "__int__",
                 "__float__", "__index__", "__contains__")
}  # fmt: skip
_UPLOADS = {torch.tensor: "torch.tensor", torch.as_tensor: "torch.as_tensor",
            torch.from_numpy: "torch.from_numpy"}


class HostRead(AssertionError):
    """Something that would make the host wait for a GPU."""


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


class _BelowAutograd(TorchDispatchMode):
    """Fails on ATen ops that read a tensor on the host or whose shape depends on its values.

    An op of this package is one call here: what runs inside it differs with the device.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket._qualified_op_name
        if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
            bad = any(map(_is_mask, args[1]))
        elif name == "aten::repeat_interleave":
            bad = kwargs.get("output_size") is None
        else:
            bad = _READS in func.tags or _SHAPES in func.tags
        if bad:
            raise HostRead(f"{func} reads values on the host")
        return func(*args, **kwargs)


class _AboveAutograd(TorchFunctionMode):
    """Fails on Python's ways to copy a tensor to the host, or host data to the device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _METHODS or func in _UPLOADS:
            raise HostRead(f"{_METHODS.get(func) or _UPLOADS[func]} copies between host and device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Raises :class:`HostRead` where a GPU would be waited for."""
    with _AboveAutograd(), _BelowAutograd():
        yield


def _training(
    supervision: str, backend: str, device: str, **options: Any
) -> tuple[Stepper, EpochStatistics, Iterator[Any]]:
    model = ADARec(**MODEL, supervision=supervision, backend=backend, **options).to(device)
    stepper = Stepper(model.train(), TrainConfig(batch_size=8), torch.device(device))
    batches = TrainingBatches(
        *SPLIT.inputs("train"), supervision=supervision, batch_size=8, max_length=10, seed=0,
        device=device,
    )  # fmt: skip
    return stepper, EpochStatistics(model.diagnostics(), torch.device(device)), batches.epoch(0)


VARIANTS = [
    {},
    {"depth_gradient": "full", "coarse_expert": "transformer", "residual": True},
    {"depth": "fixed", "diffusion": False},
    {"moe": False, "label_smoothing": 0.1, "local_path": 3},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("supervision", ["prefix", "all"])
def test_a_step_reads_nothing_on_the_host(
    supervision: str, backend: str, options: dict[str, Any]
) -> None:
    stepper, statistics, batches = _training(supervision, backend, "cpu", **options)
    # The epoch's order and the sizes of its batches are made on the host, once.
    stepper.step(next(batches), 1, statistics)
    with no_host_reads():
        for number in (2, 3):
            stepper.step(next(batches), number, statistics)
    assert statistics.diverged() is None
    assert statistics.read()["loss"] > 0


@pytest.mark.parametrize("loss", ["full_ce", "original"])
@pytest.mark.parametrize("system", ["caser", "diffdiv"])
def test_other_systems_read_nothing_on_the_host(system: str, loss: str) -> None:
    shape = {n: v for n, v in MODEL.items() if n in ("num_items", "hidden_size", "max_length")}
    model = registry.build(registry.create_config({"model": system, "loss": loss, **shape}))
    model.begin_training(SPLIT)
    batches = TrainingBatches(
        *SPLIT.inputs("train"), supervision="prefix", batch_size=8, max_length=10, seed=0
    ).epoch(0)
    stepper = Stepper(model.train(), TrainConfig(batch_size=8), torch.device("cpu"))
    statistics = EpochStatistics(model.diagnostics(), torch.device("cpu"))
    stepper.step(next(batches), 1, statistics)
    with no_host_reads():
        stepper.step(next(batches), 2, statistics)
    assert statistics.diverged() is None


def test_the_cross_entropy_of_plain_pytorch_reads_nothing() -> None:
    """It runs on CUDA where no kernel does."""
    hidden, weight = torch.randn(7, 8), torch.randn(11, 8)
    targets = torch.tensor([3, 0, 10, 1, 0, 2, 2])
    hidden[targets == 0] = float("nan")
    with no_host_reads():
        packed = implementation("linear_cross_entropy", "packed").fwd(hidden, weight, targets, True)
    assert all(tensor.isfinite().all() for tensor in packed)
    torch.testing.assert_close(packed[0], linear_cross_entropy(
        hidden[targets > 0], weight, targets[targets > 0], backend="reference"
    ))  # fmt: skip


def test_losses_are_read_every_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, readings = 0, []
    step, diverged = Stepper.step, EpochStatistics.diverged

    def counted(self: Stepper, *arguments: Any) -> None:
        nonlocal steps
        with no_host_reads():
            step(self, *arguments)
        steps += 1

    def noted(self: EpochStatistics) -> Any:
        readings.append(steps)
        return diverged(self)

    monkeypatch.setattr(Stepper, "step", counted)
    monkeypatch.setattr(EpochStatistics, "diverged", noted)
    config = TrainConfig(batch_size=16, epochs=1, log_every=4, device="cpu")
    total = train(MODEL, config, DATA, tmp_path).steps
    assert total % 4
    assert readings == [*range(4, total, 4), total]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(), lambda x: float(x.sum()), lambda x: bool(x.any()),
        lambda x: x.tolist(), lambda x: x.numpy(), lambda x: x.cpu(), lambda x: x.nonzero(),
        lambda x: x[x > 0], lambda x: x.masked_select(x > 0), lambda x: x.unique(),
        lambda x: torch.where(x > 0), lambda x: torch.equal(x, x), lambda x: torch.tensor([1.0]),
        lambda x: torch.repeat_interleave(x.long()), lambda x: x.__setitem__(x > 0, x[1:2]),
        lambda x: torch.nn.functional.one_hot(x.long(), 3),
    ],
)  # fmt: skip
def test_the_guard_sees_reads(read: Callable[[Tensor], object]) -> None:
    with pytest.raises(HostRead), no_host_reads():
        read(torch.arange(3.0))


@pytest.mark.gpu
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("supervision", ["prefix", "all"])
def test_a_step_never_synchronises_a_gpu(supervision: str, options: dict[str, Any]) -> None:
    waiting = synchronising()
    if waiting:
        pytest.skip(f"no kernel of these ops runs on this GPU: {', '.join(waiting)}")
    stepper, statistics, batches = _training(supervision, "auto", gpu_device(), **options)
    stepper.step(next(batches), 1, statistics)
    if collecting():
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in (2, 3):
            stepper.step(next(batches), number, statistics)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert statistics.diverged() is None

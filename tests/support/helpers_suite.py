"""What an op must show before it is done: one set of tests that every op's suite inherits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from helpers import (
    GPU_SIZES,
    LARGE,
    SIZES,
    Backend,
    Batch,
    OpCase,
    batches,
    evaluate,
    masked,
    random_batch,
    sized,
    token_index,
)
from helpers_accuracy import check_against_float64
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from adarec_fast.ops import BackendError
from adarec_fast.ops._library import collecting

Build = Callable[[Batch], OpCase]


def compile_counter(backend: str) -> Any:
    """A backend of ``torch.compile`` that counts what it is given.

    Importing torch's compiler takes seconds, and most processes of the suite have no use for it.
    """
    from torch._dynamo.testing import CompileCounterWithBackend

    return CompileCounterWithBackend(backend)


# Every level of every sequence exists and there is no capacity: all that is allocated is written.
WHOLE = Batch(lengths=(3, 1, 2), depths=(2, 2, 2), size=8, max_length=4)
RAGGED = Batch(lengths=(3, 1, 5, 2), depths=(1, 0, 3, 2), size=8, max_depth=3, capacity=3)
EXTREMES = {
    "one-sequence": Batch((5,), (2,), capacity=1),
    "one-token": Batch((1,), (1,)),
    "length-1": Batch((1, 1, 1), (0, 1, 2)),
    "full-length": Batch((12, 12), (2, 1)),
    "depth-0": Batch((3, 2), (0, 0)),
    "depth-T": Batch((3, 2), (8, 8), max_depth=8),
    "empty": Batch((), ()),
    "empty-with-capacity": Batch((), (), capacity=4),
}


class Recorder(TorchDispatchMode):
    """Notes every call of this library's ops with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "adarec_fast":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def recorded(
    case: OpCase, backend: Backend, dtype: torch.dtype, autocast: bool = False
) -> list[tuple[Any, tuple[Any, ...]]]:
    """The library calls of one forward and backward pass."""
    with Recorder() as recorder:
        evaluate(case, backend.name, dtype, backend.device, autocast)
    detached = [
        (op, tuple(a.detach() if isinstance(a, Tensor) else a for a in args))
        for op, args in recorder.calls
    ]
    assert detached or backend.name == "reference", "the backend went around the op library"
    return detached


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def loss_of(outputs: tuple[Tensor, ...], written: tuple[Tensor | None, ...]) -> Tensor:
    """One number that depends on all that is defined; the gradient moves with the values."""
    parts = []
    for output, mask in zip(outputs, written, strict=True):
        if output.requires_grad:
            kept = output if mask is None else masked(output, mask, 0.0)
            parts.append((kept * torch.sin(kept.detach())).sum().double())
    return torch.stack(parts).sum()


def outputs_and_gradients(
    case: OpCase, backend: Backend, dtype: torch.dtype
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Like `evaluate`, with the gradient of :func:`loss_of`."""
    tensors = case.tensors(dtype, backend.device)
    outputs = case.call(tensors, backend.name)
    kept = [
        output.detach() if mask is None else masked(output.detach(), mask, 0.0)
        for output, mask in zip(outputs, case.written, strict=True)
    ]
    if not case.differentiable:
        return kept, {}
    inputs = [tensors[name] for name in case.differentiable]
    found = torch.autograd.grad(loss_of(outputs, case.written), inputs)
    gradients = dict(zip(case.differentiable, found, strict=True))
    for name, mask in case.readable.items():
        if name in gradients:
            gradients[name] = masked(gradients[name], mask, 0.0)
    return kept, gradients


def assert_same_sequences(
    case: OpCase, batch: Batch, order: list[int], backend: Backend, *, alone: bool
) -> None:
    """Sequences picked from a batch have the results that they have in the batch."""
    dtype = backend.dtypes[-1]
    index = {"token": token_index(batch, order), "sequence": torch.tensor(order).long()}
    outputs, gradients = outputs_and_gradients(case, backend, dtype)
    picked, picked_gradients = outputs_and_gradients(case.select(batch, order), backend, dtype)

    def compare(name: str, got: Tensor, want: Tensor, axis: tuple[str, int] | None) -> None:
        if axis is not None:
            want = want.index_select(axis[1], index[axis[0]].to(want.device))
        elif alone:
            return
        if not got.is_floating_point():
            assert torch.equal(got, want), name
            return
        # Other numbers of rows may be summed in another order, no more: far below what a value
        # of another sequence would bring in.
        rounding = {torch.float64: 1e-11, torch.float32: 2e-5}[dtype]
        allowed = rounding * max(case.scale, float(want.abs().max())) if want.numel() else 0.0
        torch.testing.assert_close(
            got, want, rtol=0, atol=allowed, msg=lambda text: f"{name}: {text}"
        )

    for number, axis in enumerate(case.output_axes):
        compare(f"output {number}", picked[number], outputs[number], axis)
    for name, gradient in gradients.items():
        compare(f"d {name}", picked_gradients[name], gradient, case.axes.get(name))


def metadata(result: Any) -> list[tuple[Any, ...]]:
    return [(tuple(t.shape), t.dtype, t.stride(), t.device.type) for t in as_tuple(result)]


@pytest.mark.usefixtures("poisoned")
class OpSuite:
    """Inherit, set ``op`` and ``variants``; the tests run on every backend of the op.

    ``backend`` stands for each of them in turn, ``rival`` for each but the reference, ``exact``
    for each that has float64; ``build`` for every variant, ``quiet`` for those whose noise does
    not follow the place of a token, and ``main`` for the first one.

    Attributes:
        op: the op's name.
        variants: builders of a case for a batch, by name; their options are the same for every
            batch.
        noisy: variants whose noise or dropout follows the place of a token in the batch.
        fullest: variants whose kernels do all that the op's do (dropout, gates, read-outs), by
            default the first one. On a GPU, where each variant has kernels of its own, only they
            run at large sizes and in bfloat16.
        sizes: the sizes D to try.
        free: arguments whose last axis may have any size.
        many: how many sequences a large batch has.
    """

    op: ClassVar[str]
    variants: ClassVar[dict[str, Build]]
    noisy: ClassVar[tuple[str, ...]] = ()
    fullest: ClassVar[tuple[str, ...]] = ()
    sizes: ClassVar[tuple[int, ...]] = SIZES
    free: ClassVar[tuple[str, ...]] = ()
    many: ClassVar[int] = 5000

    def spared(self, build: Build, backend: Backend) -> bool:
        """Whether a GPU's kernels of a variant are left to its fullest ones."""
        names = self.fullest or tuple(self.variants)[:1]
        return backend.on_gpu and build not in [self.variants[name] for name in names]

    @given(batch=batches())
    def test_matches_the_float64_reference(
        self, build: Build, backend: Backend, batch: Batch
    ) -> None:
        for dtype in backend.dtypes:
            check_against_float64(build(sized(batch, backend)), backend, dtype)

    @pytest.mark.parametrize("batch", EXTREMES.values(), ids=EXTREMES.keys())
    def test_extreme_batches(self, build: Build, backend: Backend, batch: Batch) -> None:
        check_against_float64(build(batch), backend, torch.float32)

    def test_sizes(self, build: Build, rival: Backend) -> None:
        sizes = GPU_SIZES if rival.on_gpu else self.sizes
        if self.spared(build, rival):
            sizes = tuple(size for size in sizes if size < LARGE)
        for size in sizes:
            batch = random_batch(5, size=size, seed=size, capacity=2)
            check_against_float64(build(batch), rival, torch.float32)

    def test_many_sequences(self, main: Build, rival: Backend) -> None:
        batch = random_batch(self.many, max_length=4, max_depth=1, capacity=5)
        check_against_float64(main(batch), rival, torch.float32)

    def test_bfloat16(self, build: Build, rival: Backend) -> None:
        if self.spared(build, rival):
            pytest.skip("on a GPU the fullest variants show it")
        batch = sized(random_batch(6, size=32, capacity=3), rival, 64)
        check_against_float64(build(batch), rival, torch.bfloat16)

    def test_autocast(self, main: Build, rival: Backend) -> None:
        batch = sized(random_batch(6, size=32, capacity=3), rival, 64)
        check_against_float64(main(batch), rival, torch.float32, autocast=True)

    def test_a_second_run_gives_the_same_bits(
        self, main: Build, rival: Backend, threads: int
    ) -> None:
        case = main(random_batch(60, size=20, capacity=2))
        first = evaluate(case, rival.name, torch.float32, rival.device)
        second = evaluate(case, rival.name, torch.float32, rival.device)
        for one, two in zip(first.outputs, second.outputs, strict=True):
            assert torch.equal(one, two)
        for name, one in first.gradients.items():
            assert torch.equal(one, second.gradients[name]), f"d {name}"

    @given(batch=batches(empty=False), seed=st.integers(0, 99))
    def test_permuted_sequences_give_permuted_results(
        self, quiet: Build, backend: Backend, batch: Batch, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(batch.num_sequences, generator=generator).tolist()
        batch = sized(batch, backend)
        assert_same_sequences(quiet(batch), batch, order, backend, alone=False)

    @given(batch=batches(empty=False), seed=st.integers(0, 99))
    def test_a_sequence_does_not_depend_on_its_batch(
        self, quiet: Build, backend: Backend, batch: Batch, seed: int
    ) -> None:
        chosen = seed % batch.num_sequences
        batch = sized(batch, backend)
        assert_same_sequences(quiet(batch), batch, [chosen], backend, alone=True)

    def test_gradcheck(self, build: Build, exact: Backend) -> None:
        batch = replace(RAGGED, lengths=(3, 1, 2), depths=(2, 0, 1), size=4, max_depth=2)
        case = build(batch)
        tensors = case.tensors(torch.float64, exact.device)
        fixed = {k: v for k, v in tensors.items() if k not in case.differentiable}

        def function(*values: Tensor) -> tuple[Tensor, ...]:
            given_here = dict(zip(case.differentiable, values, strict=True))
            for name, mask in case.readable.items():
                if name in given_here:
                    given_here[name] = masked(given_here[name], mask, float("nan"))
            outputs = case.call({**fixed, **given_here}, exact.name)
            return tuple(
                output if mask is None else masked(output, mask, 0.0)
                for output, mask in zip(outputs, case.written, strict=True)
                if output.requires_grad
            )

        inputs = []
        for name in case.differentiable:
            value = tensors[name].detach()
            if name in case.readable:
                value = masked(value, case.readable[name], 0.0)
            inputs.append(value.requires_grad_())
        # Element by element where there are few, along random directions where there are many.
        fast = sum(value.numel() for value in inputs) > 200
        assert torch.autograd.gradcheck(function, inputs, atol=1e-6, rtol=1e-4, fast_mode=fast)

    def test_argument_errors_name_the_argument(self, build: Build) -> None:
        case = build(RAGGED)
        names = "|".join(case.arguments)
        for name, value in case.arguments.items():
            if value is None:
                continue
            # Which of two sizes that disagree is the wrong one, nobody can tell.
            wrong = {names: torch.cat([value, value[..., :1]], -1)} if name not in self.free else {}
            wrong[name] = value[None]
            for blamed, replacement in wrong.items():
                with pytest.raises(ValueError, match=rf"^({blamed}) has shape|^heads="):
                    case.call({**case.arguments, name: replacement}, "reference")
            if not value.is_floating_point():
                with pytest.raises(ValueError, match=rf"^{name} has dtype torch.float32; it must"):
                    case.call({**case.arguments, name: value.float()}, "reference")

    def test_an_unknown_backend_is_named(self, build: Build) -> None:
        case = build(WHOLE)
        with pytest.raises(BackendError, match="backend='warp' is unknown; choose from auto"):
            case.call(case.arguments, "warp")

    def test_opcheck(self, main: Build, rival: Backend) -> None:
        for op, arguments in recorded(main(sized(WHOLE, rival)), rival, torch.float32):
            if not collecting():  # it would launch the same again, many times
                torch.library.opcheck(op, arguments)

    @pytest.mark.slow
    def test_opcheck_of_every_variant(self, build: Build, rival: Backend) -> None:
        self.test_opcheck(build, rival)

    @pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
    def test_fakes_agree_with_real_results(
        self, build: Build, rival: Backend, autocast: bool
    ) -> None:
        if autocast and self.spared(build, rival):
            pytest.skip("on a GPU the fullest variants show it")
        batch = sized(RAGGED, rival, 64 if autocast else 16)  # 64 as in the tests above
        for op, arguments in recorded(build(batch), rival, torch.float32, autocast):
            with torch.autocast(rival.device, dtype=torch.bfloat16, enabled=autocast):
                real = op(*arguments)
                if collecting():  # the results are packed PyTorch's, which may save others
                    continue
                with FakeTensorMode() as mode:
                    fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a
                                for a in arguments))
            assert metadata(fake) == metadata(real), op

    def test_compiles_once_for_all_lengths(self, main: Build, backend: Backend) -> None:
        first = main(sized(WHOLE, backend))
        # Behind an op, the fakes must also serve the backward graph. The reference is inlined:
        # tracing it is what can fail, and a minute of symbolic gradients shows nothing more.
        counter = compile_counter("eager" if backend.name == "reference" else "aot_eager")
        function, options = first.function, dict(first.options)
        if "max_length" in options:
            options["max_length"] = 4

        def step(tensors: dict[str, Tensor | None], written: tuple[Tensor | None, ...]) -> Tensor:
            outputs = function(**tensors, **options, backend=backend.name)
            return loss_of(outputs if isinstance(outputs, tuple) else (outputs,), written)

        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
        for count in (4, 7, 3, 11):
            batch = random_batch(count, seed=count, size=8, max_length=4, capacity=2)
            case = main(sized(batch, backend))
            gradients = []
            for run in (step, compiled):
                tensors = case.tensors(torch.float32, backend.device)
                for name in ("alpha_bar", *case.differentiable):
                    if name in tensors and name not in case.axes:
                        # Like a module's parameters, whose sizes do not change.
                        torch._dynamo.mark_static(tensors[name])
                run(tensors, case.written).backward()
                gradients.append([tensors[name].grad for name in case.differentiable])
            for name, want, got in zip(case.differentiable, *gradients, strict=True):
                if name in case.readable:
                    want, got = (masked(t, case.readable[name], 0.0) for t in (want, got))
                torch.testing.assert_close(got, want, msg=lambda text, n=name: f"d {n}: {text}")
        assert counter.frame_count <= 2, f"{counter.frame_count} compilations for 4 batches"

# %% [markdown]
# # An op from reference to Triton
#
# For an engineer: a small op in the order in which the package writes its own. First the
# mathematics, padded and in float64, which is the oracle; then packed PyTorch; then a kernel; and
# what each must show. Triton compiles from a file, so run this as one (`python write-an-op.py`)
# or in a notebook. Without a GPU, Triton's interpreter runs the kernels on the CPU; torch's CPU
# build comes without Triton, which `pip install triton` adds.

# %%
import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import triton
import triton.language as tl
from torch import Tensor

from adarec_fast import ragged
from adarec_fast.kernels._launch import launch
from adarec_fast.ops import _library

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# ## The op
#
# `fading_mean`: a user is the mean of the history's vectors, of which one a step further back
# weighs less by a factor,
#
#     y_b = sum_i w_i x_i / sum_i w_i,   w_i = decay^(n_b - 1 - i),   i = 0 .. n_b - 1
#
# Histories are packed (jagged): `values [N, D]` holds all tokens one behind the other, and those
# of history b are `values[offsets[b]:offsets[b + 1]]`; none is empty.
#
# ## 1. The reference
#
# Padded, with a mask, and with no thought of speed. It is never sped up: all else is held to it.


# %%
def reference(padded: Tensor, mask: Tensor, decay: float) -> Tensor:
    """``[B, L, D]`` and bool ``[B, L]``, tokens from the left, to ``[B, D]``."""
    places = torch.arange(padded.shape[1], device=padded.device)
    behind = mask.sum(1, keepdim=True) - 1 - places
    weights = torch.where(mask, decay ** behind.clamp(min=0).to(padded.dtype), 0.0)
    return (weights[:, :, None] * padded).sum(1) / weights.sum(1, keepdim=True)


histories = torch.tensor([1, 5, 3, 8, 2, 1, 13])
offsets = torch.cat([torch.zeros(1, dtype=torch.int64), histories.cumsum(0)])
mask = torch.arange(13) < histories[:, None]


def padded(values: Tensor) -> Tensor:
    """The packed tokens in their places of ``[B, L, D]``."""
    return ragged.to_padded(values, offsets, mask.shape[1])


x64 = torch.randn(int(offsets[-1]), 3, dtype=torch.float64, requires_grad=True)
assert torch.autograd.gradcheck(lambda x: reference(padded(x), mask, 0.8), (x64,))
print("the reference's gradient is right")

# %% [markdown]
# ## 2. Packed PyTorch
#
# Nothing padded exists any more; this is the fallback wherever no kernel was built. The weight of
# a token does not depend on the values, so that the gradient is the same sum the other way.


# %%
def weights_of(offsets: Tensor, tokens: int, decay: float, dtype: torch.dtype) -> Tensor:
    """Each token's share of its user, ``[N, 1]``."""
    lengths = ragged.lengths(offsets)
    weights = decay ** ragged.from_end(offsets, tokens).to(dtype)
    sums = (1 - decay**lengths.to(dtype)) / (1 - decay)
    return (weights / sums.repeat_interleave(lengths))[:, None]


def packed_fwd(values: Tensor, offsets: Tensor, decay: float) -> Tensor:
    weights = weights_of(offsets, values.shape[0], decay, values.dtype)
    user = ragged.sequence_ids(offsets, values.shape[0])
    sums = values.new_zeros(offsets.shape[0] - 1, values.shape[1])
    return sums.index_add(0, user, weights * values)


def packed_bwd(grad: Tensor, offsets: Tensor, tokens: int, decay: float) -> Tensor:
    user = ragged.sequence_ids(offsets, tokens)
    return weights_of(offsets, tokens, decay, grad.dtype) * grad[user]


# %% [markdown]
# ## 3. The kernels
#
# A program owns a history and a block of dimensions, and walks the history from its end, so that
# the weight is a running product. Offsets are read on the device: nothing waits for the host.
# What is summed is summed in float32, in a fixed order.


# %%
@triton.jit(do_not_specialize=["decay"])
def _forward_kernel(x_ptr, offsets_ptr, y_ptr, decay, D: tl.constexpr, BLOCK: tl.constexpr):
    user = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin, end = tl.load(offsets_ptr + user), tl.load(offsets_ptr + user + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    weight, weights = 1.0, 0.0
    for step in range(0, end - begin):
        token = end - 1 - step
        x = tl.load(x_ptr + token * D + dims, mask=dims < D, other=0.0).to(tl.float32)
        total += weight * x
        weights += weight
        weight *= decay
    tl.store(y_ptr + user * D + dims, total / weights, mask=dims < D)


@triton.jit(do_not_specialize=["decay"])
def _backward_kernel(g_ptr, offsets_ptr, d_ptr, decay, D: tl.constexpr, BLOCK: tl.constexpr):
    user = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin, end = tl.load(offsets_ptr + user), tl.load(offsets_ptr + user + 1)
    weight, weights = 1.0, 0.0
    for _ in range(0, end - begin):
        weights += weight
        weight *= decay
    share = tl.load(g_ptr + user * D + dims, mask=dims < D, other=0.0).to(tl.float32) / weights
    for step in range(0, end - begin):
        tl.store(d_ptr + (end - 1 - step) * D + dims, share, mask=dims < D)
        share *= decay


def triton_fwd(values: Tensor, offsets: Tensor, decay: float) -> Tensor:
    users, size = offsets.shape[0] - 1, values.shape[1]
    y = values.new_empty(users, size)
    arguments = {"x_ptr": values.contiguous(), "offsets_ptr": offsets, "y_ptr": y,
                 "decay": decay, "D": size, "BLOCK": 64}  # fmt: skip
    launch(_forward_kernel, (users, triton.cdiv(size, 64)), arguments, {"num_warps": 2})
    return y


def triton_bwd(grad: Tensor, offsets: Tensor, tokens: int, decay: float) -> Tensor:
    users, size = grad.shape
    d = grad.new_empty(tokens, size)
    arguments = {"g_ptr": grad.contiguous(), "offsets_ptr": offsets, "d_ptr": d,
                 "decay": decay, "D": size, "BLOCK": 64}  # fmt: skip
    launch(_backward_kernel, (users, triton.cdiv(size, 64)), arguments, {"num_warps": 2})
    return d


# %% [markdown]
# ## 4. The op
#
# Two schemas, each with a function that only knows shapes (for `torch.compile`), the backends in
# the order of preference, and autograd around them. In the package `packed/` and `kernels/` are
# found by the op's name; here `provide` says where they are.

# %%
_library.define(
    "fading_mean",
    "(Tensor values, Tensor offsets, float decay) -> Tensor",
    "(Tensor grad, Tensor offsets, SymInt tokens, float decay) -> Tensor",
    lambda values, offsets, decay, backend: values.new_empty(
        offsets.shape[0] - 1, values.shape[1]
    ),
    lambda grad, offsets, tokens, decay, backend: grad.new_empty(tokens, grad.shape[1]),
    cuda=("triton", "packed"),
)
for backend, code in (("packed", (packed_fwd, packed_bwd)), ("triton", (triton_fwd, triton_bwd))):
    implementation = _library.Implementation(*code)
    _library.provide(backend, lambda _, found=implementation: found, op="fading_mean")


class _FadingMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, values, offsets, decay):
        ctx.backend, ctx.tokens, ctx.decay = backend, values.shape[0], decay
        ctx.save_for_backward(offsets)
        return torch.ops.adarec_fast.fading_mean_fwd(values, offsets, decay, backend)

    @staticmethod
    def backward(ctx, grad):
        d = torch.ops.adarec_fast.fading_mean_bwd(
            grad, *ctx.saved_tensors, ctx.tokens, ctx.decay, ctx.backend
        )
        return None, d, None, None


def fading_mean(values: Tensor, offsets: Tensor, decay: float, backend: str = "auto") -> Tensor:
    """A user's vector: the fading mean of the history's, ``[N, D]`` to ``[B, D]``."""
    chosen = _library.choose("fading_mean", backend, values.device.type, values.dtype)
    return _library.run(_FadingMean, "fading_mean", chosen, values, offsets, decay)


# %% [markdown]
# ## 5. What it must show
#
# The rule for every op: no further from the float64 reference than twice what the float32
# reference is, outputs and gradients alike. Memory that nobody writes holds NaN meanwhile.

# %%
x = torch.randn(int(offsets[-1]), 48)
weight = torch.randn(len(histories), 48)


def gradient(function, values: Tensor) -> list[Tensor]:
    """The output, and the gradient of its weighted sum."""
    leaf = values.clone().requires_grad_()
    y = function(leaf)
    (d,) = torch.autograd.grad((y * weight.to(y)).sum(), leaf)
    return [y.detach(), d]


exact = gradient(lambda v: reference(padded(v), mask, 0.8), x.double())
plain = gradient(lambda v: reference(padded(v), mask, 0.8), x)
torch.use_deterministic_algorithms(True, warn_only=True)  # fills torch.empty with NaN
for backend in ("packed", "triton"):
    ours = gradient(
        lambda v, b=backend: fading_mean(v.to(DEVICE), offsets.to(DEVICE), 0.8, b).cpu(), x
    )
    for name, mine, right, theirs in zip(("y", "d_values"), ours, exact, plain, strict=True):
        far, allowed = (mine - right).abs().max(), 2 * (theirs - right).abs().max() + 1e-6
        assert far <= allowed, f"{backend}: {name} is off by {far:.2e}, more than {allowed:.2e}"
        print(f"{backend:7} {name:9} off by {far:.1e}, allowed {allowed:.1e}")
torch.use_deterministic_algorithms(False)

# %% [markdown]
# And that PyTorch may trust the schemas: shapes, aliases, and that nothing is written in place.

# %%
torch.library.opcheck(
    torch.ops.adarec_fast.fading_mean_fwd.default, (x, offsets, 0.8, "packed"),
    test_utils=("test_schema", "test_faketensor"),
)  # fmt: skip
print("torch's own checks pass")

# %% [markdown]
# ## 6. Into the package
#
# The parts become files of one name in `reference/`, `packed/`, `kernels/` and `ops/`; a test of
# a dozen lines inherits all that an op must show (ragged shapes, empty batches, permutations,
# `torch.compile`, the rule above), a benchmark times it against the reference and its compiled
# form, and a command compiles the kernels for each architecture and counts registers and spills,
# with no GPU there. `kernels/README.md` and `tests/README.md` say how.

"""Eq. 1 to 13 by hand: plain Python numbers and lists against the reference and the losses.

Eq. 12, the weighted sum of the losses, is computed in test_model.py; the noise schedules of Eq. 4
in test_modules.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from adarec_fast import rng
from adarec_fast.models.adarec import losses
from adarec_fast.models.adarec.depth_controller import DepthController
from adarec_fast.reference.depth_controller import depth_controller
from adarec_fast.reference.encoder_layer import encoder_layer
from adarec_fast.reference.hda_trajectory import hda_trajectory
from adarec_fast.reference.level_infonce import level_infonce
from adarec_fast.reference.level_pool import level_pool
from adarec_fast.reference.linear_cross_entropy import linear_cross_entropy
from adarec_fast.reference.mlp_expert import mlp_expert
from adarec_fast.reference.moe_aggregate import moe_aggregate

Vector = list[float]
Matrix = list[Vector]
VALID = torch.tensor([[True, True, False], [True, True, True]])


class Numbers:
    """Deterministic small numbers, as tensors and as lists."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *shape: int) -> Tensor:
        total = math.prod(shape)
        values = [math.sin(1.7 * (self.count + i) + 0.3) for i in range(total)]
        self.count += total
        return torch.tensor(values, dtype=torch.float64).view(shape)


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


def near(found: Tensor, wanted: object) -> None:
    torch.testing.assert_close(
        found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def silu(x: float) -> float:
    return x * sigmoid(x)


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def affine(weight: Matrix, x: Vector, bias: Vector | None = None) -> Vector:
    return [dot(row, x) + (bias[i] if bias else 0.0) for i, row in enumerate(weight)]


def add(a: Vector, b: Vector) -> Vector:
    return [x + y for x, y in zip(a, b, strict=True)]


def mean(rows: Matrix) -> Vector:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def softmax(x: Sequence[float]) -> Vector:
    total = sum(math.exp(v) for v in x)
    return [math.exp(v) / total for v in x]


def layer_norm(x: Vector, weight: Vector, bias: Vector, eps: float) -> Vector:
    centre = sum(x) / len(x)
    spread = math.sqrt(sum((v - centre) ** 2 for v in x) / len(x) + eps)
    return [(v - centre) / spread * w + b for v, w, b in zip(x, weight, bias, strict=True)]


def test_equations_1_and_2(numbers: Numbers) -> None:
    """h = Pool(GRU([E; v])), logits = W h + b, the GRU as in Cho et al. with torch's gates."""
    embeddings, v = numbers(2, 3, 2), numbers(2, 2)
    w_e, w_v, b_ih = numbers(6, 2), numbers(6, 2), numbers(6)
    w_hh, b_hh, w_out, b_out = numbers(6, 2), numbers(6), numbers(3, 2), numbers(3)
    logits, _ = depth_controller(
        embeddings, VALID, v @ w_v.T + b_ih, w_e, w_hh, b_hh, w_out, b_out
    )
    # The GRU's input is the concatenation, its input weight the two parts side by side.
    w_ih = [a + b for a, b in zip(w_e.tolist(), w_v.tolist(), strict=True)]
    wanted = []
    for row, length in enumerate((2, 3)):
        hidden, states = [0.0, 0.0], []
        for token in embeddings[row, :length].tolist():
            given = affine(w_ih, token + v[row].tolist(), b_ih.tolist())
            held = affine(w_hh.tolist(), hidden, b_hh.tolist())
            reset = [sigmoid(given[i] + held[i]) for i in (0, 1)]
            update = [sigmoid(given[2 + i] + held[2 + i]) for i in (0, 1)]
            new = [math.tanh(given[4 + i] + reset[i] * held[4 + i]) for i in (0, 1)]
            hidden = [(1 - update[i]) * new[i] + update[i] * hidden[i] for i in (0, 1)]
            states.append(hidden)
        wanted.append(affine(w_out.tolist(), mean(states), b_out.tolist()))
    near(logits, wanted)


def test_equation_3(numbers: Numbers) -> None:
    """p = softmax((logits + g) / tau): the argmax forward, p backward."""
    logits = numbers(2, 4).requires_grad_()
    temperature, seed = 0.5, rng.as_seed(3)
    gumbel = rng.gumbel(seed, 2, 4, torch.float64).tolist()
    controller = DepthController(2, 3, 5, temperature)
    depth, *_, mass = controller.choose(logits, seed)
    slopes = numbers(4, 2)
    (found,) = torch.autograd.grad((mass * slopes).sum(), logits)
    for row in range(2):
        perturbed = [
            (x + g) / temperature for x, g in zip(logits[row].tolist(), gumbel[row], strict=True)
        ]
        p = softmax(perturbed)
        assert int(depth[row]) == p.index(max(p))
        near(mass[:, row], [float(k <= int(depth[row])) for k in range(4)])
        # m_k = sum of y_i for i >= k, so dL/dy_i = sum of the slopes of m_0..m_i.
        upstream = [float(slopes[: i + 1, row].sum()) for i in range(4)]
        inner = dot(p, upstream)
        near(found[row], [p[i] * (upstream[i] - inner) / temperature for i in range(4)])


@pytest.mark.parametrize("bounded", [False, True])
def test_equations_4_and_5(numbers: Numbers, bounded: bool) -> None:
    """E_k = sqrt(a) E + sqrt(1-a) eps; x0 = (E_k - sqrt(1-a) eps_theta(E_k, k)) / sqrt(a)."""
    embeddings, noise = numbers(2, 2), numbers(2, 2, 2)
    alpha_bar = torch.tensor([1.0, 0.6, 0.1], dtype=torch.float64)
    w1_e, w1_k, b1 = numbers(4, 2), numbers(4, 3), numbers(4)
    w2, b2, level = numbers(2, 4), numbers(2), numbers(2, 3)
    x0, error = hda_trajectory(
        embeddings, alpha_bar, w1_e, level @ w1_k.T + b1, w2, b2, noise, bounded
    )
    w1 = [a + b for a, b in zip(w1_e.tolist(), w1_k.tolist(), strict=True)]
    near(x0[0], embeddings.tolist())
    for k in (1, 2):
        signal, spread = math.sqrt(float(alpha_bar[k])), math.sqrt(1 - float(alpha_bar[k]))
        for token in range(2):
            e, eps = embeddings[token].tolist(), noise[k - 1, token].tolist()
            noisy = [signal * a + spread * b for a, b in zip(e, eps, strict=True)]
            hidden = affine(w1, noisy + level[k - 1].tolist(), b1.tolist())
            predicted = affine(w2.tolist(), [silu(h) for h in hidden], b2.tolist())
            if bounded:
                lengths = [a * a + b * b for a, b in zip(noisy, predicted, strict=True)]
                predicted = [spread * a + signal * b for a, b in zip(noisy, predicted, strict=True)]
                # (x0, eps_theta) is (E_k, F) turned, so no level exceeds what it is made of.
                level_k = x0[k, token].tolist()
                squares = [a * a + b * b for a, b in zip(level_k, predicted, strict=True)]
                near(torch.tensor(squares, dtype=torch.float64), lengths)
            wanted = [(a - spread * b) / signal for a, b in zip(noisy, predicted, strict=True)]
            near(x0[k, token], wanted)
            miss = sum((a - b) ** 2 for a, b in zip(predicted, eps, strict=True))
            near(error[k - 1, token], miss)


def test_a_bounded_level_has_less_variance_than_its_noise(numbers: Numbers) -> None:
    """Of E and F given: a (1 - a) of the noise's; the paper's form has (1 - a) / a of it."""
    alpha_bar = torch.tensor([1.0, 0.6, 0.079], dtype=torch.float64)
    noise = torch.randn(2, 4000, 2, generator=torch.Generator().manual_seed(0)).double()
    # A denoiser of nothing but its last bias.
    weights = torch.zeros(4, 2).double(), torch.zeros(2, 4).double(), torch.zeros(2, 4).double()
    e, bias = numbers(1, 2).expand(4000, 2), numbers(2)
    for bounded, factor in ((True, 1.0), (False, alpha_bar[1:] ** -2)):
        x0, _ = hda_trajectory(e, alpha_bar, *weights, bias, noise, bounded)
        wanted = factor * alpha_bar[1:] * (1 - alpha_bar[1:])
        torch.testing.assert_close(x0[1:].var(1).mean(-1), wanted, rtol=0.1, atol=0.0)


def test_noise_free_trajectory_is_the_one_with_noise_zero(numbers: Numbers) -> None:
    parts = (numbers(2, 2), torch.tensor([1.0, 0.5]).double(), numbers(4, 2), numbers(1, 4))
    weights = (numbers(2, 4), numbers(2))
    silent = hda_trajectory(*parts, *weights, None)
    zero = hda_trajectory(*parts, *weights, torch.zeros(1, 2, 2, dtype=torch.float64))
    for a, b in zip(silent, zero, strict=True):
        near(a, b.tolist())


@pytest.mark.parametrize(
    ("depth", "pairs"),
    [
        # Anchors k = floor(T_u / 2)..T_u - 1.
        ((3, 2, 1), {0: [1, 2], 1: [1], 2: [0]}),
        ((0, 0, 1), {2: [0]}),
        ((4, 4, 3), {0: [2, 3], 1: [2, 3], 2: [1, 2]}),
    ],
)
def test_equation_6(numbers: Numbers, depth: tuple[int, ...], pairs: dict[int, list[int]]) -> None:
    z, targets, temperature = numbers(5, 3, 2), [8, 9, 8], 0.3
    found = level_infonce(z, torch.tensor(depth), torch.tensor(targets), temperature)

    def similarity(a: Vector, b: Vector) -> float:
        return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) / temperature

    terms = []
    for user, levels in pairs.items():
        for k in levels:
            anchor = z[k, user].tolist()
            positive = similarity(anchor, z[k + 1, user].tolist())
            negatives = [
                similarity(anchor, z[k + 1, other].tolist())
                for other in range(3)
                if other != user and depth[other] >= k + 1 and targets[other] != targets[user]
            ]
            total = sum(math.exp(s) for s in [positive, *negatives])
            terms.append(-math.log(math.exp(positive) / total))
    near(found, sum(terms) / len(terms))


def test_equation_6_without_a_pair_is_zero(numbers: Numbers) -> None:
    found = level_infonce(numbers(3, 2, 2), torch.tensor([0, 0]), torch.tensor([1, 2]), 0.07)
    near(found, 0.0)


@pytest.mark.parametrize("content", [True, False])
def test_equations_7_to_11(numbers: Numbers, content: bool) -> None:
    """Gates, both averages over the levels k <= depth, and the final vector gate."""
    fine, coarse, pooled = numbers(3, 2, 2), numbers(3, 2, 2), numbers(3, 2, 2)
    depth, mass = [1, 2], numbers(3, 2).abs() + 0.2
    w1_pool, w1_level, b1 = numbers(3, 2), numbers(3, 2), numbers(3)
    w2, b2, level = numbers(3), numbers(1), numbers(3, 2)
    gate_w, gate_b = numbers(2, 2), numbers(2)
    reached = torch.arange(3)[:, None] <= torch.tensor(depth)
    user, gates, z_fine, z_coarse = moe_aggregate(
        fine, coarse, pooled if content else None, reached, mass,
        w1_pool, level @ w1_level.T + b1, w2, b2, gate_w, gate_b,
    )  # fmt: skip
    for row in range(2):
        levels = range(depth[row] + 1)
        g = []
        for k in levels:
            seen = pooled[k, row].tolist() if content else [0.0, 0.0]
            joined = [a + b for a, b in zip(w1_pool.tolist(), w1_level.tolist(), strict=True)]
            hidden = affine(joined, seen + level[k].tolist(), b1.tolist())
            g.append(sigmoid(dot(w2.tolist(), [silu(h) for h in hidden]) + float(b2)))
        near(gates[:, row], g + [0.0] * (2 - depth[row]))
        m = mass[:, row].tolist()

        def average(weights: Vector, values: Tensor, row: int = row) -> Vector:
            total = sum(weights) + 1e-8
            return [
                sum(w * float(values[k, row, d]) for k, w in enumerate(weights)) / total
                for d in range(2)
            ]

        wanted_fine = average([m[k] * g[k] for k in levels], fine)
        wanted_coarse = average([m[k] * (1 - g[k]) for k in levels], coarse)
        near(z_fine[row], wanted_fine)
        near(z_coarse[row], wanted_coarse)
        gate = [sigmoid(x) for x in affine(gate_w.tolist(), wanted_coarse, gate_b.tolist())]
        near(
            user[row],
            [
                s * f + (1 - s) * c
                for s, f, c in zip(gate, wanted_fine, wanted_coarse, strict=True)
            ],
        )


def test_pool_of_equation_7(numbers: Numbers) -> None:
    x = numbers(2, 3, 2)
    whole, running = level_pool(x, VALID, False), level_pool(x, VALID, True)
    for row, length in enumerate((2, 3)):
        near(whole[row], mean(x[row, :length].tolist()))
        for place in range(length):
            near(running[row, place], mean(x[row, : place + 1].tolist()))


def test_fine_expert(numbers: Numbers) -> None:
    """A causal post-LN Transformer layer with two heads of two dimensions each."""
    size, heads, inner = 4, 2, 3
    x = numbers(1, 3, size)
    qkv_w, qkv_b = numbers(3 * size, size), numbers(3 * size)
    out_w, out_b = numbers(size, size), numbers(size)
    ln1_w, ln1_b = numbers(size), numbers(size)
    ff1_w, ff1_b = numbers(inner, size), numbers(inner)
    ff2_w, ff2_b = numbers(size, inner), numbers(size)
    ln2_w, ln2_b = numbers(size), numbers(size)
    weights = (qkv_w, qkv_b, out_w, out_b, ln1_w, ln1_b, ff1_w, ff1_b, ff2_w, ff2_b, ln2_w, ln2_b)
    found = encoder_layer(
        x, VALID[1:], *weights, heads, 1e-3, 0.0, 0.0, None, None, None
    )
    rows = x[0].tolist()
    joint = [affine(qkv_w.tolist(), row, qkv_b.tolist()) for row in rows]
    for place, row in enumerate(rows):
        context: Vector = []
        for head in range(heads):
            part = slice(2 * head, 2 * head + 2)
            query = joint[place][part]
            keys = [t[size:][part] for t in joint[: place + 1]]
            values = [t[2 * size :][part] for t in joint[: place + 1]]
            attention = softmax([dot(query, key) / math.sqrt(2) for key in keys])
            context += [
                sum(a * v[d] for a, v in zip(attention, values, strict=True)) for d in range(2)
            ]
        middle = layer_norm(
            add(row, affine(out_w.tolist(), context, out_b.tolist())),
            ln1_w.tolist(), ln1_b.tolist(), 1e-3,
        )  # fmt: skip
        hidden = [gelu(h) for h in affine(ff1_w.tolist(), middle, ff1_b.tolist())]
        wanted = layer_norm(
            add(middle, affine(ff2_w.tolist(), hidden, ff2_b.tolist())),
            ln2_w.tolist(), ln2_b.tolist(), 1e-3,
        )  # fmt: skip
        near(found[0, place], wanted)


@pytest.mark.parametrize("residual", [False, True])
def test_coarse_expert_and_dropout(numbers: Numbers, residual: bool) -> None:
    x, w1, b1 = numbers(2, 2), numbers(4, 2), numbers(4)
    w2, b2, ln_w, ln_b = numbers(2, 4), numbers(2), numbers(2), numbers(2)
    keep = torch.tensor([[True, False], [True, True]])
    found = mlp_expert(x, w1, b1, w2, b2, ln_w, ln_b, 1e-3, 0.25, keep, residual)
    for row in range(2):
        hidden = [gelu(h) for h in affine(w1.tolist(), x[row].tolist(), b1.tolist())]
        out = affine(w2.tolist(), hidden, b2.tolist())
        out = [v / 0.75 if k else 0.0 for v, k in zip(out, keep[row].tolist(), strict=True)]
        if residual:
            out = add(x[row].tolist(), out)
        near(found[row], layer_norm(out, ln_w.tolist(), ln_b.tolist(), 1e-3))


def test_equation_13(numbers: Numbers) -> None:
    """Cross entropy over the items 1..V; rows with target 0 are left out."""
    hidden, items, targets = numbers(3, 2), numbers(5, 2), [4, 0, 1]
    found = linear_cross_entropy(hidden, items, torch.tensor(targets))
    smoothed = linear_cross_entropy(hidden, items, torch.tensor(targets), 0.2)
    terms, shared = [], []
    for row in (0, 2):
        scores = affine(items[1:].tolist(), hidden[row].tolist())
        costs = [-math.log(p) for p in softmax(scores)]
        terms.append(costs[targets[row] - 1])
        shared.append(0.8 * terms[-1] + sum(0.05 * cost for cost in costs))
    near(found, sum(terms) / 2)
    near(smoothed, sum(shared) / 2)


def test_denoising_loss() -> None:
    """L_deno: the mean over valid tokens, dimensions and the levels 1..T_u."""
    # Two sequences of 2 and 1 tokens, depths 1 and 3, D = 2; one row of capacity.
    error = torch.tensor([0.5, 1.5, 6.0, float("nan")], dtype=torch.float64)
    found = losses.denoising_loss(error, torch.tensor([0, 2, 3]), torch.tensor([1, 3]), 2)
    near(found, (0.5 + 1.5 + 6.0) / ((2 * 1 + 1 * 3) * 2))


def test_exploration_loss_is_the_negative_entropy(numbers: Numbers) -> None:
    logits = numbers(2, 3)
    entropies = [-sum(p * math.log(p) for p in softmax(row)) for row in logits.tolist()]
    near(losses.depth_entropy(logits), sum(entropies) / 2)
    near(losses.exploration_loss(logits), -sum(entropies) / 2)
    # Least where every depth is equally likely: minimising it keeps the controller exploring.
    even = losses.exploration_loss(torch.zeros(1, 3, dtype=torch.float64))
    near(even, -math.log(3))
    assert even < losses.exploration_loss(logits)

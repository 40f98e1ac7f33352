"""The drop-in module: inputs, outputs, switches, gradients, backends and compilation."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers_accuracy import assert_close_to_float64

from adarec_fast import ADARec, ConfigError, rng
from adarec_fast.data import Batch
from adarec_fast.models.adarec.parsing import encode, parse

SMALL: dict[str, Any] = {
    "num_items": 40,
    "hidden_size": 16,
    "num_layers": 1,
    "max_length": 8,
    "max_depth": 3,
}
VALUES = torch.tensor([3, 4, 9, 1, 2, 7, 5, 39, 40])
OFFSETS = torch.tensor([0, 2, 3, 9])
PADDED_LEFT = torch.tensor(
    [[0, 0, 0, 0, 3, 4], [0, 0, 0, 0, 0, 9], [1, 2, 7, 5, 39, 40]]
)


def _batch(supervision: str) -> Batch:
    targets = VALUES.flip(0) if supervision == "all" else torch.tensor([5, 6, 5])
    return Batch(VALUES, OFFSETS, targets, torch.arange(3))


def _gradients(model: ADARec, batch: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.loss(batch).total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _moved(
    options: dict[str, Any], batch: Batch, exact: dict[str, torch.Tensor], name: str
) -> float:
    """What one rounding of all weights, up or down, does to a gradient in float64."""
    model = ADARec(**options, backend="reference").double()
    signs = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            up = torch.randint(0, 2, weight.shape, generator=signs) * 2 - 1
            weight.mul_(1 + 2.0**-24 * up)
    return float((_gradients(model, batch)[name] - exact[name]).abs().max())


def test_padded_and_jagged_inputs_agree() -> None:
    model = ADARec(**SMALL).eval()
    right = torch.zeros_like(PADDED_LEFT)
    for row, (start, stop) in enumerate(pairwise(OFFSETS.tolist())):
        right[row, : stop - start] = VALUES[start:stop]
    jagged = model((VALUES, OFFSETS))
    for padded in (PADDED_LEFT, right):
        out = model(padded, torch.tensor([2, 1, 6]))
        assert torch.equal(out.user, jagged.user)
        assert torch.equal(out.depth, jagged.depth)
    assert jagged.user.shape == (3, 16)
    assert jagged.hierarchy is None
    assert jagged.gates is None
    assert jagged.losses is None


def test_hierarchy_gates_and_losses_on_demand() -> None:
    model = ADARec(**SMALL).eval()
    out = model(
        (VALUES, OFFSETS), targets=torch.tensor([5, 6, 5]), return_hierarchy=True, return_gates=True
    )
    assert out.hierarchy is not None
    assert out.gates is not None
    assert out.losses is not None
    assert out.hierarchy.levels.shape == (4, 9, 16)
    assert out.gates.shape == (4, 3)
    beyond = torch.arange(4)[:, None] > out.depth
    assert bool((out.gates[beyond] == 0).all())
    assert bool((out.gates[~beyond] > 0).all())
    assert out.losses.total.isfinite()


def test_evaluation_is_deterministic_and_independent_of_the_batch() -> None:
    model = ADARec(**SMALL).eval()
    whole = model((VALUES, OFFSETS)).user
    assert torch.equal(whole, model((VALUES, OFFSETS)).user)
    alone = model((VALUES[3:], torch.tensor([0, 6]))).user
    torch.testing.assert_close(alone[0], whole[2], rtol=1e-5, atol=1e-6)


def test_long_histories_keep_their_last_items() -> None:
    model = ADARec(**SMALL).eval()
    long = torch.arange(1, 13)
    kept = model((long[-8:], torch.tensor([0, 8]))).user
    assert torch.equal(model((long, torch.tensor([0, 12]))).user, kept)


@pytest.mark.parametrize("supervision", ["prefix", "all"])
@pytest.mark.parametrize("depth_gradient", ["truncated", "full"])
@pytest.mark.parametrize("coarse_expert", ["mlp", "transformer"])
@pytest.mark.parametrize("schedule", ["respaced", "direct"])
def test_every_variant_trains_alike_on_reference_and_packed(
    supervision: str, depth_gradient: str, coarse_expert: str, schedule: str
) -> None:
    options = {
        **SMALL,
        "supervision": supervision,
        "depth_gradient": depth_gradient,
        "coarse_expert": coarse_expert,
        "schedule": schedule,
    }
    found = [
        _gradients(ADARec(**options, backend=backend).double(), _batch(supervision))
        for backend in ("reference", "packed")
    ]
    assert found[0].keys() == found[1].keys() == dict(ADARec(**options).named_parameters()).keys()
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-7, atol=1e-10, msg=name)
    # The schedule is a float32 table, so that nothing else limits the agreement above.
    assert float(found[0]["depth_controller.w_out"].abs().sum()) > 0


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("supervision", ["prefix", "all"])
@pytest.mark.parametrize("depth_gradient", ["truncated", "full"])
@pytest.mark.parametrize("coarse_expert", ["mlp", "transformer"])
@pytest.mark.parametrize("backend", ["auto", "packed", "reference"])
@pytest.mark.parametrize("capacity", [0, 7])
def test_nothing_unwritten_is_read(
    supervision: str, depth_gradient: str, coarse_expert: str, backend: str, capacity: int
) -> None:
    """Levels beyond a depth and rows behind the last token hold NaN, or what was there before."""
    options = {
        **SMALL,
        "supervision": supervision,
        "depth_gradient": depth_gradient,
        "coarse_expert": coarse_expert,
    }
    exact, plain = (
        _gradients(ADARec(**options, backend="reference").to(dtype), _batch(supervision))
        for dtype in (torch.float64, torch.float32)
    )
    batch = _batch(supervision)
    unused = torch.zeros(capacity, dtype=torch.int64)
    targets = batch.targets
    if supervision == "all":
        targets = torch.cat([targets, unused])
    batch = batch._replace(item_ids=torch.cat([VALUES, unused]), targets=targets)
    model = ADARec(**options, backend=backend)
    found = _gradients(model, batch)
    assert found.keys() == exact.keys()
    for name, gradient in found.items():
        assert_close_to_float64(
            gradient, plain[name], exact[name], name,
            sensitivity=lambda name=name: _moved(options, _batch(supervision), exact, name),
        )  # fmt: skip
    user = model.eval()((batch.item_ids, OFFSETS)).user
    torch.testing.assert_close(user, model((VALUES, OFFSETS)).user)
    assert user.isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        {"depth": "fixed"},
        {"diffusion": False},
        {"depth": "fixed", "diffusion": False},
        {"moe": False},
        {"router": "level"},
        {"lambda_cont": 0.0},
        {"depth": "fixed", "diffusion": False, "moe": False},
        {"residual": True},
        {"start": "backbone", "denoiser": "bounded"},
        {"num_layers": 0},
        {"num_layers": 2, "local_path": 3},
        {"dropout": 0.0, "attention_dropout": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("supervision", ["prefix", "all"])
def test_components_switch_off_one_by_one(change: dict[str, Any], supervision: str) -> None:
    options = {**SMALL, "supervision": supervision, **change}
    models = [ADARec(**options, backend=backend).double() for backend in ("reference", "packed")]
    first, second = (_gradients(model, _batch(supervision)) for model in models)
    # What is switched off has no parameter, and every parameter has a gradient.
    assert set(first) == set(second) == set(dict(models[0].named_parameters()))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-7, atol=1e-10, msg=name)
    model = models[0].eval()
    assert model((VALUES, OFFSETS)).user.isfinite().all()
    parts = model.loss(_batch(supervision)).parts
    assert float(parts["rec"]) > 0
    if change.get("diffusion") is False:
        assert float(parts["deno"]) == 0
    if change.get("lambda_cont") == 0.0:
        assert float(parts["cont"]) == 0
    if change.get("depth") == "fixed":
        assert float(parts["expl"]) == 0
        assert bool((model((VALUES, OFFSETS)).depth == 3).all())


@pytest.mark.parametrize("coarse_expert", ["mlp", "transformer"])
def test_the_start_that_is_the_backbone(coarse_expert: str) -> None:
    options = {**SMALL, "coarse_expert": coarse_expert, "denoiser": "bounded"}
    model = ADARec(**options, start="backbone").eval()
    with torch.no_grad():
        model.depth_controller.b_out += torch.tensor([0.0, 1.0, 3.0, 2.0])
    e = encode(model, VALUES, OFFSETS)[OFFSETS[1:] - 1]
    user = model((VALUES, OFFSETS))
    assert bool((user.depth > 0).any())
    # E ends in a LayerNorm already; the deepest level is a thirteenth of it, beside eps.
    torch.testing.assert_close(user.user, e, rtol=5e-3, atol=5e-3)
    silent = {"denoiser.w2", "fine_expert.out.weight", "fine_expert.ff2.weight",
              "coarse_expert.ff2.weight"}
    if coarse_expert == "transformer":
        silent.add("coarse_expert.out.weight")
    plain = ADARec(**{**options, "denoiser": "paper"}).state_dict()
    for name, tensor in ADARec(**options, start="backbone").state_dict().items():
        assert not tensor.any() if name in silent else torch.equal(tensor, plain[name]), name


def test_without_any_component_the_model_is_its_backbone() -> None:
    model = ADARec(**SMALL, depth="fixed", diffusion=False, moe=False).eval()
    embedded = model.item_embedding(VALUES)
    expected = model.backbone(embedded, OFFSETS, seed=None, backend="reference")
    torch.testing.assert_close(model((VALUES, OFFSETS)).user, expected[OFFSETS[1:] - 1])
    assert {n.split(".")[0] for n, _ in model.named_parameters()} == {"item_embedding", "backbone"}


def test_total_is_the_weighted_sum_of_its_parts() -> None:
    weights = {"lambda_deno": 0.3, "lambda_cont": 0.7, "lambda_expl": 0.05}
    out = ADARec(**SMALL, **weights).loss(_batch("prefix"))
    parts = out.parts
    expected = parts["rec"] + 0.3 * parts["deno"] + 0.7 * parts["cont"] + 0.05 * parts["expl"]
    torch.testing.assert_close(out.total.detach(), expected)
    torch.testing.assert_close(parts["expl"], -out.depth_entropy)
    assert not any(part.requires_grad for part in parts.values())


def test_noise_advances_with_the_step_and_only_in_training() -> None:
    model = ADARec(**SMALL)
    start = model.noise_seed.clone()
    first, second = (float(model.loss(_batch("prefix")).total.detach()) for _ in range(2))
    assert first != second
    assert torch.equal(model.noise_seed, start + 2)
    model.noise_seed.copy_(start)
    assert float(model.loss(_batch("prefix")).total.detach()) == first
    model.eval()((VALUES, OFFSETS))
    assert torch.equal(model.noise_seed, start + 1)


def test_averaging_noisy_samples_at_evaluation() -> None:
    plain = ADARec(**SMALL).eval()
    sampled = ADARec(**SMALL, evaluation_samples=4).eval()
    sampled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for parameter in (sampled.depth_controller.b_out, plain.depth_controller.b_out):
            parameter[3] = 10.0  # deep enough for noise to matter
    a, b = sampled((VALUES, OFFSETS)).user, sampled((VALUES, OFFSETS)).user
    assert torch.equal(a, b)
    assert not torch.allclose(a, plain((VALUES, OFFSETS)).user)
    size, depth = sampled.config.hidden_size, sampled.config.max_depth
    one = []
    for key in range(2):
        noise = rng.history_noise(
            rng.as_seed(key), VALUES, OFFSETS, size, depth, torch.float32
        )
        one.append(parse(sampled, VALUES, OFFSETS, None, "last", noise=noise).user)
    assert not torch.allclose(one[0], one[1])


def test_a_users_noise_goes_by_the_history_alone() -> None:
    draw = partial(rng.history_noise, rng.as_seed(3), size=4, depth=2, dtype=torch.float64)
    whole = draw(VALUES, OFFSETS)
    for row in range(3):
        begin, end = OFFSETS[row : row + 2].tolist()
        alone = draw(VALUES[begin:end], torch.tensor([0, end - begin]))
        assert torch.equal(alone, whole[:, begin:end])
    # Capacity behind the last token changes nothing; another order is another history.
    room = torch.cat([VALUES, VALUES.new_zeros(5)])
    assert torch.equal(draw(room, OFFSETS)[:, : VALUES.numel()], whole)
    both = draw(torch.tensor([5, 9, 9, 5]), torch.tensor([0, 2, 4]))
    assert both.flatten().unique().numel() == both.numel()
    many = draw(torch.arange(1, 20_001), torch.arange(20_001))
    assert abs(float(many.mean())) < 0.01
    assert abs(float(many.std()) - 1) < 0.01


def test_recommend_leaves_out_what_was_seen_and_maps_lists() -> None:
    model = ADARec(**SMALL)
    items, scores = model.recommend((VALUES, OFFSETS), k=34)
    assert model.training
    for row in range(3):
        seen = set(VALUES[OFFSETS[row] : OFFSETS[row + 1]].tolist())
        assert not seen & set(items[row].tolist())
    assert bool((scores[:, 1:] <= scores[:, :-1]).all())
    assert bool((items >= 1).all())
    again, _ = model.recommend([[3, 4], [9], [1, 2, 7, 5, 39, 40]], k=34)
    assert torch.equal(items, again)
    everything, _ = model.recommend([[3, 4]], k=40, exclude_seen=False)
    assert sorted(everything[0].tolist()) == list(range(1, 41))
    other, _ = model.recommend([[3, 4]], k=38, seen=(torch.tensor([8, 9]), torch.tensor([0, 2])))
    assert {3, 4} <= set(other[0].tolist())
    assert not {8, 9} & set(other[0].tolist())
    user = model.eval()((VALUES, OFFSETS)).user
    full = model.score(user)
    assert bool((full[:, 0] == float("-inf")).all())
    torch.testing.assert_close(scores, full.gather(1, items))


@pytest.mark.parametrize(
    ("history", "lengths", "message"),
    [
        (torch.tensor([[0, 0]]), None, "row 0 has no item"),
        (torch.tensor([[1, 0, 2]]), None, "padding \\(0\\) between items"),
        (torch.tensor([[1, 41]]), None, "item id 41 is outside the catalogue, 1..40"),
        (torch.tensor([[1, -3]]), None, "item id -3 is outside"),
        (torch.tensor([[1.0, 2.0]]), None, "item_ids must be int64"),
        (torch.tensor([[1, 2, 0]]), torch.tensor([3]), r"lengths\[0\]=3 disagrees"),
        (torch.tensor([[1, 2, 0]]), torch.tensor([2, 2]), "lengths must be int64 \\[1\\]"),
        ((torch.tensor([1, 2]), torch.tensor([0, 3])), None, "beyond the 2 tokens"),
        ((torch.tensor([1, 2]), torch.tensor([0, 2, 1])), None, "sequence 1 has length -1"),
        ((torch.tensor([1, 2]), torch.tensor([1, 2])), None, "begin at 0"),
        ((torch.tensor([1, 2]), torch.tensor([0, 2], dtype=torch.int32)), None, "int64"),
        ((torch.tensor([1, 2]), torch.tensor([0, 2])), torch.tensor([2]), "goes with padded"),
    ],
)
def test_bad_histories_are_named(history: Any, lengths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ADARec(**SMALL)(history, lengths)


def test_bad_arguments_are_named() -> None:
    model = ADARec(**SMALL)
    with pytest.raises(ValueError, match=r"takes \[3\], one target a history"):
        model.loss(_batch("all"))
    with pytest.raises(ValueError, match=r"k=41 must lie in 1\.\.40"):
        model.recommend([[1]], k=41)
    with pytest.raises(ConfigError, match="did you mean 'max_depth'"):
        ADARec(num_items=4, max_dept=3)
    with pytest.raises(ConfigError, match="not divisible by num_heads=3"):
        ADARec(num_items=4, hidden_size=16, num_heads=3)
    with pytest.raises(ConfigError, match="max_depth=0"):
        ADARec(num_items=4, max_depth=0)


def test_double_precision_runs_whatever_was_built() -> None:
    model = ADARec(**SMALL).double()
    exact = ADARec(**SMALL, backend="reference").double()
    found, expected = model.loss(_batch("prefix")).total, exact.loss(_batch("prefix")).total
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_empty_batch() -> None:
    model = ADARec(**SMALL).eval()
    empty = torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    assert model(empty).user.shape == (0, 16)


def test_weights_depend_on_the_seed_alone() -> None:
    first = ADARec(**SMALL, seed=3)
    torch.manual_seed(77)
    again = ADARec(**SMALL, seed=3)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    other = ADARec(**SMALL, seed=4)
    assert not torch.equal(first.item_embedding.weight, other.item_embedding.weight)
    assert bool((first.item_embedding.weight[0] == 0).all())


def test_autocast_trains_in_bfloat16() -> None:
    for backend in ("reference", "packed"):
        model = ADARec(**SMALL, backend=backend)
        exact = model.loss(_batch("prefix")).total
        model.noise_seed -= 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = model.loss(_batch("prefix")).total
        total.backward()
        torch.testing.assert_close(total.float(), exact, rtol=0.05, atol=0.05)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

"""DiffDiv and DreamRec: schedules and equations by hand, both losses, and the usual commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_shares import check_shares
from helpers_systems import follow_commands
from helpers_training import DATA, config, outcome
from torch import Tensor

from adarec_fast import Recommender, rng
from adarec_fast.config import ConfigError
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.models.blocks.gaussian import (
    alpha_bars,
    betas,
    implied_noise,
    noised,
    step_embedding,
)
from adarec_fast.models.diffdiv.model import DiffDiv, generate, sampled_steps
from adarec_fast.models.diffdiv.networks import (
    Denoiser,
    VariationalGuidance,
    divergence,
    guided,
)
from adarec_fast.training import load_run, train

SHAPE: dict[str, Any] = {
    "num_items": DATA.num_items, "hidden_size": 8, "num_layers": 1, "max_length": 10, "seed": 3,
    "backend": "packed", "diffusion_steps": 20, "sampling_steps": 4, "denoiser_hidden": 16,
    "latent_hidden": 12,
}  # fmt: skip
MODEL: dict[str, Any] = {
    "model": "diffdiv", **{n: v for n, v in SHAPE.items() if n not in ("num_items", "seed")},
}  # fmt: skip
DREAMREC: dict[str, Any] = {
    "loss": "original", "guidance": "plain", "denoiser_layers": 0, "samples": 1,
}  # fmt: skip
STILL: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}


def batches() -> TrainingBatches:
    return TrainingBatches(
        *Split(DATA).inputs("train"), supervision="prefix", batch_size=32, max_length=10, seed=0
    )


def test_schedules_by_hand() -> None:
    assert float(alpha_bars("linear", 20)[-1]) == pytest.approx(0.816777, abs=1e-6)
    assert float(alpha_bars("linear", 200)[-1]) == pytest.approx(0.132183, abs=1e-6)
    exp = betas("exp", 200)
    assert exp[[0, -1]].tolist() == pytest.approx([6.2356e-4, 0.0488883], rel=1e-4)
    assert float(alpha_bars("exp", 200)[-1]) == pytest.approx(0.0062526, abs=1e-7)
    cosine = betas("cosine", 50)
    assert float(cosine.min()) >= 1e-4
    assert float(cosine.max()) == 0.9999
    for schedule in ("linear", "exp", "cosine"):
        assert (alpha_bars(schedule, 30).diff() < 0).all()


def test_steps_by_hand() -> None:
    assert sampled_steps(200, 1) == [199]
    assert sampled_steps(5, 5) == [4, 3, 2, 1, 0]
    assert sampled_steps(11, 3) == [10, 5, 0]
    found = step_embedding(torch.tensor([0, 3]), 4)
    assert found[0].tolist() == [0, 0, 1, 1]
    third = torch.tensor([3.0, 3e-4])
    torch.testing.assert_close(found[1], torch.cat([third.sin(), third.cos()]))
    x0, eps = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    bar = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(implied_noise(noised(x0, eps, bar), x0, bar), eps)


def test_divergence_and_guidance_by_hand() -> None:
    log_variance = torch.tensor([[1.0, 1.0], [1.0, 4.0]]).log()
    mean = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    found = divergence(mean, log_variance)
    assert found.tolist() == pytest.approx([0.0, 0.903426], abs=1e-6)
    with_it, without = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
    assert guided(with_it, without, 2.0).tolist() == [2.0, 0.0]
    assert torch.equal(guided(with_it, without, 0.0), with_it)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_perfect_denoiser_generates_what_it_knows(count: int) -> None:
    bars, wanted = alpha_bars("exp", 20), torch.randn(4, dtype=torch.float64)
    steps = sampled_steps(20, count)
    asked: list[int] = []

    def predict(x: Tensor, step: int) -> Tensor:
        asked.append(step)
        return wanted.expand_as(x)

    found = generate(predict, torch.randn(3, 4, dtype=torch.float64), bars, steps)
    assert torch.equal(found, wanted.expand(3, 4))
    assert asked == steps


def test_a_step_of_generation_is_that_of_ddim() -> None:
    bars = alpha_bars("exp", 20)
    x = torch.tensor([2.0], dtype=torch.float64)
    found = generate(lambda x, _: 0.5 * x, x, bars, [19, 7])
    first, later = float(bars[19]), float(bars[7])
    moved = later**0.5 + (1 - later) ** 0.5 * (2 - first**0.5) / (1 - first) ** 0.5
    assert float(found) == pytest.approx(0.5 * moved)


def test_samples_differ_by_their_spread_alone() -> None:
    guidance = VariationalGuidance(4, 6)
    state, noise = torch.randn(2, 4), torch.randn(3, 2, 4)
    for log_variance, same in ((-60.0, True), (0.0, False)):
        with torch.no_grad():
            guidance.log_variance[2].weight.zero_()
            guidance.log_variance[2].bias.fill_(log_variance)
        found, mean, spread = guidance(state, noise)
        assert torch.equal(found[0], found[1]) == same
        assert spread.unique().tolist() == [log_variance]
        torch.testing.assert_close(found, guidance.out(mean + (spread / 2).exp() * noise))


@pytest.mark.parametrize("layers", [0, 2])
def test_the_denoiser_is_a_perceptron_of_all_three(layers: int) -> None:
    denoiser = Denoiser(4, layers, 6).double()
    x, guidance, steps = (
        torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64),
        torch.tensor([0, 5, 9]),
    )  # fmt: skip
    tau = denoiser.step_out(F.gelu(denoiser.step_in(step_embedding(steps, 4).double())))
    wanted = torch.cat([x, guidance, tau], 1)
    for number, part in enumerate(denoiser.layers):
        wanted = part(torch.relu(wanted) if number else wanted)
    torch.testing.assert_close(denoiser(x, guidance, steps), wanted)
    inputs = (x.requires_grad_(), guidance.requires_grad_())
    assert torch.autograd.gradcheck(lambda *given: denoiser(*given, steps), inputs)


@pytest.mark.parametrize(
    "options", [{}, {"loss": "original"}, {**DREAMREC, "detach_target": False}], ids=str
)
def test_the_loss_by_its_equations(options: dict[str, Any]) -> None:
    model = DiffDiv(**{**SHAPE, **STILL, "guidance_dropout": 0.4, **options}).double().train()
    model.begin_epoch(4)
    batch = next(iter(batches().epoch(0)))
    draws, rows = rng.at_place(model.noise_seed), batch.users.shape[0]
    row = torch.arange(rows)
    step = rng.below(rng.words(draws, row, rng.STREAM_DIFFUSION_STEP, 0), 20)
    alone = rng.words(draws, row, rng.STREAM_DIFFUSION_STEP, 1) < round(0.4 * 2**32)
    assert 0 < int(alone.sum()) < rows
    index = rng.element_index(rows, 8)
    noise, latent = (
        rng.normal_levels(draws, index, 1, torch.float64, stream)[0]
        for stream in (rng.STREAM_DIFFUSION_NOISE, rng.STREAM_LATENT)
    )
    state = model._state(batch.item_ids, batch.offsets, None)
    guidance, kl = state, torch.zeros((), dtype=torch.float64)
    if model.guidance is not None:
        guidance, mean, log_variance = model.guidance(state, latent)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    guidance = torch.where(alone[:, None], model.nothing, guidance)
    x0 = model.item_embedding.weight[batch.targets]
    x0 = x0.detach() if model.config.detach_target else x0
    bar = model.alpha_bar[step][:, None]
    found = model.denoiser(bar.sqrt() * x0 + (1 - bar).sqrt() * noise, guidance, step)
    wanted = F.mse_loss(found, x0)
    if model.config.loss == "full_ce":
        logits = (found @ model.item_embedding.weight.T)[:, 1:]
        wanted = F.cross_entropy(logits, batch.targets - 1) + 0.1 * wanted
    wanted = wanted + 0.01 * 5 / 10 * kl
    named = dict(model.named_parameters())
    expected = torch.autograd.grad(wanted, list(named.values()))
    output = model.loss(batch)
    torch.testing.assert_close(output.total, wanted, rtol=1e-6, atol=1e-9)
    output.total.backward()
    for (name, parameter), gradient in zip(named.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-9, msg=name)
    assert list(output.parts) == list(model.diagnostics().parts)


def test_shares_are_the_whole_batch() -> None:
    check_shares(batches(), lambda: DiffDiv(**SHAPE).double().train())


def test_what_is_generated_goes_by_the_history_alone() -> None:
    model = DiffDiv(**SHAPE).eval()
    alone = model(torch.tensor([[5, 7, 2]]))
    beside = model(torch.tensor([[9, 0, 0], [5, 7, 2], [5, 7, 0]]))
    torch.testing.assert_close(beside[1:2], alone)
    assert not torch.allclose(beside[0], alone[0])
    other = DiffDiv(**{**SHAPE, "seed": 4}).eval()
    other.load_state_dict(model.state_dict())
    assert not torch.equal(other(torch.tensor([[5, 7, 2]])), alone)


def test_scores_are_the_mean_of_the_samples() -> None:
    model = DiffDiv(**SHAPE).eval()
    history = torch.tensor([5, 7, 2]), torch.tensor([0, 3])
    found: list[Tensor] = []
    generated = model._generated

    def kept(start: Tensor, guidance: Tensor) -> Tensor:
        found.append(generated(start, guidance))
        return found[-1]

    model._generated = kept  # type: ignore[method-assign]
    scores = model.score(model.represent(*history))[:, 1:]
    (samples,) = found
    assert samples.shape == (5, 1, 8)
    assert not torch.allclose(samples[0], samples[1])
    each = (samples @ model.table().T).mean(0)[:, 1:]
    torch.testing.assert_close(scores, each, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["auto", "packed", "reference"])
def test_recommendations_are_its_scores(backend: Any) -> None:
    model = DiffDiv(**{**SHAPE, "backend": backend}).eval()
    histories = [[5, 7, 2], [4], list(range(1, 14))]
    items, _ = model.recommend(histories, k=4)
    with torch.no_grad():
        for row, history in enumerate(histories):
            logits = model.score(model(torch.tensor([history])))[0]
            logits[history] = -torch.inf
            assert torch.equal(items[row], logits.topk(4).indices)
    assert torch.equal(Recommender(model).recommend(histories, k=4).items, items)


def test_it_starts_as_its_loss_asks() -> None:
    for options, spread in (({}, 0.02), ({"loss": "original"}, 1.0), ({"item_std": 0.5}, 0.5)):
        model = DiffDiv(**{**SHAPE, **options, "num_items": 500})
        assert float(model.item_embedding.weight.detach().std()) == pytest.approx(spread, rel=0.1)
        assert not model.item_embedding.weight[0].any()
    assert float(model.kl_weight) == pytest.approx(0.001)
    model.begin_epoch(30)
    assert float(model.kl_weight) == pytest.approx(0.01)


@pytest.mark.parametrize("options", [{}, DREAMREC], ids=["diffdiv", "dreamrec"])
def test_it_resumes_to_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train({**MODEL, **options}, config(), DATA, whole)
    # Within the second epoch, whose weight of the divergence is its own.
    train({**MODEL, **options}, config(), DATA, parts, stop_after_steps=5)
    train({**MODEL, **options}, config(), DATA, parts, resume=True)
    assert outcome(whole) == outcome(parts)
    line = load_run(whole).history[-1]
    named = {name for name in line if name.startswith("loss_")}
    assert named == ({"loss_mse"} if options else {"loss_rec", "loss_mse", "loss_kl"})


def test_the_commands_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = follow_commands(
        "diffdiv", "--num-layers", "1", "--max-length", "10", "--samples", "2",
        "--sampling-steps", "3",
    )  # fmt: skip
    assert result["name"] == "DiffDiv"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supervision": "all"}, "supervision='all': the model diffdiv takes 'prefix'"),
        ({"sampling_steps": 21}, "sampling_steps=21 is more than diffusion_steps=20"),
        ({"hidden_size": 9, "num_heads": 1}, "hidden_size=9 must be even"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"diffusion_steps": 1}, "diffusion_steps=1"),
        ({"guidance_weight": -1.0}, "guidance_weight=-1"),
        ({"noise_schedule": "flat"}, "noise_schedule='flat'"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiffDiv(**{**SHAPE, **options})


def test_a_split_of_items_is_refused() -> None:
    workers: Any = None
    with pytest.raises(ConfigError, match="shard_items=True: DiffDiv"):
        DiffDiv(**SHAPE).split_items(workers)

"""The benchmarks' workloads, and baselines that compute what the model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from adarec_fast import ADARec, ragged, rng  # noqa: E402
from bench.baselines.packed import PackedADARec  # noqa: E402
from bench.baselines.padded import PaddedADARec  # noqa: E402
from bench.baselines.sasrec import PackedSASRec  # noqa: E402
from bench.workloads import MAX_DEPTH, MAX_LENGTH, WORKLOADS, histories  # noqa: E402

T, D = 3, 8


@pytest.fixture
def model() -> ADARec:
    """In float64, without dropout, so that only depths and noise are drawn."""
    made = ADARec(
        num_items=12_101, hidden_size=D, max_depth=T, dropout=0.0, attention_dropout=0.0,
        backend="reference",
    ).double()  # fmt: skip
    with torch.no_grad():  # so that users differ in their depths
        for parameter in made.depth_controller.parameters():
            parameter.normal_(0.0, 0.5)
    return made


def test_workloads_are_deterministic_and_as_real_ones() -> None:
    first = histories("train")[0]
    histories.cache_clear()
    again = histories("train")[0]
    assert torch.equal(first.item_ids, again.item_ids)
    assert torch.equal(first.depth, again.depth)
    for name, workload in WORKLOADS.items():
        batch = histories(name)[0]
        assert batch.batch == workload.batch
        assert 1 <= int(batch.lengths.min()) <= int(batch.lengths.max()) <= MAX_LENGTH
        assert batch.level_tokens == int((batch.lengths * (batch.depth + 1)).sum())
    large = histories("large")[0]
    assert set(large.depth.tolist()) == set(range(MAX_DEPTH + 1))
    # Of a batch that is padded to 50, most is padding.
    assert 5 < large.tokens / large.batch < 12


def test_parts_of_a_batch_are_its_sequences() -> None:
    batch = histories("train")[0]
    parts = [batch.part(low, low + 64) for low in range(0, 256, 64)]
    assert torch.equal(torch.cat([p.item_ids for p in parts]), batch.item_ids)
    assert all(int(p.offsets[-1]) == p.tokens for p in parts)
    whole = histories("train", every_position=True)[0]
    assert whole.targets.numel() == whole.tokens
    assert torch.equal(
        torch.cat([whole.part(0, 100).targets, whole.part(100, 256).targets]), whole.targets
    )


@pytest.mark.parametrize("every_position", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_padded_baseline_has_the_models_loss_and_gradients(
    model: ADARec, training: bool, every_position: bool
) -> None:
    batch = histories("train", every_position=every_position)[0].part(0, 24)
    model.config = model.config.replace(supervision="all" if every_position else "prefix")
    model.train(training)
    noise = gumbel = None
    if training:
        seed = model.noise_seed.clone()
        packed = rng.trajectory_noise(seed, batch.tokens, D, T, torch.float64)
        noise = ragged.to_padded(packed, batch.offsets, MAX_LENGTH, dim=1)
        gumbel = rng.gumbel(seed, batch.batch, T + 1, torch.float64)
    wanted = model.loss(batch.as_batch()).total
    baseline = PaddedADARec(model).train(training)
    found = baseline(batch.padded_ids(), batch.lengths, batch.targets, noise, gumbel)
    torch.testing.assert_close(found, wanted)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(wanted, parameters),
        torch.autograd.grad(found, parameters),
        strict=True,
    ):
        torch.testing.assert_close(theirs, ours)


def test_packed_baseline_has_the_models_loss_and_gradients(model: ADARec) -> None:
    batch = histories("train")[0].part(0, 24)
    model.eval()
    wanted = model.loss(batch.as_batch()).total
    found = PackedADARec(model).eval()(batch.item_ids, batch.offsets, batch.targets)
    torch.testing.assert_close(found, wanted)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(wanted, parameters),
        torch.autograd.grad(found, parameters),
        strict=True,
    ):
        torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("baseline", [PackedADARec, PackedSASRec])
def test_peers_of_an_epoch_have_the_models_loss_and_gradients(
    baseline: type[PackedADARec] | type[PackedSASRec],
) -> None:
    off = {"moe": False, "diffusion": False, "depth": "fixed", "lambda_cont": 0.0}
    made = ADARec(
        num_items=12_101, hidden_size=D, max_depth=T, supervision="all", dropout=0.0,
        attention_dropout=0.0, backend="reference", **(off if baseline is PackedSASRec else {}),
    ).double().eval()  # fmt: skip
    batch = histories("train")[0].part(0, 24)
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(1, 12_102, batch.item_ids.shape, generator=generator)
    wanted = made.loss(batch.as_batch()._replace(targets=targets)).total
    longest = [int(batch.lengths.max())] if baseline is PackedSASRec else []
    found = baseline(made).eval()(batch.item_ids, batch.offsets, targets, *longest)
    torch.testing.assert_close(found, wanted)
    parameters = [p for p in made.parameters() if p.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(wanted, parameters, allow_unused=True),
        torch.autograd.grad(found, parameters, allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(theirs, ours)


def test_sasrec_baseline_refuses_what_it_does_not_compute() -> None:
    with pytest.raises(ValueError, match="supervision='prefix'"):
        PackedSASRec(ADARec(num_items=10, hidden_size=D))


def test_packed_baseline_draws_dropout_and_noise() -> None:
    batch = histories("train")[0].part(0, 24)
    baseline = PackedADARec(ADARec(num_items=12_101, hidden_size=D, max_depth=T)).train()
    first, second = (
        float(baseline(batch.item_ids, batch.offsets, batch.targets).detach()) for _ in range(2)
    )
    assert first != second
    # The stand-in for the noise contract is gone again.
    from adarec_fast.packed import encoder_layer

    assert encoder_layer.rng is rng


def test_baselines_recommend_what_the_model_does(model: ADARec) -> None:
    batch = histories("serve-1024")[0].part(0, 24)
    model.eval()
    items, scores = model.recommend((batch.item_ids, batch.offsets), k=5)
    ids = batch.padded_ids()
    with torch.no_grad():
        padded = PaddedADARec(model).eval().recommend(ids, batch.lengths, 5)
    packed = PackedADARec(model).eval().recommend(batch.item_ids, batch.offsets, ids, 5)
    for found in (padded, packed):
        torch.testing.assert_close(found[0], scores)
        assert torch.equal(found[1], items)


def test_baselines_refuse_what_they_do_not_compute() -> None:
    with pytest.raises(ValueError, match="router='level'"):
        PaddedADARec(ADARec(num_items=10, hidden_size=D, router="level"))
    with pytest.raises(ValueError, match="serve-1024"):
        histories("serve-1024", every_position=True)


def test_a_few_users_read_the_table_as_bytes() -> None:
    from bench.test_bench_recommend import Recommendation

    one, many = (Recommendation(name, 64, "forward", "cpu") for name in ("serve-1", "serve-1024"))
    table = one.model.item_embedding.weight.numel()
    assert many.bytes() == many.parameter_bytes()
    assert one.bytes() == one.parameter_bytes() - 4 * table + 12_101 * (64 + 2 * 4)

"""PDRec: its diffusion of preferences, what it makes of them, and its three losses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_shares import check_shares
from helpers_systems import ask_a_service_of, follow_commands
from helpers_training import DATA, config, outcome
from torch import Tensor

from adarec_fast import Recommender, ragged, rng
from adarec_fast.config import ConfigError
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.models.blocks.gaussian import Posterior, diffrec_embedding, variance_betas
from adarec_fast.models.blocks.importance import KEPT, ImportantSteps
from adarec_fast.models.pdrec.config import PDRecConfig
from adarec_fast.models.pdrec.diffusion import Histories, PreferenceDiffusion, snr_weights
from adarec_fast.models.pdrec.losses import Preferences, products
from adarec_fast.models.pdrec.model import PDRec
from adarec_fast.models.pdrec.tables import band, target_weights
from adarec_fast.models.pretrained import skeleton
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import load_run, train

SPLIT = Split(DATA)
SHAPE: dict[str, Any] = {
    "num_items": DATA.num_items, "hidden_size": 8, "num_layers": 1, "max_length": 10, "seed": 3,
    "backend": "packed",
}  # fmt: skip
OWN: dict[str, Any] = {
    "preference_epochs": 5, "preference_hidden": 6, "preference_batch": 16, "candidates": 12,
    "soft_targets": 3, "preference_rate": 0.01,
}  # fmt: skip
BATCHES = TrainingBatches(
    *SPLIT.inputs("train"), supervision="all", batch_size=24, max_length=10, seed=0
)
BATCH = next(iter(BATCHES.epoch(0)))
DOUBLE = torch.float64


def model(**options: Any) -> PDRec:
    made = PDRec(**{**SHAPE, **OWN, **options}).double().train()
    made.begin_training(SPLIT)
    made.begin_epoch(0)
    return made


# -------------------------------------------------------------------- the diffusion


def test_it_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line before anything else, then one every five seconds, and what it came to."""
    clock = iter(float(second) for second in range(10_000))
    monkeypatch.setattr("adarec_fast.models.pdrec.told.time.monotonic", lambda: next(clock))
    model().loss(BATCH)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("pdrec: first, a diffusion of the preferences of ")
    steps = [line for line in lines if ", step " in line]
    assert len(steps) > 1
    assert steps[0].startswith("pdrec: epoch 2 of 5, step 2 of 3")
    assert ", loss " in steps[0]
    (end,) = [line for line in lines if "is trained" in line]
    assert "5 epochs in " in end
    assert "NDCG@10 " in end
    assert lines.index(end) > lines.index(steps[-1])
    assert lines[lines.index(end) + 1].startswith("pdrec: what they prefer, of ")

    monkeypatch.undo()  # in a fraction of a second
    model().loss(BATCH)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_schedule_by_hand() -> None:
    beta = variance_betas(10, 0.01, 0.0005, 0.005)
    assert beta[:2].tolist() == pytest.approx([1e-5, 5.000025e-6], rel=1e-9)
    bar = (1 - beta).cumprod(0)
    assert (1 - bar)[[0, 1, 9]].tolist() == pytest.approx(
        [1e-5, 1.4999975e-5, 5.4999775e-5], rel=1e-6
    )
    posterior = Posterior.of(beta)
    assert posterior.of_x0[[0, 1, 9]].tolist() == pytest.approx([1, 0.333334, 0.090911], abs=1e-6)
    assert posterior.of_x[[0, 1, 9]].tolist() == pytest.approx([0, 0.666666, 0.909089], abs=1e-6)
    assert float(posterior.variance[0]) == 0
    found = snr_weights(bar)
    assert found[[0, 1, 2, 9]].tolist() == pytest.approx(
        [1, 33_333.2, 16_666.7, 1_818.19], rel=1e-5
    )


def test_steps_are_told_as_diffrec_tells_them() -> None:
    found = diffrec_embedding(torch.tensor([0, 3]), 4)
    angle = torch.tensor([3.0, 0.03])
    torch.testing.assert_close(found[1], torch.cat([angle.cos(), angle.sin()]))
    assert found[0].tolist() == [1, 1, 0, 0]


def test_steps_of_large_losses_are_drawn_more_often() -> None:
    steps = ImportantSteps(2)
    for count, chances in ((KEPT - 1, [0.5, 0.5]), (1, [0.999 * 0.25 + 0.0005, 0.7497])):
        both = torch.tensor([0, 1]).repeat(count)
        steps.remember(both, torch.tensor([1.0, 3.0]).repeat(count))
        assert steps.chances().tolist() == pytest.approx(chances, abs=1e-4)
    drawn, weight = steps.draw(torch.tensor([0.0, 0.2, 0.26, 0.9999], dtype=DOUBLE))
    assert drawn.tolist() == [0, 0, 1, 1]
    assert weight.tolist() == pytest.approx([2 * 0.25025, 2 * 0.25025, 2 * 0.74975, 2 * 0.74975])


def test_the_last_losses_are_kept() -> None:
    """In one batch, or loss by loss."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(3, (200,), generator=generator)
    losses = torch.rand(200, generator=generator, dtype=DOUBLE)
    counted = torch.rand(200, generator=generator) < 0.8
    found, wanted = ImportantSteps(3), ImportantSteps(3)
    found.remember(steps[:90], losses[:90], counted[:90])
    found.remember(steps[90:], losses[90:], counted[90:])
    for step, loss in zip(steps[counted], losses[counted], strict=True):
        wanted.remember(step[None], loss[None])
    assert torch.equal(found.losses, wanted.losses)
    assert torch.equal(found.seen, wanted.seen)
    kept = losses[counted & (steps == 1)][-KEPT:]
    torch.testing.assert_close(found.losses[1].sort().values, kept.sort().values)


def test_what_is_diffused() -> None:
    values, offsets = torch.tensor([4, 2, 4, 5]), torch.tensor([0, 3, 4, 4])
    histories = Histories.of(values, offsets, torch.zeros(3, dtype=torch.int64), 0.5)
    found = histories.x0(torch.tensor([1, 0, 2, 0]), 5)
    first = [0.0, 0.0, 0.75, 0.0, 1.0, 0.0]
    assert found.tolist() == [[0.0] * 5 + [1.0], first, [0.0] * 6, first]


def test_size_of_the_diffusion_on_beauty() -> None:
    made: Any = skeleton(PDRecConfig.create(num_items=12_101))
    found = made.auxiliary.diffusion
    sizes = [getattr(found, name).numel() for name in found._NAMES]
    assert sum(sizes) == 24_227_212


def test_preferences_of_a_perfect_and_of_an_empty_diffusion() -> None:
    made = model()
    diffusion = made.auxiliary.diffusion
    x0 = torch.rand(3, 61, dtype=DOUBLE)
    for wanted in (x0, torch.zeros_like(x0)):
        diffusion.forward = lambda x, steps, weights=None, wanted=wanted: wanted  # type: ignore
        torch.testing.assert_close(diffusion.preferences(x0), wanted)


def test_the_diffusion_learns_and_depends_on_its_seed_alone() -> None:
    one = model(preference_epochs=20)
    torch.manual_seed(7)
    other = model(preference_epochs=20)
    for name in PreferenceDiffusion._NAMES:
        assert torch.equal(
            getattr(one.auxiliary.diffusion, name), getattr(other.auxiliary.diffusion, name)
        )
    fresh = PDRec(**SHAPE, **OWN).double()
    histories = Histories.of(
        *SPLIT.inputs("train"), SPLIT.targets("valid"), 0.5
    ).in_dtype(DOUBLE)
    users = torch.arange(DATA.num_users)
    x0 = histories.x0(users, DATA.num_items)
    errors = [
        float((made.auxiliary.diffusion.preferences(x0) - x0).square().mean())
        for made in (one, fresh)
    ]
    assert errors[0] < 0.7 * errors[1]


# -------------------------------------------------------------------- what preferences make


@pytest.mark.parametrize(
    ("preferences", "wanted"),
    [
        ([0.2, 0.4, 1.0], [0.964103, 2.758974, 4.0]), ([-0.2, 0.1, 0.3], [1.115152, 4.0, 4.0]),
        ([0.7], [4.0]), ([0.0, 0.0], [3.8, 4.0]), ([0.3, 0.3], [3.8, 4.0]),
    ],
)  # fmt: skip
def test_weights_by_hand(preferences: list[float], wanted: list[float]) -> None:
    settings = SimpleNamespace(rank_share=0.1, weight_limit=1.0, weight_scale=4.0)
    padded = torch.tensor([[*preferences, -9.0, 9.0]], dtype=DOUBLE)
    there = torch.arange(padded.shape[1])[None] < len(preferences)
    found = target_weights(padded, there, settings)
    assert found[0].tolist() == pytest.approx([*wanted, 0.0, 0.0], abs=1e-6)


def test_a_band_is_cut_from_what_was_not_met() -> None:
    preferences = torch.tensor([[0.5, 0.9, 0.1, 0.3, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0]])
    met = torch.tensor([[False, True, False, False, False], [True, True, True, True, False]])
    pool, sizes = band(preferences, met, 0.5, 0.8)
    assert sizes.tolist() == [2, 1]
    assert pool.tolist() == [[5, 3], [5, 0]]


def test_tables_are_of_each_user() -> None:
    made = model()
    table, diffusion = made.auxiliary.tables(), made.auxiliary.diffusion
    values, offsets = SPLIT.inputs("train")
    histories = Histories.of(values, offsets, SPLIT.targets("valid"), 0.5).in_dtype(DOUBLE)
    for user in (0, 17, 39):
        own = values[offsets[user] : offsets[user + 1]]
        preferences = diffusion.preferences(histories.x0(torch.tensor([user]), DATA.num_items))[0]
        targets = own[1:].flip(0)[:10]
        weights = target_weights(
            preferences[targets][None], torch.ones(1, len(targets)) > 0, made.config
        )
        torch.testing.assert_close(table.weights[user, : len(targets)], weights[0])
        assert not table.weights[user, len(targets) :].any()
        unmet = [i for i in range(1, DATA.num_items + 1) if i not in set(own.tolist())]
        ranked = sorted(unmet, key=lambda item: -float(preferences[item]))
        assert table.candidates[user].tolist() == ranked[:12]
        begin = int(len(unmet) * 0.9)
        size = int(table.sizes[user])
        assert table.pool[user, :size].tolist() == ranked[begin : begin + size]
        assert size == -int(-len(unmet) * 0.99 // 1) - begin


def test_met_items_may_be_soft_targets_as_in_the_code() -> None:
    table = model(exclude_observed=False, candidates=60).auxiliary.tables()
    assert torch.equal(
        table.candidates.sort(1).values, torch.arange(1, 61).int().expand(DATA.num_users, -1)
    )


# -------------------------------------------------------------------- losses


def test_logits() -> None:
    rows, table = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    items = torch.tensor([[1, 2, 0]])
    assert products(rows, items, table, 0.0).tolist() == [[8.0, 3.0, 0.0]]
    assert products(rows, items, table, 5.0)[0].tolist() == pytest.approx([4.0, 3.0, 0.0])


@pytest.mark.parametrize("loss", ["original", "full_ce"])
def test_losses_are_those_of_each_history(loss: Any) -> None:
    """Written out, history by history, without dropout."""
    made = model(loss=loss, dropout=0.0, attention_dropout=0.0, lambda_soft=0.3)
    table, scale = made.auxiliary.tables(), made.auxiliary.scale
    draws = rng.at_place(made.noise_seed)
    uniform = made._drawn(BATCH, draws)
    word = rng.words(draws, torch.arange(len(BATCH.item_ids)), rng.STREAM_NEGATIVE, 1)
    output, weight = made.loss(BATCH), made.item_embedding.weight.detach()

    def logits(h: Tensor, items: Tensor) -> Tensor:
        if not scale:
            return h @ weight[items].T
        return scale * F.cosine_similarity(h[None], weight[items], dim=1)

    rec, soft, negatives = [], [], []
    for row, user in enumerate(BATCH.users.tolist()):
        begin, end = BATCH.offsets[row : row + 2].tolist()
        items, targets = BATCH.item_ids[begin:end], BATCH.targets[begin:end]
        h = made.encoded(items, torch.tensor([0, end - begin]), None).detach()
        for place in range(end - begin):
            w = table.weights[user, end - begin - 1 - place]
            if loss == "original":
                rec.append(w * F.softplus(-logits(h[place], targets[place : place + 1])[0]))
                assert uniform is not None
                below = table.pool[user, rng.below(word[begin + place], table.sizes[user])]
                chosen = torch.stack([uniform[begin + place, 0], below])
                negatives.append(F.softplus(logits(h[place], chosen)).sum())
            else:
                rec.append(w * F.cross_entropy(weight[1:] @ h[place], targets[place] - 1))
        whole = torch.cat([items, targets[-1:]])[-10:]
        last = made.encoded(whole, torch.tensor([0, len(whole)]), None).detach()[-1]
        candidates = table.candidates[user].long()
        best = candidates[logits(last, candidates).topk(3).indices]
        if loss == "original":
            soft.append(F.softplus(-logits(last, best)).mean())
        else:
            soft.append(F.cross_entropy((weight[1:] @ last).expand(3, -1), best - 1))
    means = {"rec": torch.stack(rec).mean(), "soft": torch.stack(soft).mean()}
    total = means["rec"] + 0.3 * means["soft"]
    if negatives:
        means["negatives"] = torch.stack(negatives).mean()
        total = total + 0.5 * means["negatives"]
    assert output.parts.keys() == means.keys()
    for name, mean in means.items():
        torch.testing.assert_close(output.parts[name], mean, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(output.total.detach(), total, rtol=1e-6, atol=1e-9)


def test_without_what_preferences_say_it_is_sasrec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of 1, no soft targets, and the uniform negatives once more in the others' place."""
    made = model(lambda_soft=0.0, cosine_scale=0.0)
    theirs = SASRec(
        **SHAPE, loss="original", supervision="all", layer_norm_eps=1e-12
    ).double().train()  # fmt: skip
    theirs.begin_training(SPLIT)
    monkeypatch.setattr(
        Preferences, "target_weights", lambda _, batch: torch.ones(len(batch.item_ids))
    )
    sampler = theirs.negatives
    assert sampler is not None
    table = made.auxiliary.tables()
    draws = rng.at_place(made.noise_seed)
    owner = ragged.sequence_ids(BATCH.offsets, len(BATCH.item_ids))
    drawn = sampler(draws, BATCH.users[owner], 0)
    sizes = torch.ones(DATA.num_users, dtype=torch.int64)
    given: Any = table._replace(pool=_Always(drawn[:, 0]), sizes=sizes)
    monkeypatch.setattr(Preferences, "tables", lambda _: given)
    found, expected = made.loss(BATCH), theirs.loss(BATCH)
    torch.testing.assert_close(found.total, expected.total)


class _Always:
    """A pool that gives each row its own item."""

    def __init__(self, items: Tensor) -> None:
        self.items = items

    def __getitem__(self, _: Any) -> Tensor:
        return self.items


@pytest.mark.parametrize("options", [{}, {"loss": "full_ce"}], ids=str)
def test_shares_are_the_whole_batch(options: dict[str, Any]) -> None:
    trained = model(**options)

    def made() -> PDRec:
        fresh = PDRec(**{**SHAPE, **OWN, **options}).double().train()
        fresh.begin_training(SPLIT)
        fresh.load_state_dict(trained.state_dict())
        return fresh

    check_shares(BATCHES, made)


def test_negatives_lie_in_the_band_and_were_not_met() -> None:
    made = model()
    table = made.auxiliary.tables()
    values, offsets = SPLIT.inputs("train")
    for user in range(DATA.num_users):
        own = set(values[offsets[user] : offsets[user + 1]].tolist())
        pool = table.pool[user, : int(table.sizes[user])].tolist()
        assert pool
        assert not own & set(pool)
        assert not own & set(table.candidates[user].tolist())


# -------------------------------------------------------------------- use


@pytest.mark.parametrize("options", [{}, {"loss": "full_ce"}, {"backend": "auto"}], ids=str)
def test_recommendations_are_its_logits(options: dict[str, Any]) -> None:
    made = PDRec(**{**SHAPE, **OWN, **options}).eval()
    histories = [[5, 7, 2], [4], list(range(1, 14))]
    items, scores = made.recommend(histories, k=4)
    every = torch.arange(1, DATA.num_items + 1)[None]
    with torch.no_grad():
        for row, history in enumerate(histories):
            read = torch.tensor(history[-10:])
            h = made.encoded(read, torch.tensor([0, len(read)]), None)[-1:]
            logits = products(h, every, made.item_embedding.weight, made.auxiliary.scale)[0]
            logits[torch.tensor(history) - 1] = -torch.inf
            best = logits.topk(4)
            torch.testing.assert_close(scores[row], best.values, rtol=1e-4, atol=1e-6)
            assert torch.equal(items[row], best.indices + 1)
        padded = torch.tensor([[5, 7, 2], [4, 0, 0]])
        torch.testing.assert_close(
            made.user_graph()(padded), made(padded), rtol=1e-4, atol=1e-6
        )
    assert torch.equal(Recommender(made).recommend(histories, k=4).items, items)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pdrec")
    train({**SHAPE, **OWN, "model": "pdrec"}, config(batch_size=16), DATA, folder)
    return folder


def test_it_resumes_within_an_epoch(run: Path, tmp_path: Path) -> None:
    fields = {**SHAPE, **OWN, "model": "pdrec"}
    train(fields, config(batch_size=16), DATA, tmp_path, stop_after_steps=4)
    train(fields, config(batch_size=16), DATA, tmp_path, resume=True)
    assert outcome(run) == outcome(tmp_path)
    found = load_run(run)
    assert {"loss_rec", "loss_soft", "loss_negatives"} <= found.history[-1].keys()
    assert evaluate(found.model, found.split).name == "PDRec"


def test_the_commands_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = follow_commands(
        "pdrec", "--num-layers", "1", "--max-length", "10", "--preference-epochs", "2",
        "--preference-hidden", "6", "--candidates", "12",
    )  # fmt: skip
    assert result["name"] == "PDRec"


def test_a_service_answers_from_it(run: Path) -> None:
    ask_a_service_of(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supervision": "prefix"}, "pdrec weighs the targets of a whole history; use 'all'"),
        ({"band_begin": 0.99, "band_end": 0.9}, r"band_begin=0\.99 must be below band_end=0\.9"),
        ({"least_noise": 0.01}, r"least_noise=0\.01 must be below greatest_noise=0\.005"),
        ({"soft_targets": 13}, "soft_targets=13 is more than candidates=12"),
        ({"loss": "full_ce", "label_smoothing": 0.1}, r"label_smoothing=0\.1: pdrec's targets"),
        ({"diffusion_steps": 1}, "diffusion_steps=1"),
        ({"rank_share": 1.5}, r"rank_share=1\.5"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PDRec(**{**SHAPE, **OWN, **options})


def test_bad_data_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match=r"candidates=60: .* there are 60, of which user number"):
        PDRec(**{**SHAPE, **OWN, "candidates": 60}).begin_training(SPLIT)
    made = PDRec(**SHAPE, **OWN)
    with pytest.raises(ValueError, match=r"call begin_training\(split\) before the first epoch"):
        made.begin_epoch(0)
    made.begin_training(SPLIT)
    with pytest.raises(ValueError, match=r"call begin_epoch\(0\) before the first loss"):
        made.train().loss(BATCH)
    workers: Any = None
    with pytest.raises(ConfigError, match="shard_items=True"):
        made.split_items(workers)

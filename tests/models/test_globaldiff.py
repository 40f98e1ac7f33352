"""GlobalDiff: what it diffuses, the U-Net, the fusion of two rankings, and its two stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_shares import check_shares
from helpers_systems import ask_a_service_of, follow_commands
from helpers_training import DATA, config, outcome

from adarec_fast import Recommender, rng
from adarec_fast.config import ConfigError
from adarec_fast.data import Batch, EvaluationBatch, Split, TrainingBatches
from adarec_fast.export import ExportOptions, export_run
from adarec_fast.models.blocks.gaussian import Posterior, variance_betas
from adarec_fast.models.blocks.weighted_cross_entropy import weighted_rows
from adarec_fast.models.globaldiff.approximator import Pass, SharedBatchNorm, UNet
from adarec_fast.models.globaldiff.model import GlobalDiff, fusion
from adarec_fast.models.globaldiff.related import Related, boost
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import load_run, train

SPLIT = Split(DATA)
SHAPE: dict[str, Any] = {
    "num_items": DATA.num_items, "hidden_size": 8, "num_layers": 1, "max_length": 10, "seed": 3,
    "backend": "packed", "encoder_epochs": 1, "diffusion_steps": 4,
    "image_side": 4,
}  # fmt: skip
MODEL: dict[str, Any] = {
    "model": "globaldiff", **{n: v for n, v in SHAPE.items() if n not in ("num_items", "seed")},
}  # fmt: skip
BATCHES = TrainingBatches(
    *SPLIT.inputs("train"), supervision="prefix", batch_size=16, max_length=10, seed=0
)
BATCH = next(iter(BATCHES.epoch(0)))
DOUBLE = torch.float64


def model(stage: int = 2, **options: Any) -> GlobalDiff:
    made = GlobalDiff(**{**SHAPE, **options}).double().train()
    made.begin_training(SPLIT)
    made.begin_epoch(stage - 1)
    return made


def test_schedule_by_hand() -> None:
    beta = variance_betas(20, 0.01, 0.05, 0.5)
    assert float(1 - (1 - beta).prod()) == pytest.approx(4.512206e-3, rel=1e-6)
    posterior = Posterior.of(beta)
    assert posterior.of_x0[[0, 1, 19]].tolist() == pytest.approx([1, 0.959512, 0.052628], abs=1e-6)
    assert posterior.of_x[[0, 1, 19]].tolist() == pytest.approx([0, 0.040488, 0.947372], abs=1e-6)


# -------------------------------------------------------------------- what is diffused


def related() -> Related:
    """Users {1, 2}, {1, 2, 3}, {2, 3}; 4 with nobody."""
    return Related(torch.tensor([1, 2, 1, 2, 3, 2, 3, 4]), torch.tensor([0, 2, 5, 7, 8]), 4)


def test_what_goes_with_an_item_by_hand() -> None:
    found = related()
    row = slice(*found.begins[1:3].tolist())
    assert found.items[row].tolist() == [1, 2, 3]
    assert found.cosines[row].tolist() == pytest.approx([1.0, 0.816497, 0.5])
    assert found.items[slice(*found.begins[4:6].tolist())].tolist() == [4]
    assert boost(torch.tensor([0, 1])).tolist() == [2.5, 1.75]
    # The target 1 after (3, 3, 2): distances 3, 2 and 1, of which the repeated item's least.
    one = torch.tensor([1])
    batch = Batch(torch.tensor([3, 3, 2, 4]), torch.tensor([0, 3, 4]), torch.tensor([1, 2]), one)
    rows, items, chances = found.chances(batch)
    assert rows.tolist() == [0] * 3 + [1] * 3
    assert items.tolist() == [1, 2, 3, 1, 2, 3]
    assert chances.tolist() == pytest.approx([1.0, 1.0, 0.5 * 1.5, 0.816497, 1.0, 0.816497])


def test_the_last_items_of_histories_may_alone_count() -> None:
    found = Related(torch.tensor([1, 2, 3, 2, 3]), torch.tensor([0, 3, 5]), 3, last=2)
    assert found.items[slice(*found.begins[1:3].tolist())].tolist() == [1]
    assert found.items[slice(*found.begins[2:4].tolist())].tolist() == [2, 3]


def test_x0_is_drawn_by_its_chances() -> None:
    found, rows = related(), 4_000
    batch = Batch(
        torch.tensor([4]).repeat(rows), torch.arange(rows + 1), torch.ones(rows).long(),
        torch.zeros(rows).long(),
    )  # fmt: skip
    draws = rng.at_place(rng.spread_seed(1))
    x0 = found.drawn(batch, draws)
    assert x0.unique().tolist() == [0.0, 1.0]
    assert bool((x0[:, 1] == 1).all())
    assert not x0[:, [0, 4]].any()
    assert float(x0[:, 2].mean()) == pytest.approx(0.816497, abs=0.025)
    assert float(x0[:, 3].mean()) == pytest.approx(0.5, abs=0.032)
    # A share draws what the whole batch draws there.
    half = Batch(batch.item_ids[:10], batch.offsets[:11], batch.targets[:10], batch.users[:10])
    there = rng.at_place(rng.spread_seed(1), torch.tensor([70, 70]))
    assert torch.equal(found.drawn(half, there), x0[70:80])


def test_normals_of_wide_rows() -> None:
    draws = rng.spread_seed(1)
    whole = rng.wide_normals(draws, torch.arange(300), 50, DOUBLE, 7)
    assert whole.shape == (300, 50)
    assert float(whole.mean()) == pytest.approx(0, abs=0.03)
    assert float(whole.std()) == pytest.approx(1, abs=0.03)
    assert torch.equal(rng.wide_normals(draws, torch.tensor([9]), 50, DOUBLE, 7)[0], whole[9])
    w0, w1, _, _ = rng.philox(draws, torch.tensor([9 * 13]), 7, 0)
    first, second = rng.box_muller(w0, w1, DOUBLE)
    assert torch.equal(whole[9, [0, 13]], torch.cat([first, second]))
    assert whole.unique().numel() == whole.numel()


# -------------------------------------------------------------------- the approximator


def test_the_unet() -> None:
    net = UNet((0.3, 0.4)).train()
    assert sum(parameter.numel() for parameter in net.parameters()) == 104_833
    image = net(torch.randn(3, 1, 16, 16), Pass(None, None, "packed"))
    assert image.shape == (3, 1, 16, 16)
    assert bool(((image > 0) & (image < 1)).all())


def test_normalisation_against_torchs() -> None:
    mine, theirs = SharedBatchNorm(3).double(), torch.nn.BatchNorm2d(3, dtype=DOUBLE)
    x = torch.randn(5, 3, 4, 4, dtype=DOUBLE)
    torch.testing.assert_close(mine(x, None), theirs(x))
    torch.testing.assert_close(mine.running_mean, theirs.running_mean)
    torch.testing.assert_close(mine.running_variance, theirs.running_var)
    mine.eval(), theirs.eval()
    torch.testing.assert_close(mine(x, None), theirs(x))


@pytest.mark.parametrize("signs", [True, False])
def test_what_is_read_of_x(signs: bool) -> None:
    part = model(normalise="sign" if signs else "l2").eval().approximator
    x = torch.tensor([[3.0, 0.0, -4.0]], dtype=DOUBLE)
    wanted = [1.0, 0.0, -1.0] if signs else [0.6, 0.0, -0.8]
    assert part.normalised(x)[0].tolist() == pytest.approx(wanted)
    torch.testing.assert_close(part.normalised(7 * x), part.normalised(x))


def test_losses_of_rows() -> None:
    hidden, table = torch.randn(4, 3, dtype=DOUBLE), torch.randn(6, 3, dtype=DOUBLE)
    targets, weights = torch.tensor([1, 5, 0, 2]), torch.tensor([1.0, 2.0, 9.0, 0.5]).double()
    each = F.cross_entropy(hidden @ table[1:].T, targets - 1, reduction="none", ignore_index=-1)
    mean, rows = weighted_rows(hidden.requires_grad_(), table, targets, weights)
    torch.testing.assert_close(rows, each.detach())
    torch.testing.assert_close(mean, (each * weights).sum() / 3)
    assert not rows.requires_grad


# -------------------------------------------------------------------- two stages


def test_in_its_first_stage_it_is_sasrec() -> None:
    mine = model(stage=1)
    fields = {n: v for n, v in SHAPE.items() if n not in ("encoder_epochs", "diffusion_steps",
                                                   "image_side")}
    theirs = SASRec(**fields, layer_norm_eps=1e-12).double().train()
    found, expected = mine.loss(BATCH), theirs.loss(BATCH)
    assert torch.equal(found.total, expected.total)
    assert found.parts["diffusion"] == 0
    found.total.backward()
    given = {name.partition(".")[0] for name, p in mine.named_parameters() if p.grad is not None}
    assert given == {"item_embedding", "backbone"}
    theirs.eval(), mine.eval()
    histories = [[3, 4], [5]]
    assert torch.equal(*(one.recommend(histories, k=4)[0] for one in (mine, theirs)))


@pytest.mark.parametrize("normalise", ["l2", "sign"])
def test_the_diffusions_loss_by_its_equations(normalise: Any) -> None:
    options = {"approximator_dropout": 0.0, "image_dropout": 0.0, "normalise": normalise}
    made = model(**options)
    generator = torch.Generator().manual_seed(0)
    made.steps.remember(
        torch.arange(4).repeat(10), torch.rand(40, generator=generator, dtype=DOUBLE)
    )
    known = made.steps.losses.clone()
    draws, row = rng.at_place(made.noise_seed), torch.arange(16)
    word = rng.words(draws, row, rng.STREAM_DIFFUSION_STEP, 0)
    chances = made.steps.chances()
    uniform = rng.to_uniform(word, DOUBLE)
    steps = (uniform[:, None] >= chances.cumsum(0)).sum(1)
    bar = made.alpha_bar[steps][:, None]
    noise = rng.wide_normals(draws, row, 61, DOUBLE, rng.STREAM_DIFFUSION_NOISE)
    assert made.related is not None
    x = bar.sqrt() * made.related.drawn(BATCH, draws).double() + (1 - bar).sqrt() * noise
    hidden = []
    for one in range(16):
        begin, end = BATCH.offsets[one : one + 2].tolist()
        hidden.append(made.encoded(BATCH.item_ids[begin:end], torch.tensor([0, end - begin]), None))
    history = torch.stack([h.mean(0) for h in hidden]).detach()
    last = torch.stack([h[-1] for h in hidden]).detach()
    part = made.approximator
    read = x.sign() if normalise == "sign" else x / x.norm(dim=1, keepdim=True)
    angle = steps[:, None] * 10_000 ** (-torch.arange(32) / 32)
    told = [read @ part.read + part.read_bias, history, last, angle.cos(), angle.sin()]
    image = part.paint(torch.cat(told, 1).double()).view(16, 1, 4, 4)
    image = part.image(image, Pass(None, None, "packed")).flatten(1)
    logits = part.hidden(image) @ part.write[1:].T + part.write_bias[1:]
    each = F.cross_entropy(logits, BATCH.targets - 1, reduction="none")
    output = made.loss(BATCH)
    wanted = (each / (4 * chances[steps])).mean()
    torch.testing.assert_close(output.total, wanted, rtol=1e-6, atol=1e-9)
    assert output.parts["rec"] == 0
    # Its own losses are remembered, and the encoder gets no gradient.
    expected = {int(s): float(e) for s, e in zip(steps, each.detach(), strict=True)}
    assert not torch.equal(made.steps.losses, known)
    for step, lost in expected.items():
        assert lost in [pytest.approx(float(v), rel=1e-6) for v in made.steps.losses[step]]
    output.total.backward()
    given = {name.partition(".")[0] for name, p in made.named_parameters() if p.grad is not None}
    assert given == {"approximator"}


@pytest.mark.parametrize("stage", [1, 2])
def test_shares_are_the_whole_batch(stage: int) -> None:
    made = []

    def fresh() -> GlobalDiff:
        made.append(model(stage))
        return made[-1]

    check_shares(BATCHES, fresh)
    whole = made[0].state_dict()
    for other in made[1:]:
        for name in ("steps.losses", "approximator.image.inner.first_norm.running_variance"):
            torch.testing.assert_close(other.state_dict()[name], whole[name])


def test_a_worker_without_an_example_takes_part() -> None:
    """Three workers for two examples: sums over workers wait for all."""
    small = TrainingBatches(
        *SPLIT.inputs("train"), supervision="prefix", batch_size=2, max_length=10, seed=0
    )
    check_shares(small, model)


# -------------------------------------------------------------------- ranking


def test_fusion_by_hand() -> None:
    down, up = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    wanted = [0.665241, 0.244728, 0.665241]
    assert fusion(down, up, 0.5)[0].tolist() == pytest.approx(wanted, abs=1e-6)
    steep = torch.tensor([[3.0, 1.0, 0.0]])
    wanted = [0.843795, 0.179462, 0.665241]
    assert fusion(steep, up, 0.5)[0].tolist() == pytest.approx(wanted, abs=1e-6)
    scores = torch.randn(3, 9)
    assert torch.equal(fusion(-scores, scores, 0.0).argsort(1), scores.argsort(1))


def test_scores_go_back_all_steps_from_the_encoders() -> None:
    made = model().eval()
    histories = torch.tensor([5, 7, 2, 4]), torch.tensor([0, 3, 4])
    batch = EvaluationBatch.of_nobody(*histories)
    with torch.no_grad():
        history, last = made._history(*histories)
        own = made.score(last)
        own[:, 0] = 0.0
        x, beta = own.clone(), made._betas()
        bar = torch.cat([torch.ones(1, dtype=DOUBLE), (1 - beta).cumprod(0)])
        for step in (3, 2, 1, 0):
            given = Pass(None, None, "packed")
            at = torch.full((1,), step)
            vectors = made.approximator(x, history, last, at, given)
            x0 = vectors @ made.approximator.table().T
            of_x0 = beta[step] * bar[step].sqrt() / (1 - bar[step + 1])
            of_x = (1 - bar[step]) * (1 - beta[step]).sqrt() / (1 - bar[step + 1])
            x = of_x0 * x0 + of_x * x
        for scores in (x, own):
            scores[[0, 0, 0, 1], histories[0]] = -9999
            scores[:, 0] = -9999
        wanted = fusion(x, own, 0.5)
        found = made.scores(batch)
    torch.testing.assert_close(found[:, 1:], wanted[:, 1:], rtol=1e-6, atol=1e-9)
    assert bool((found[:, 0] == -torch.inf).all())


@pytest.mark.parametrize("noise", [False, True])
def test_rankings_go_by_the_history_alone(noise: bool) -> None:
    made = model(sampling_noise=noise).float().eval()
    histories = [[9], [5, 7, 2], list(range(1, 14))]
    items, _ = made.recommend(histories, k=5)
    assert torch.equal(made.recommend(histories[1:2], k=5)[0], items[1:2])
    assert not set(items[1].tolist()) & {5, 7, 2}
    assert torch.equal(Recommender(made).recommend(histories, k=5).items, items)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("globaldiff")
    train(MODEL, config(), DATA, folder)
    return folder


def test_it_resumes_within_its_second_stage(run: Path, tmp_path: Path) -> None:
    train(MODEL, config(), DATA, tmp_path, stop_after_steps=6)
    train(MODEL, config(), DATA, tmp_path, resume=True)
    assert outcome(run) == outcome(tmp_path)
    found = load_run(run)
    first, last = found.history
    assert first["loss_rec"] > 0
    assert first["loss_diffusion"] == last["loss_rec"] == 0
    assert last["loss_diffusion"] > 0
    assert evaluate(found.model, found.split).name == "GlobalDiff"
    with pytest.raises(ConfigError, match="GlobalDiff scores items otherwise than by products"):
        export_run(found, tmp_path / "export", ["torch"], ExportOptions(k=3))


def test_the_commands_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = follow_commands(
        "globaldiff", "--num-layers", "1", "--max-length", "10", "--encoder-epochs", "1",
        "--diffusion-steps", "4", "--image-side", "4",
    )  # fmt: skip
    assert result["name"] == "GlobalDiff"


def test_a_service_answers_from_it(run: Path) -> None:
    ask_a_service_of(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supervision": "all"}, "supervision='all': the model globaldiff takes 'prefix'"),
        ({"least_noise": 0.5}, r"least_noise=0\.5 must be below greatest_noise=0\.5"),
        ({"encoder_epochs": 0}, "encoder_epochs=0"),
        ({"image_side": 5}, "image_side=5 must be even"),
        ({"fusion": 1.5}, r"fusion=1\.5"),
        ({"normalise": "none"}, "normalise='none'"),
        ({"num_heads": 3}, "num_heads=3"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GlobalDiff(**{**SHAPE, **options})


def test_what_others_ask_of_it_is_refused_in_words() -> None:
    made = GlobalDiff(**SHAPE).train()
    made.begin_epoch(1)
    with pytest.raises(ValueError, match=r"call begin_training\(split\) before the first loss"):
        made.loss(BATCH)
    workers: Any = None
    with pytest.raises(ConfigError, match="shard_items=True: GlobalDiff"):
        made.split_items(workers)

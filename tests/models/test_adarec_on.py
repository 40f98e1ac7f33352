"""ADARec on other systems: without ADARec the other one, without its losses ADARec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_shares import check_shares
from helpers_training import DATA, config, outcome

from adarec_fast import ADARec, Recommender, ragged
from adarec_fast.config import ConfigError
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.models.adarec.router import without_experts
from adarec_fast.models.registry import build, create_config
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import load_run, train

SPLIT = Split(DATA)
SHAPE: dict[str, Any] = {
    "num_items": DATA.num_items, "hidden_size": 8, "num_layers": 1, "max_length": 10, "seed": 3,
    "backend": "packed", "num_intents": 4, "dropout": 0.3, "attention_dropout": 0.3,
}  # fmt: skip
OFF: dict[str, Any] = {
    "depth": "fixed", "diffusion": False, "moe": False, "lambda_deno": 0.0, "lambda_cont": 0.0,
    "lambda_expl": 0.0,
}  # fmt: skip
BATCHES = TrainingBatches(
    *SPLIT.inputs("train"), supervision="all", batch_size=24, max_length=10, seed=0
)
BATCH = next(iter(BATCHES.epoch(0)))


def model(name: str, **options: Any) -> Any:
    fields = {"model": name, **SHAPE, **options}
    made: Any = build(create_config(fields)).double().train()
    made.begin_training(SPLIT)
    made.begin_epoch(0)
    return made


B: dict[str, Any] = {"prediction": "backbone"}
B_OFF: dict[str, Any] = {
    **B, "depth": "fixed", "diffusion": False, "lambda_deno": 0.0, "lambda_expl": 0.0
}  # fmt: skip


@pytest.mark.parametrize("off", [OFF, B_OFF], ids=["A", "B"])
@pytest.mark.parametrize("other", ["iclrec", "elcrec"])
@pytest.mark.parametrize("loss", ["original", "full_ce"])
def test_without_adarec_it_is_the_other_system_step_by_step(
    other: str, loss: str, off: dict[str, Any]
) -> None:
    found = []
    for one in (model(other, loss=loss), model(f"adarec-{other}", loss=loss, **off)):
        optimizer = torch.optim.Adam(one.parameters())
        steps = []
        for batch in BATCHES.epoch(0):
            optimizer.zero_grad()
            output = one.loss(batch)
            output.total.backward()
            optimizer.step()
            steps += [output.total.detach(), output.parts["rec"]]
        found.append((torch.stack(steps), dict(one.state_dict())))
    assert len(found[0][0]) > 3
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)


def test_without_the_other_systems_losses_it_is_adarec() -> None:
    off = {"lambda_sequence": 0.0, "lambda_intent": 0.0}
    mine = model("adarec-iclrec", **off)
    fields = {k: v for k, v in SHAPE.items() if k != "num_intents"}
    theirs = ADARec(**fields, supervision="all", layer_norm_eps=1e-12).double().train()
    assert torch.equal(mine.loss(BATCH).total, theirs.loss(BATCH).total)
    histories = [[3, 4], [5]]
    found, expected = (one.recommend(histories, k=4) for one in (mine, theirs))
    assert torch.equal(found[0], expected[0])


def test_the_encoder_gets_the_other_systems_gradients_beside_adarecs() -> None:
    """Of the encoder and the items, with all else of ADARec on."""
    gradients = []
    for options in ({}, {"lambda_sequence": 0.0, "lambda_intent": 0.0}):
        one = model("adarec-iclrec", **options)
        one.loss(BATCH).total.backward()
        gradients.append(one.item_embedding.weight.grad)
    both = []
    for options in ({}, {"lambda_sequence": 0.0, "lambda_intent": 0.0}):
        other = model("iclrec", **options)
        other.loss(BATCH).total.backward()
        both.append(other.item_embedding.weight.grad)
    torch.testing.assert_close(gradients[0] - gradients[1], both[0] - both[1])


@pytest.mark.parametrize("loss", ["original", "full_ce"])
def test_iocrecs_contrast_stays_and_its_own_ranking_goes(loss: str) -> None:
    """IOCRec learns from prefixes and ranks by its intents: only its contrast is in both."""
    mine = model("adarec-iocrec", loss=loss, num_intents=3, **OFF)
    plain = model("adarec-iocrec", loss=loss, num_intents=3, lambda_contrast=0.0, **OFF)
    theirs = model(
        "iocrec", num_intents=3, positions="end", num_layers=1, feedforward_multiplier=4
    )
    theirs.load_state_dict(
        {name: mine.state_dict()[name] for name in theirs.state_dict()}, strict=True
    )
    found, without = mine.loss(BATCH), plain.loss(BATCH)
    ends = BATCH.targets[BATCH.offsets[1:] - 1]
    wanted = theirs.loss(BATCH._replace(targets=ends)).parts["contrast"]
    torch.testing.assert_close(found.parts["aux_contrast"], wanted)
    torch.testing.assert_close(found.total, without.total + 0.1 * wanted)
    assert "aux_contrast" not in without.parts
    histories = [[3, 4], [5]]
    fields = {k: v for k, v in SHAPE.items() if k != "num_intents"}
    expected = ADARec(**fields, **OFF, supervision="all", layer_norm_eps=1e-12).double()
    expected.load_state_dict({n: mine.state_dict()[n] for n in expected.state_dict()})
    assert torch.equal(*(one.recommend(histories, k=4)[0] for one in (mine, expected)))


PREFIX = {"supervision": "prefix"}
PREFIXES = TrainingBatches(
    *SPLIT.inputs("train"), supervision="prefix", batch_size=24, max_length=10, seed=0
)


@pytest.mark.parametrize("pooling", ["position", "sum"])
def test_iocrecs_read_out_without_adarec_is_iocrec_step_by_step(pooling: str) -> None:
    """Reading B. The other's layers are wider, and its positions count from the left, elsewhere."""
    one = {"pooling": pooling, "num_layers": 1, "feedforward_multiplier": 4}
    found = []
    for name, options in (("iocrec", {"positions": "end"}), ("adarec-iocrec", B_OFF | PREFIX)):
        made = model(name, **one, **options)
        optimizer = torch.optim.Adam(made.parameters())
        steps = []
        for batch in PREFIXES.epoch(0):
            optimizer.zero_grad()
            output = made.loss(batch)
            output.total.backward()
            optimizer.step()
            steps.append(output.total.detach())
        scores = made.eval().represent(BATCH.item_ids, BATCH.offsets)
        found.append((torch.stack(steps), scores, dict(made.state_dict())))
    (losses, users, state), (mine, vectors, own) = found
    assert len(losses) > 3
    assert vectors.shape == (BATCH.offsets.shape[0] - 1, 4, 8)
    torch.testing.assert_close(mine, losses)
    torch.testing.assert_close(vectors, users)
    torch.testing.assert_close(own, state, rtol=1e-9, atol=1e-12)


def test_iocrecs_read_out_ranks_by_the_levels(tmp_path: Path) -> None:
    """The levels' mean at all positions is what it takes for local states."""
    one = model("adarec-iocrec", **B, **PREFIX, max_depth=2)
    output = one.loss(next(iter(PREFIXES.epoch(0))))
    output.total.backward()
    for name in ("denoiser.w1", "depth_controller.w_out", "auxiliary.intents.disentangle.key.bias"):
        assert one.get_parameter(name).grad.abs().max() > 0
    one.eval()
    histories = BATCH.item_ids, BATCH.offsets
    out = one(histories, return_hierarchy=True)
    owner = ragged.sequence_ids(BATCH.offsets, BATCH.item_ids.shape[0])
    reached = torch.arange(3)[:, None] <= out.depth[owner]
    levels = torch.where(reached[..., None], out.hierarchy.levels, 0.0)
    mean = levels.sum(0) / (1 + out.depth[owner])[:, None]
    theirs = model("iocrec", positions="end", num_layers=1, feedforward_multiplier=4).eval()
    theirs.load_state_dict({name: one.state_dict()[name] for name in theirs.state_dict()})
    torch.testing.assert_close(out.user, theirs._intents(*histories, mean, None))
    sampled = model("adarec-iocrec", **B, **PREFIX, max_depth=2, evaluation_samples=2).eval()
    assert sampled.represent(*histories).shape == out.user.shape
    with pytest.raises(ConfigError, match="an export has one vector of a user"):
        one.user_graph()

    fields = {**SHAPE, **B, **PREFIX, "model": "adarec-iocrec", "max_depth": 2}
    train(fields, config(batch_size=64), DATA, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert Recommender(run.model).recommend([[3, 4]], k=4).items.shape == (1, 4)
    assert evaluate(run.model, run.split).overall["HR@10"] >= 0


def test_what_intents_cannot_do_is_refused() -> None:
    whole: dict[str, Any] = {**SHAPE, "model": "adarec-iocrec", **B}
    for options, told in (
        ({}, "supervision='all' with prediction='backbone': intents read the whole history"),
        (PREFIX | {"loss": "original"}, "loss='original' with prediction='backbone': IOCRec's own"),
        (PREFIX | {"label_smoothing": 0.1}, "label_smoothing=0.1 with prediction='backbone'"),
        (PREFIX | {"residual": True}, "residual=True with prediction='backbone'"),
    ):
        with pytest.raises(ConfigError, match=told):
            create_config({**whole, **options})


@pytest.mark.parametrize("options", [{}, {"supervision": "prefix"}, {**B, **PREFIX}])
def test_shares_of_a_contrast_of_intents(options: dict[str, Any]) -> None:
    batches = TrainingBatches(
        *SPLIT.inputs("train"), supervision=options.get("supervision", "all"), batch_size=24,
        max_length=10, seed=0,
    )  # fmt: skip
    check_shares(batches, lambda: model("adarec-iocrec", max_depth=2, **options))


def test_the_other_systems_read_out_ranks_by_the_levels() -> None:
    """Reading B: no experts, no contrast of levels, and the last vector of the levels' mean."""
    one = model("adarec-elcrec", **B, moe=True, lambda_cont=0.3)
    assert (one.config.moe, one.config.lambda_cont) == (False, 0.0)
    assert not [name for name, _ in one.named_parameters() if "expert" in name or "router" in name]
    output = one.loss(BATCH)
    assert output.parts["cont"] == 0.0
    output.total.backward()
    for name in ("denoiser.w1", "depth_controller.w_out", "auxiliary.centres"):
        assert one.get_parameter(name).grad.abs().max() > 0
    # Without diffusion all levels are E itself, whose mean the encoder's own last vector is.
    plain, theirs = model("adarec-elcrec", **B, diffusion=False).eval(), model("elcrec").eval()
    theirs.load_state_dict(
        {name: plain.state_dict()[name] for name in theirs.state_dict()}
    )
    histories = torch.tensor([3, 4, 5]), torch.tensor([0, 2, 3])
    torch.testing.assert_close(plain.represent(*histories), theirs.represent(*histories))


@pytest.mark.parametrize("readout", ["mean", "deepest"])
def test_levels_are_read_out_as_told(readout: str) -> None:
    one = model("adarec-iclrec", **B, level_readout=readout, max_depth=3).eval()
    out = one((BATCH.item_ids, BATCH.offsets), return_hierarchy=True)
    last = BATCH.offsets[1:] - 1
    for user, depth in enumerate(out.depth.tolist()):
        levels = out.hierarchy.levels[: depth + 1, last[user]]
        expected = levels.mean(0) if readout == "mean" else levels[depth]
        torch.testing.assert_close(out.user[user], expected)
    graph = build(one.config.replace(backend="packed")).eval()
    graph.load_state_dict(one.float().state_dict())
    padded = torch.tensor([[3, 4, 0], [5, 0, 0]])
    jagged = torch.tensor([3, 4, 5]), torch.tensor([0, 2, 3])
    torch.testing.assert_close(
        graph.user_graph()(padded), graph(jagged).user, rtol=1e-4, atol=1e-6
    )


def test_the_deepest_level_alone_teaches_the_depth() -> None:
    """By y, the straight-through choice: each computed level's product with the gradient."""
    x0 = torch.randn(4, 2, 3, dtype=torch.float64)
    depth = torch.tensor([2, 0])
    mass = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    found = without_experts(x0, depth, mass, "deepest")
    assert torch.equal(found, torch.stack([x0[2, 0], x0[0, 1]]))
    found.sum().backward()
    sums = x0.sum(-1)
    expected = torch.zeros(4, 2, dtype=torch.float64)
    expected[0] = sums[0]
    expected[1, 0], expected[2, 0] = sums[1, 0] - sums[0, 0], sums[2, 0] - sums[1, 0]
    torch.testing.assert_close(mass.grad, expected)


@pytest.mark.parametrize("options", [{}, {"loss": "original"}, B])
def test_shares_lose_what_the_batch_loses(options: dict[str, Any]) -> None:
    check_shares(BATCHES, lambda: model("adarec-elcrec", max_depth=2, **options))


def test_it_trains_resumes_and_ranks(tmp_path: Path) -> None:
    fields = {**SHAPE, "model": "adarec-elcrec", "max_depth": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(fields, config(batch_size=16), DATA, whole)
    train(fields, config(batch_size=16), DATA, parts, stop_after_steps=4)
    train(fields, config(batch_size=16), DATA, parts, resume=True)
    assert outcome(whole) == outcome(parts)
    run = load_run(whole)
    line = run.history[-1]
    names = ("rec", "deno", "cont", "expl", "aux_sequence", "aux_intent", "aux_cluster")
    weights = (1.0, 0.1, 0.1, 0.01, 0.1, 0.1, 1.0)
    total = sum(w * line[f"loss_{name}"] for name, w in zip(names, weights, strict=True))
    assert line["loss"] == pytest.approx(total, rel=1e-5)
    assert line["mean_depth"] > 0
    assert set(run.model.diagnostics().labels()) == set(names)
    assert evaluate(run.model, run.split).name == "ADARecELCRec"
    assert Recommender(run.model).recommend([[3, 4]], k=4).items.shape == (1, 4)


def test_a_loss_that_is_no_number_is_named() -> None:
    one = model("adarec-iclrec", max_depth=2)
    told = one.diagnostics()
    sums = torch.zeros(told.size, dtype=torch.float64)
    bad_step = torch.tensor(-1)
    bad_parts = torch.zeros(len(told.watched), dtype=torch.bool)
    output = one.loss(BATCH)
    norm = torch.ones(())
    told.add(sums, bad_step, bad_parts, output, norm, 24, 1)
    assert int(bad_step) == -1
    assert not bad_parts.any()
    parts = {**output.parts, "aux_intent": torch.tensor(float("nan"))}
    told.add(sums, bad_step, bad_parts, output._replace(parts=parts), norm, 24, 2)
    told.add(sums, bad_step, bad_parts, output, norm, 24, 3)
    assert int(bad_step) == 2
    assert [name for name, bad in zip(told.watched, bad_parts, strict=True) if bad] == [
        "aux_intent"
    ]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="level_readout='deepest' is for moe=False"):
        create_config({**SHAPE, "model": "adarec-elcrec", "level_readout": "deepest"})
    with pytest.raises(ConfigError, match="prediction"):
        create_config({**SHAPE, "model": "adarec-elcrec", "prediction": "both"})
    with pytest.raises(ConfigError, match="num_intents=40: k-means needs more histories"):
        model("adarec-iclrec", num_intents=40)
    with pytest.raises(ConfigError, match="softens the targets of the full cross entropy"):
        create_config(
            {**SHAPE, "model": "adarec-elcrec", "loss": "original", "label_smoothing": 0.1}
        )


def test_another_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="backbone='package:Class': the encoder here is"):
        create_config({**SHAPE, "model": "adarec-iclrec", "backbone": "package:Class"})

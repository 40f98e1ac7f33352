"""BERT4Rec: by hand, against torch's own layers on padded batches, and by the usual commands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_shares import check_shares
from helpers_systems import ask_a_service, follow_commands
from helpers_training import DATA, config, outcome
from torch import Tensor, nn

from adarec_fast import Recommender, ragged, rng
from adarec_fast.config import ConfigError
from adarec_fast.data import Batch, Split, TrainingBatches
from adarec_fast.export import ExportOptions, export_run
from adarec_fast.models.bert4rec.cloze import hidden_counts, hidden_items
from adarec_fast.models.bert4rec.model import BERT4Rec
from adarec_fast.models.blocks.next_place import with_next
from adarec_fast.training import load_run, train

SHAPE: dict[str, Any] = {
    "num_items": DATA.num_items, "hidden_size": 8, "num_layers": 2, "max_length": 10, "seed": 3,
    "backend": "packed", "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
MODEL: dict[str, Any] = {
    "model": "bert4rec", "hidden_size": 8, "num_layers": 1, "max_length": 10, "backend": "packed",
}  # fmt: skip
SEED = rng.at_place(rng.spread_seed(7))


def batches(size: int = 16) -> TrainingBatches:
    return TrainingBatches(
        *Split(DATA).inputs("train"), supervision="cloze", batch_size=size, max_length=10, seed=0
    )


def packed(*histories: list[int]) -> Batch:
    values = torch.tensor([item for history in histories for item in history])
    offsets = torch.tensor([0, *(len(history) for history in histories)]).cumsum(0)
    return Batch(values, offsets, values, torch.arange(len(histories)))


def hides(model: BERT4Rec, batch: Batch) -> Tensor:
    """What the next loss hides."""
    return hidden_items(
        batch.offsets, batch.item_ids.shape[0], rng.at_place(model.noise_seed),
        share=model.config.mask_share, last_share=model.config.last_share,
    )  # fmt: skip


def test_an_example_is_a_whole_history() -> None:
    made = TrainingBatches(
        torch.tensor([5, 1, 2, 3, 4]), torch.tensor([0, 1, 5]), supervision="cloze", batch_size=2,
        max_length=3, seed=0,
    )  # fmt: skip
    batch = next(iter(made.epoch(0)))
    assert torch.equal(batch.targets, batch.item_ids)
    found = [batch.item_ids[a:b].tolist() for a, b in batch.offsets.unfold(0, 2, 1).tolist()]
    assert sorted(found) == [[2, 3, 4], [5]]


def test_how_many_items_are_hidden() -> None:
    lengths = torch.tensor([1, 2, 3, 4, 5, 9, 10, 11, 20, 48, 50])
    assert hidden_counts(lengths, 0.6).tolist() == [1, 1, 2, 2, 3, 5, 6, 7, 12, 29, 30]


def test_which_items_are_hidden() -> None:
    offsets = torch.arange(0, 4 * 3001, 4)
    hidden = hidden_items(offsets, 12_003, SEED, share=0.6, last_share=0.25)
    assert not hidden[12_000:].any()  # capacity
    rows = hidden[:12_000].view(-1, 4)
    last = (rows == torch.tensor([False, False, False, True])).all(1)
    assert set(rows.sum(1).tolist()) == {1, 2}
    assert torch.equal(last, rows.sum(1) == 1)
    assert abs(last.double().mean() - 0.25) < 3 * math.sqrt(0.25 * 0.75 / 3000)
    others = rows[~last].double()
    assert (others.mean(0) - 0.5).abs().max() < 3 * math.sqrt(0.25 / others.shape[0])
    # A share of a batch hides what the whole batch does there.
    place = rng.at_place(rng.spread_seed(7), torch.tensor([40, 10]))
    part = hidden_items(offsets[:21], 80, place, share=0.6, last_share=0.25)
    assert torch.equal(part, hidden[40:120])


def test_what_is_ranked_from() -> None:
    batch = packed([1, 2, 3, 4], [5], [6, 7])
    for limit, items in ((3, [2, 3, 4, 0, 5, 0, 6, 7, 0, 0]), (9, [1, 2, 3, 4, 0, 5, 0, 6, 7, 0])):
        values, behind, offsets = with_next(batch.item_ids, batch.offsets, limit)
        assert values.tolist() == items
        assert offsets.tolist() == [0, min(4, limit) + 1, min(4, limit) + 3, min(4, limit) + 6]
        assert behind.nonzero()[:, 0].tolist() == (offsets[1:] - 1).tolist()


def padded_loss(model: BERT4Rec, batch: Batch, hidden: Tensor) -> Tensor:
    """The same by torch's own encoder layers on right-padded histories."""
    length, size = model.config.max_length, model.config.hidden_size
    ids = ragged.to_padded(batch.item_ids, batch.offsets, length)
    covered = ragged.to_padded(hidden, batch.offsets, length)
    x = torch.where(covered[..., None], model.mask, model.item_embedding.weight[ids])
    norm = model.backbone.norm
    x = F.layer_norm(x + model.backbone.position.weight, (size,), norm.weight, norm.bias, 1e-12)
    for ours in model.backbone.layers:
        theirs = nn.TransformerEncoderLayer(
            size, 2, 4 * size, dropout=0.0, activation="gelu", batch_first=True, dtype=x.dtype
        )
        names = {
            "self_attn.in_proj_weight": ours.qkv.weight, "self_attn.in_proj_bias": ours.qkv.bias,
            "self_attn.out_proj.weight": ours.out.weight, "self_attn.out_proj.bias": ours.out.bias,
            "linear1.weight": ours.ff1.weight, "linear1.bias": ours.ff1.bias,
            "linear2.weight": ours.ff2.weight, "linear2.bias": ours.ff2.bias,
            "norm1.weight": ours.norm1.weight, "norm1.bias": ours.norm1.bias,
            "norm2.weight": ours.norm2.weight, "norm2.bias": ours.norm2.bias,
        }
        theirs.norm1.eps = theirs.norm2.eps = 1e-12
        x = torch.func.functional_call(
            theirs, names, (x,), {"src_key_padding_mask": ids == 0}
        )
    norm = model.transform_norm
    u = F.layer_norm(F.gelu(model.transform(x)), (size,), norm.weight, norm.bias, 1e-12)
    logits = (u @ model.item_embedding.weight.T + model.item_bias)[covered][:, 1:]
    return F.cross_entropy(logits, ids[covered] - 1)


def test_it_is_the_padded_model() -> None:
    model = BERT4Rec(**SHAPE).double().train()
    batch = next(iter(batches().epoch(0)))
    hidden = hides(model, batch)
    assert hidden.sum() < batch.item_ids.shape[0]
    wanted = padded_loss(model, batch, hidden)
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(wanted, list(named.values()))
    found = model.loss(batch)
    torch.testing.assert_close(found.total, wanted)
    found.total.backward()
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-12, msg=name)
    assert not model.item_embedding.weight.grad[0].any()


@pytest.mark.parametrize("positions", ["left", "end"])
def test_it_reads_both_ways_and_nothing_hidden(positions: Any) -> None:
    model = BERT4Rec(**{**SHAPE, "positions": positions}).train()
    batch = packed([1, 2, 3, 4, 5, 6], [7, 8])
    hidden = hides(model, batch)
    covered, known = int(hidden.nonzero()[0]), int((~hidden[:6]).nonzero()[-1])
    seed, before = model.noise_seed.clone(), model.loss(batch).total
    for place, same in ((covered, True), (known, False)):
        ids = batch.item_ids.clone()
        ids[place] = 9
        model.noise_seed.copy_(seed)
        after = model.loss(batch._replace(item_ids=ids)).total  # the targets stay
        assert torch.equal(before, after) == same
    empty = torch.zeros(1, dtype=torch.bool)
    first = [
        model._encode(values, empty.expand(3), torch.tensor([0, 3]), None)[0]
        for values in (torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4]))
    ]
    assert not torch.equal(*first)


def test_positions_are_counted_from_either_side() -> None:
    """What is read of a long history has the same positions either way."""
    history = torch.tensor([list(range(1, 16))])
    for positions in ("left", "end"):
        model = BERT4Rec(**{**SHAPE, "positions": positions}).eval()
        assert torch.equal(model(history), model(history[:, -9:]))
        short, table = model(history[:, -3:]), model.backbone.position.weight.data
        table[4:] = torch.randn(6, 8)  # of no place in three items and a mask
        assert torch.equal(model(history[:, -3:]), short)
        table[3] = torch.randn(8)  # of the mask, or of the first item
        assert not torch.equal(model(history[:, -3:]), short)


def test_sizes_and_starting_loss() -> None:
    model = BERT4Rec(num_items=12_101)
    assert sum(parameter.numel() for parameter in model.parameters()) == 894_278
    model = BERT4Rec(**SHAPE).train()
    nn.init.zeros_(model.transform.weight)
    loss = model.loss(next(iter(batches().epoch(0)))).total
    assert float(loss.detach()) == pytest.approx(math.log(DATA.num_items), rel=1e-6)


def test_shares_are_the_whole_batch() -> None:
    dropping = {**SHAPE, "dropout": 0.4, "attention_dropout": 0.3}
    check_shares(batches(), lambda: BERT4Rec(**dropping).double().train())


@pytest.mark.parametrize("backend", ["auto", "packed", "reference"])
def test_recommendations_are_its_scores(backend: Any) -> None:
    model = BERT4Rec(**{**SHAPE, "backend": backend}).eval()
    with torch.no_grad():
        model.item_bias.copy_(torch.linspace(-1.0, 1.0, DATA.num_items + 1))
        histories = [[5, 7, 2], [4], list(range(1, 14))]
        items, scores = model.recommend(histories, k=4)
        for row, history in enumerate(histories):
            logits = model.score(model(torch.tensor([history])))[0]
            logits[history] = -torch.inf
            best = logits.topk(4)
            assert torch.equal(items[row], best.indices)
            torch.testing.assert_close(scores[row], best.values, rtol=1e-5, atol=1e-6)
    ranking = Recommender(model).recommend(histories, k=4)
    assert torch.equal(ranking.items, items)


@pytest.mark.parametrize("positions", ["left", "end"])
def test_its_graph_gives_what_it_gives(positions: Any) -> None:
    model = BERT4Rec(**{**SHAPE, "positions": positions, "dropout": 0.5}).train()
    batch = packed([5, 7, 2], [4], list(range(1, 11)))
    graph = model.user_graph()
    found = graph(ragged.to_padded(batch.item_ids, batch.offsets, 10))
    wanted, clear = graph.settled(batch.item_ids, batch.offsets)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert clear.all()


@pytest.mark.slow
def test_it_is_exported(tmp_path: Path) -> None:
    train(MODEL, config(epochs=1), DATA, tmp_path / "run")
    run = load_run(tmp_path / "run")
    (made,) = export_run(run, tmp_path / "export", ["torch"], ExportOptions(k=5, users=20))
    assert made.outcome.users == 30


def test_it_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train({**MODEL, "loss": "original"}, config(batch_size=16), DATA, whole)
    train(MODEL, config(batch_size=16), DATA, parts, stop_after_steps=4)
    train(MODEL, config(batch_size=16), DATA, parts, resume=True)
    assert outcome(whole) == outcome(parts)  # the two losses are one
    line = load_run(whole).history[-1]
    assert line["loss"] == line["loss_rec"]


def test_the_commands_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = follow_commands(
        "bert4rec", "--num-layers", "1", "--max-length", "10", "--mask-share", "0.4",
        "--learning-rate-schedule", "constant",
    )  # fmt: skip
    assert result["name"] == "BERT4Rec"


def test_a_service_answers(tmp_path: Path) -> None:
    ask_a_service(MODEL, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supervision": "prefix"}, "supervision='prefix': the model bert4rec takes 'cloze'"),
        ({"max_length": 1}, "max_length=1 leaves no place"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"mask_share": 0.0}, "mask_share=0"),
        ({"mask_share": 1.5}, "mask_share=1.5"),
        ({"last_share": -0.1}, "last_share=-0.1"),
        ({"num_layers": 0}, "num_layers=0"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BERT4Rec(**{**SHAPE, **options})


def test_what_others_ask_of_it_is_refused_in_words() -> None:
    from adarec_fast.models.sasrec.model import SASRec

    model = BERT4Rec(**SHAPE)
    workers: Any = None
    with pytest.raises(ConfigError, match="shard_items=True: BERT4Rec"):
        model.split_items(workers)
    with pytest.raises(ValueError, match=r"targets has shape \[3\]"):
        model.loss(packed([1, 2], [3])._replace(item_ids=torch.tensor([1, 2])))
    with pytest.raises(ConfigError, match="the model sasrec takes 'prefix' or 'all'"):
        SASRec(num_items=5, supervision="cloze")
    assert "read on the host" in (model.why_not_captured() or "")

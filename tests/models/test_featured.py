"""Items with features: the table that they make, by hand, in training and out of it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import polars
import pytest
import torch
from torch import Tensor

import adarec_fast as af
from adarec_fast import rng
from adarec_fast.data import ItemFeatures, Split, TrainingBatches
from adarec_fast.models.base import SequenceModel
from adarec_fast.models.evaluating import evaluating
from adarec_fast.models.featured import FeaturedItems
from adarec_fast.models.pretrained import CheckpointError, load, save
from adarec_fast.models.registry import BUILT_IN, build, create_config, model_type

LISTS = {"a": [1, 2, 3, 4, 2], "b": [2, 3, 1, 4, 3], "c": [4, 1, 2, 3, 1]}
ITEMS = polars.DataFrame({
    "item": [1, 2, 3, 4, 5, 6],
    "brand": ["x", "y", None, "x", "y", "only cold ones"],
    "tags": [["p"], ["p", "q"], ["q"], [], ["p", "q"], ["r"]],
    "price": [1.0, 2.0, None, 3.0, 2.5, 4.0],
    "image": [[0.5, 1.0], [1.5, 1.0], [2.5, 1.0], None, [1.0, 1.0], [0.0, 7.0]],
})  # fmt: skip
SMALL = {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "max_length": 6, "backend": "packed"}
DATA = af.load(LISTS, split="none", items=ITEMS)
ADAREC = {"max_depth": 2}


def features() -> ItemFeatures:
    assert DATA.features is not None
    return DATA.features


def model(system: str = "sasrec", **options: Any) -> SequenceModel:
    made = build(create_config({"model": system, "num_items": 6, **SMALL, **options}))
    made.join_features(features())
    return made


def items_of(made: SequenceModel) -> FeaturedItems:
    found = made.item_embedding
    assert isinstance(found, FeaturedItems)
    return found


def randomised(made: SequenceModel) -> SequenceModel:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in items_of(made).parameters():
            part.normal_(generator=draw)
    return made.eval()


def by_hand(items: FeaturedItems) -> Tensor:
    """The whole table ``[V+1, D]``, an item at a time."""
    frame = ITEMS.to_dicts()
    labels = features().rows.labels
    names = [column.name for column in features().rows.columns]
    price = torch.tensor([1.0, 2.0, 3.0])
    image = torch.tensor([0.5, 1.5, 2.5])
    rows, inputs = [torch.zeros(8)], []
    for item in frame:
        first = torch.zeros(items.values.shape[1])  # type: ignore[union-attr]
        ones = torch.zeros(len(labels))
        for name in ("brand", "tags"):
            told = item[name] if isinstance(item[name], list) else [item[name]]
            own = [items.values[labels.index((names.index(name), text))]  # type: ignore[index]
                   for text in told if text is not None]  # fmt: skip
            first = first + (torch.stack(own).mean(0) if own else 0.0)
            for text in told:
                if text is not None:
                    ones[labels.index((names.index(name), text))] = 1 / len(told)
        x = torch.zeros(5)
        if item["price"] is None:
            x[3] = 1.0
        else:
            x[0] = (item["price"] - price.mean()) / price.std(correction=0)
        if item["image"] is None:
            x[4] = 1.0
        else:  # the second number is the same for all trained items
            x[1] = (item["image"][0] - image.mean()) / image.std(correction=0) / 2**0.5
        first = first + x @ items.numbers  # type: ignore[operator]
        hidden = torch.nn.functional.gelu(first)
        rows.append(first if items.out is None else hidden @ items.out)
        inputs.append(torch.cat([ones, x]) if items.out is None else hidden)
    # Cold items get what a ridge regression expects of an own vector.
    inner = torch.stack(inputs).double()
    known, own = inner[:4], items.ids.double()
    square = known.T @ known + torch.eye(inner.shape[1], dtype=torch.float64)
    cold = inner[4:] @ torch.linalg.solve(square, known.T @ own)
    return torch.stack(rows) + torch.cat([torch.zeros(1, 8), own, cold]).float()


@pytest.mark.parametrize("net", ["sum", "mlp"])
class TestTable:
    def test_by_hand(self, net: str) -> None:
        made = randomised(model(feature_net=net))
        with torch.no_grad():
            assert torch.allclose(made.table(), by_hand(items_of(made)), atol=1e-5)

    def test_it_begins_as_without_features(self, net: str) -> None:
        plain = build(create_config({"model": "sasrec", "num_items": 6, **SMALL}))
        made = model(feature_net=net)
        assert torch.equal(made.eval().table()[:5], plain.table()[:5])
        for name, tensor in plain.state_dict().items():
            if name != "item_embedding.weight":
                assert torch.equal(tensor, made.state_dict()[name]), name

    def test_what_no_trained_item_has_stays_nothing(self, net: str) -> None:
        made = model(feature_net=net, id_dropout=0.5).train()
        steps = torch.optim.Adam(made.parameters(), lr=0.1)
        for batch in batches(3):
            steps.zero_grad()
            made.loss(batch).total.backward()
            steps.step()
        items = items_of(made)
        names = [column.name for column in features().rows.columns]
        cold = [features().rows.labels.index((names.index(column), text))
                for column, text in (("brand", "only cold ones"), ("tags", "r"))]  # fmt: skip
        assert items.values is not None
        assert items.numbers is not None
        assert not items.values[cold].any()
        assert items.values.any(1).sum() == 4
        # Nor does a number that is the same for all of them.
        assert items.numbers.any(1).tolist() == [True, True, False, True, True]


def batches(epochs: int = 1, supervision: str = "prefix") -> list[af.data.Batch]:
    values, offsets = Split(DATA).inputs("train")
    found = TrainingBatches(
        values, offsets, supervision=supervision, batch_size=8, max_length=6, seed=0
    )
    return [batch for epoch in range(epochs) for batch in found.epoch(epoch)]


class TestTraining:
    def test_cold_items_are_not_ranked(self) -> None:
        made = model(id_dropout=0.0, dropout=0.0, attention_dropout=0.0).train()
        batch = batches()[0]
        found = made.loss(batch).total
        assert items_of(made).weight.shape == (5, 8)
        user = made.represent(batch.item_ids, batch.offsets)
        logits = user @ made.table()[1:].T
        expected = torch.nn.functional.cross_entropy(logits, batch.targets - 1)
        assert torch.allclose(found, expected, atol=1e-6)

    def test_a_cold_item_in_a_history_to_train_on_is_refused(self) -> None:
        made = model().train()
        with pytest.raises(ValueError, match="5"):
            made(torch.tensor([[1, 5]]))
        assert made.eval()(torch.tensor([[1, 5]])).shape == (1, 8)

    def test_some_items_go_without_their_own_vector(self) -> None:
        made = randomised(model(id_dropout=0.5)).train()
        items, seed = items_of(made), rng.spread_seed(3)
        keep = rng.keep_mask(seed, torch.arange(4), rng.STREAM_ITEM_IDS, 0, 0.5)
        assert keep.any()
        assert not keep.all()
        with torch.no_grad():
            found = items.composed(seed) - items.composed(None)
        assert torch.allclose(found[1:], torch.where(keep[:, None], 0.0, -items.ids), atol=1e-6)
        # The same seed, the same items; out of training none.
        assert torch.equal(items.composed(seed), items.composed(seed))
        assert torch.equal(items.eval().composed(seed), items.composed(None))

    def test_the_gradient_is_that_of_the_table(self) -> None:
        """Of histories and of the loss, both through the one table."""
        made = randomised(model(dropout=0.0, attention_dropout=0.0, id_dropout=0.0)).train()
        batch = batches()[0]
        made.loss(batch).total.backward()
        items = items_of(made)
        table = items.composed(None).detach().requires_grad_()
        plain = build(made.config.replace(num_items=4))
        plain.load_state_dict({
            name: tensor for name, tensor in made.state_dict().items()
            if not name.startswith("item_embedding")
        } | {"item_embedding.weight": table})  # fmt: skip
        plain.train().loss(batch).total.backward()
        whole = plain.item_embedding.weight.grad[1:]
        assert items.ids.grad is not None
        assert items.values is not None
        assert torch.allclose(items.ids.grad, whole, atol=1e-6)
        names = [column.name for column in features().rows.columns]
        p = features().rows.labels.index((names.index("tags"), "p"))
        assert torch.allclose(items.values.grad[p], whole[0] + whole[1] / 2, atol=1e-6)  # type: ignore[index]

    @pytest.mark.parametrize("system", [
        name for name in BUILT_IN if model_type(name).takes_features
    ])  # fmt: skip
    def test_every_model_that_takes_them_takes_a_step(self, system: str) -> None:
        given = {"max_depth": 2, "num_intents": 2, "loss": "full_ce"}
        known = type(create_config({"model": system, "num_items": 6})).model_fields
        options: dict[str, Any] = {n: value for n, value in given.items() if n in known}
        made = model(system, **options)
        made.prepare(Split(DATA))
        made.begin_training(Split(DATA))
        made.train().begin_epoch(0)
        made.loss(batches(supervision=made.config.supervision)[0]).total.backward()
        items = items_of(made)
        for part in (items.ids, items.values, items.numbers):
            assert part is not None
            assert part.grad is not None
            assert part.grad.abs().sum() > 0
        ranked, scores = made.eval().recommend([[1, 5]], k=4)
        assert sorted(ranked[0].tolist()) == [2, 3, 4, 6]
        assert torch.isfinite(scores).all()

    def test_negatives_are_no_cold_items(self) -> None:
        data = af.load({"a": [1, 2, 5, 6], "b": [3, 4, 5, 6]}, items=ITEMS)
        assert data.features is not None
        assert data.features.trained == 4
        for excluded in ("train", "all"):
            made = model(loss="original", excluded_negatives=excluded).train()
            made.begin_training(Split(data))
            drawn = made.negatives(rng.spread_seed(0), torch.tensor([0, 1] * 100), 0)
            assert drawn[::2].unique().tolist() == [3, 4]
            assert drawn[1::2].unique().tolist() == [1, 2]


class TestUse:
    def test_the_table_is_made_once(self) -> None:
        made = randomised(model())
        with torch.no_grad():
            first = made.table()
            assert made.table() is first
            assert evaluating(made).table() is first
            items_of(made).ids.zero_()
            assert not torch.equal(made.table()[1:5], first[1:5])
        assert made.table().requires_grad  # where gradients are wanted it is made anew
        with torch.inference_mode():
            kept = made.table()
        assert not kept.is_inference()

    def test_a_copy_does_not_carry_it(self) -> None:
        made = randomised(model())
        with torch.no_grad():
            table = made.table()
            again = pickle.loads(pickle.dumps(made))
            assert again.item_embedding._made is None
            assert torch.equal(again.table(), table)

    @pytest.mark.parametrize("system", ["sasrec", "adarec"])
    def test_saved_and_read_back(self, tmp_path: Path, system: str) -> None:
        made = randomised(model(system, **(ADAREC if system == "adarec" else {})))
        made.item_vocabulary = DATA.items
        save(made, tmp_path / "m")
        again = load(tmp_path / "m")
        assert again.item_features is not None
        assert again.item_features.fingerprint() == features().fingerprint()
        first, second = (each.recommend([[5, 1]], k=4) for each in (made, again))
        assert all(map(torch.equal, first, second))
        ranking = af.Recommender(again).recommend([[5, 1]], k=4)
        assert torch.equal(ranking.items, first[0])
        assert torch.allclose(ranking.scores, first[1], atol=1e-5)
        assert "trained=4" in repr(again)
        (tmp_path / "m" / "features.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"features\.safetensors"):
            load(tmp_path / "m")

    def test_a_folder_of_another_catalogue(self, tmp_path: Path) -> None:
        save(model(), tmp_path / "m")
        other = af.load({"a": [1, 2, 3]}, split="none", items=ITEMS.head(4)).features
        assert other is not None
        (tmp_path / "m" / "features.json").write_text(
            json.dumps(other.described()), encoding="utf-8"
        )
        with pytest.raises(CheckpointError, match="damaged"):
            load(tmp_path / "m")

    def test_models_without_item_vectors_refuse(self) -> None:
        for system in ("popularity", "counting", "bert4rec", "caser", "diffdiv"):
            made = build(create_config({"model": system, "num_items": 6}))
            with pytest.raises(af.ConfigError, match=f"model {system}: .*--items"):
                made.join_features(features())
        small = build(create_config({"model": "sasrec", "num_items": 5, **SMALL}))
        with pytest.raises(af.ConfigError, match="features are of 6 items, the model has 5"):
            small.join_features(features())

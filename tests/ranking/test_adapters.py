"""ADARec inside RePlay and RecBole, where they are installed."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adarec_fast import ConfigError, DataError, InteractionData, synthetic

TINY: dict[str, Any] = {
    "hidden_size": 8, "num_layers": 1, "max_depth": 2, "max_length": 8, "backend": "packed",
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> InteractionData:
    return synthetic(num_users=60, num_items=40)


def _columns(data: InteractionData) -> dict[str, Any]:
    """Interactions, one a row, with times that restore their order."""
    owner = np.repeat(np.arange(data.num_users), data.lengths.numpy())
    return {
        "query": [data.users.ids[u] for u in owner],
        "thing": data.items.decode(data.values),
        "at": np.arange(data.num_interactions),
    }


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_replay(data: InteractionData, kind: str, tmp_path: Path) -> None:
    replay = pytest.importorskip("replay.data", reason="RePlay is not installed")
    frames = pytest.importorskip(kind)
    from adarec_fast.adapters.replay import ADARecRePlay

    hint, kind_of = replay.FeatureHint, replay.FeatureType
    schema = replay.FeatureSchema([
        replay.FeatureInfo("query", kind_of.CATEGORICAL, hint.QUERY_ID),
        replay.FeatureInfo("thing", kind_of.CATEGORICAL, hint.ITEM_ID),
        replay.FeatureInfo("at", kind_of.NUMERICAL, hint.TIMESTAMP),
    ])  # fmt: skip
    frame = frames.DataFrame(_columns(data))
    dataset = replay.Dataset(feature_schema=schema, interactions=frame)
    recommender = ADARecRePlay(train={"epochs": 1, "batch_size": 64}, **TINY)
    with pytest.raises(ConfigError, match="call fit first"):
        recommender.predict(dataset, 3)
    found = recommender.fit_predict(dataset, 3)
    assert type(found) is type(frame)
    assert list(found.columns) == ["query", "thing", "rating"]
    assert len(found) == 180
    histories = [data.sequence(u).tolist() for u in range(data.num_users)]
    items, scores = recommender.model.recommend(histories, k=3)
    assert found["thing"].to_list() == data.items.decode(items)
    assert found["rating"].to_list() == pytest.approx(scores.flatten().tolist(), abs=1e-5)
    some = data.users.decode([9, 4])
    part = recommender.predict(dataset, 2, queries=some, filter_seen_items=False)
    assert list(dict.fromkeys(part["query"].to_list())) == some
    queries = frames.DataFrame({"query": some})
    assert recommender.predict(dataset, 2, queries=queries)["query"].to_list() == (
        part["query"].to_list()
    )
    path = tmp_path / "found.parquet"
    assert recommender.predict(dataset, 3, recs_file_path=str(path)) is None
    assert len(frames.read_parquet(path)) == 180
    with pytest.raises(ConfigError, match="items cannot be restricted"):
        recommender.predict(dataset, 3, items=[1])
    with pytest.raises(DataError, match="unknown id"):
        recommender.predict(dataset, 3, queries=["nobody"])
    # An item that came after the training is skipped; who has no other is not served.
    known = data.items.decode([5])
    newer = frames.DataFrame({
        "query": data.users.decode([1, 1, 2]), "thing": [*known, "newer", "newer"],
        "at": [0, 1, 0],
    })  # fmt: skip
    late = recommender.predict(replay.Dataset(feature_schema=schema, interactions=newer), 3)
    items, _ = recommender.model.recommend([[5]], k=3)
    assert late["thing"].to_list() == data.items.decode(items)


def _dataset(frame: Any, kind: str) -> Any:
    """What the adapter reads of RePlay's ``Dataset``."""
    schema = SimpleNamespace(
        query_id_column="query", item_id_column="thing", interactions_timestamp_column="at"
    )
    return SimpleNamespace(
        interactions=frame, feature_schema=schema, is_pandas=kind == "pandas",
        is_polars=kind == "polars",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_queries_without_a_known_item_are_left_out_aloud(data: InteractionData, kind: str) -> None:
    frames = pytest.importorskip(kind)
    from adarec_fast.adapters.replay import ADARecRePlay

    recommender = ADARecRePlay(train={"epochs": 1, "batch_size": 64}, **TINY)
    recommender.fit(_dataset(frames.DataFrame(_columns(data)), kind))
    one, two = data.items.decode([3, 8])

    def predict(rows: list[tuple[str, str]], **options: Any) -> Any:
        columns = zip(*rows, strict=True)
        frame = frames.DataFrame(dict(zip(("query", "thing"), columns, strict=True)))
        frame = _columns_with_time(frame, len(rows), frames, kind)
        return recommender.predict(_dataset(frame, kind), 2, **options)

    rows = [("a", one), ("a", two), ("b", "newer"), ("c", "newer"), ("c", two)]
    whole = predict([row for row in rows if row[0] != "b"])
    with pytest.warns(UserWarning, match=r"left out.*'thing'.*1 of the queries \('query': 'b'\)"):
        found = predict(rows)
    assert found["query"].to_list() == whole["query"].to_list() == ["a", "a", "c", "c"]
    assert found["thing"].to_list() == whole["thing"].to_list()
    with pytest.warns(UserWarning, match="left out"):
        named = predict(rows, queries=["b", "a"])
    assert named["query"].to_list() == ["a", "a"]
    with pytest.raises(DataError, match="unknown id 'nobody'"):
        predict(rows, queries=["a", "nobody"])
    for options in ({}, {"queries": ["b"]}):
        with pytest.warns(UserWarning, match="left out"):
            nothing = predict([("b", "newer")], **options)
        assert len(nothing) == 0
        assert list(nothing.columns) == list(found.columns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(predict(rows, queries=[])) == 0


def _columns_with_time(frame: Any, rows: int, frames: Any, kind: str) -> Any:
    if kind == "pandas":
        return frame.assign(at=range(rows))
    return frame.with_columns(frames.Series("at", list(range(rows))))


def test_recbole(
    data: InteractionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # RecBole writes logs to the working directory.
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("recbole", reason="RecBole is not installed")
    from adarec_fast.adapters.recbole import recbole_model

    try:
        model_class = recbole_model()
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.trainer import Trainer
    except (ConfigError, ImportError, AttributeError) as error:
        pytest.skip(f"RecBole cannot be imported here: {error}")
    folder = tmp_path / "tiny"
    folder.mkdir()
    columns = _columns(data)
    rows = zip(columns["query"], columns["thing"], columns["at"], strict=True)
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    text = header + "".join(f"{user}\t{item}\t{at}\n" for user, item, at in rows)
    (folder / "tiny.inter").write_text(text)
    config = Config(model=model_class, dataset="tiny", config_dict={
        "data_path": str(tmp_path), "checkpoint_dir": str(tmp_path), "use_gpu": False,
        "train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 8, "epochs": 1, "n_layers": 1,
        "hidden_size": 8, "max_depth": 2, "backend": "packed", "train_batch_size": 64,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full",
                      "group_by": "user"},
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "show_progress": False,
    })  # fmt: skip
    training, valid, _ = data_preparation(config, create_dataset(config))
    model = model_class(config, training.dataset)
    assert (model.adarec.config.num_items, model.adarec.config.num_layers) == (40, 1)
    before = model.adarec.item_embedding.weight.detach().clone()
    trainer = Trainer(config, model)
    _, best = trainer.fit(training, valid, saved=False, show_progress=False)
    assert not torch.equal(model.adarec.item_embedding.weight, before)
    assert 0 <= best["recall@10"] <= 1
    interaction = next(iter(training))
    interaction = interaction[0] if isinstance(interaction, tuple) else interaction
    model.eval()
    every = model.full_sort_predict(interaction)
    assert every.shape == (len(interaction), 41)
    one = model.predict(interaction)
    torch.testing.assert_close(one, every.gather(1, interaction["item_id"][:, None])[:, 0])

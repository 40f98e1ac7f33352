"""Recommendations as frames and files, by the package and by the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adarec_fast import ADARec, ConfigError, InteractionData, Split, TrainConfig, synthetic
from adarec_fast.cli import app
from adarec_fast.ranking.frames import (
    recommendation_frame,
    recommendation_frames,
    write_recommendations,
)
from adarec_fast.training import train

polars = pytest.importorskip("polars")
TINY = {"hidden_size": 8, "num_layers": 1, "max_depth": 2, "max_length": 8, "backend": "packed"}


@pytest.fixture(scope="module")
def data() -> InteractionData:
    return synthetic(num_users=50, num_items=40)


@pytest.fixture(scope="module")
def model(data: InteractionData) -> ADARec:
    return ADARec(num_items=data.num_items, **TINY).eval()


@pytest.mark.parametrize("kind", ["polars", "pandas"])
def test_frames_hold_what_the_model_recommends(
    data: InteractionData, model: ADARec, kind: str
) -> None:
    pytest.importorskip(kind)
    chunks = list(recommendation_frames(model, data, k=4, chunk_size=17, kind=kind))
    assert [len(chunk) for chunk in chunks] == [68, 68, 64]
    assert list(chunks[0].columns) == ["user", "item", "score", "rank"]
    frame = recommendation_frame(model, data, k=4, kind=kind, chunk_size=17)
    histories = [data.sequence(u).tolist() for u in range(data.num_users)]
    items, scores = model.recommend(histories, k=4)
    assert frame["user"].to_list() == [user for user in data.users.ids for _ in range(4)]
    assert frame["item"].to_list() == data.items.decode(items)
    assert frame["score"].to_list() == pytest.approx(scores.flatten().tolist(), abs=1e-6)
    assert frame["rank"].to_list() == [1, 2, 3, 4] * 50


def test_rows_end_where_nothing_is_left(data: InteractionData, model: ADARec) -> None:
    frame = recommendation_frame(model, data, k=40, users=[7, 3])
    left = [40 - len(set(data.sequence(u).tolist())) for u in (7, 3)]
    assert len(frame) == sum(left)
    assert frame["user"].unique(maintain_order=True).to_list() == data.users.decode([7, 3])
    every = recommendation_frame(model, data, k=40, users=[7], exclude_seen=False)
    assert sorted(every["item"].to_list()) == sorted(data.items.ids)


@pytest.mark.parametrize("kind", ["polars", "pandas"])
def test_nobody_gets_an_empty_frame_of_the_same_types(
    data: InteractionData, model: ADARec, kind: str
) -> None:
    pytest.importorskip(kind)
    empty = recommendation_frame(model, data, k=3, users=[], kind=kind)
    whole = recommendation_frame(model, data, k=3, users=[1], kind=kind)
    assert len(empty) == 0
    assert list(empty.columns) == list(whole.columns)
    assert list(empty.dtypes) == list(whole.dtypes)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_lists_that_a_part_of_the_split_judges(
    data: InteractionData, model: ADARec, part: str
) -> None:
    frame = recommendation_frame(model, data, k=40, users=[9, 2], part=part)
    values, offsets = Split(data).inputs(part)
    targets = Split(data).targets(part)
    for user in (9, 2):
        history = values[offsets[user] : offsets[user + 1]].tolist()
        rows = frame.filter(polars.col("user") == data.users.ids[user])
        items, _ = model.recommend([history], k=40 - len(set(history)))
        assert rows["item"].to_list() == data.items.decode(items[0])
        if targets[user] not in history:
            assert data.items.decode(targets[[user]])[0] in rows["item"].to_list()


def test_bad_arguments_are_named(data: InteractionData, model: ADARec) -> None:
    for options, message in (
        ({"k": 41}, r"k=41 must lie in 1\.\.40"), ({"chunk_size": 0}, "chunk_size=0"),
        ({"kind": "spark"}, "kind='spark'"), ({"users": [3, 50]}, r"users: 50 must lie in 0\.\.49"),
        ({"users": [-1]}, "users: -1"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            recommendation_frames(model, data, **options)
    with pytest.raises(ConfigError, match="not of one catalogue"):
        recommendation_frames(ADARec(num_items=9, **TINY), data, k=3)


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_files_are_whole_or_not_there(
    data: InteractionData, model: ADARec, form: str, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "sub" / f"found.{form}"
    assert write_recommendations(model, data, path, format=form, k=4, chunk_size=17) == 200
    read = polars.read_parquet if form == "parquet" else polars.read_csv
    expected = recommendation_frame(model, data, k=4)
    assert read(path).select("user", "item", "rank").rows() == expected.select(
        "user", "item", "rank"
    ).rows()
    before = path.read_bytes()
    damaged = replace(data, values=data.values.clone())
    damaged.values[-1] = 99  # of the last chunk
    with pytest.raises(ValueError, match="item id 99"):
        write_recommendations(model, damaged, path, format=form, k=4, chunk_size=1)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_command_writes_all_users(data: InteractionData, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(TINY, TrainConfig(epochs=1, batch_size=64), data, run)
    path = tmp_path / "all.parquet"

    def recommend(*options: str) -> str:
        shown = CliRunner().invoke(app, ["recommend", str(run), "--k", "3", *options])
        return f"{shown.exit_code} {shown.output}"

    shown = recommend("--all-users", "--format", "parquet", "--out", str(path))
    assert shown.startswith("0"), shown
    assert polars.read_parquet(path).height == 150
    some = tmp_path / "some.csv"
    ids = [str(user) for user in data.users.decode([4, 2])]
    shown = recommend("--user", ids[0], "--user", ids[1], "--format", "csv", "--out", str(some))
    assert shown.startswith("0"), shown
    assert polars.read_csv(some)["user"].unique(maintain_order=True).to_list() == data.users.decode(
        [4, 2]
    )
    judged = tmp_path / "test.csv"
    shown = recommend("--all-users", "--part", "test", "--format", "csv", "--out", str(judged))
    assert shown.startswith("0"), shown
    mine = polars.read_csv(judged).filter(polars.col("user") == data.users.ids[4])
    shown = recommend("--user", ids[0], "--part", "test", "--format", "csv")
    # The file and the standard output have the same columns in the same order.
    table = polars.read_csv(shown[2:].encode())
    assert table.columns == mine.columns == ["user", "item", "score", "rank"]
    assert table["item"].to_list() == mine["item"].to_list()
    whole = polars.read_csv(recommend("--user", ids[0], "--format", "csv")[2:].encode())
    assert whole["item"].to_list() != mine["item"].to_list()
    shown = recommend("--history", "t1", "--part", "test")
    assert shown.startswith("2 error: --part takes users of the data"), shown
    assert recommend("--all-users").startswith("2 error: --all-users and --format parquet need")
    assert recommend("--all-users", "--out", str(some)).startswith("2 error: --out takes")

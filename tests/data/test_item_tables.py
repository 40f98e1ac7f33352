"""Tables of items: what is read of them, what is refused, and the catalogue that they make."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas
import polars
import pytest
import torch

import adarec_fast as af
from adarec_fast.data import DataError, ItemFeatures, Split
from adarec_fast.data.catalogue import refeatured
from adarec_fast.data.item_tables import read_items

SHOP = {"ann": ["tea", "jam", "milk", "rice"], "bob": ["jam", "tea", "milk"]}
ROWS: dict[str, list[Any]] = {
    "item": ["tea", "jam", "cocoa", "milk"],
    "brand": ["x", "y", "x", None],
    "price": [3.0, 2.0, 4.0, None],
    "tags": [["hot", "dry"], ["sweet"], ["hot"], []],
    "image": [[0.5, 1.0], [0.25, 2.0], None, [1.5, 3.0]],
}


def columns(rows: Any) -> dict[str, tuple[str, int]]:
    return {column.name: (column.kind, column.size) for column in rows.columns}


KINDS = {"brand": ("category", 1), "price": ("number", 1), "tags": ("category", 1),
         "image": ("vector", 2)}  # fmt: skip


def written(path: Path) -> Path:
    """The table in the format that a path ends with."""
    frame = polars.DataFrame(ROWS)
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".jsonl":
        frame.write_ndjson(path)
    else:
        text = frame.with_columns(
            tags=polars.col("tags").list.join("|").replace("", None),
            image=polars.col("image").map_elements(lambda x: str(x.to_list()), polars.String),
        )
        text.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    return path


class TestReading:
    @pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.tsv", "a.jsonl"])
    def test_every_format_says_the_same(self, tmp_path: Path, name: str) -> None:
        found = read_items(written(tmp_path / name))
        expected = read_items(polars.DataFrame(ROWS))
        assert columns(found.rows) == KINDS
        assert list(found.ids) == ROWS["item"]
        for tensor in ("numbers", "missing", "codes", "rows"):
            assert torch.equal(getattr(found.rows, tensor), getattr(expected.rows, tensor)), tensor
        assert found.rows.labels == expected.rows.labels

    def test_a_pandas_frame(self) -> None:
        found = read_items(pandas.DataFrame(ROWS))
        assert columns(found.rows) == KINDS
        assert found.rows.missing.tolist() == [[False, False]] * 2 + [[False, True], [True, False]]

    def test_fixed_size_lists_and_booleans(self, tmp_path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        vectors = pyarrow.array([[1.0, 2.0], None, [3.0, 4.0]], pyarrow.list_(pyarrow.float32(), 2))
        table = pyarrow.table({"sku": ["a", "b", "c"], "v": vectors, "new": [True, False, None]})
        parquet.write_table(table, tmp_path / "a.parquet")
        found = read_items(tmp_path / "a.parquet").rows
        assert columns(found) == {"v": ("vector", 2), "new": ("category", 1)}
        assert found.numbers.tolist() == [[1, 2], [0, 0], [3, 4]]
        assert found.labels == ((1, "False"), (1, "True"))

    def test_the_typed_columns_of_recbole(self, tmp_path: Path) -> None:
        text = "item_id:token\tgenre:token_seq\tyear:float\tvec:float_seq\n1\ta b\t1995\t0.5 1\n"
        (tmp_path / "a.item").write_text(text + "2\tb\t1996\t0.5 2\n")
        found = read_items(tmp_path / "a.item").rows
        assert columns(found) == {"genre": ("category", 1), "year": ("number", 1),
                                  "vec": ("vector", 2)}  # fmt: skip
        assert found.labels == ((0, "a"), (0, "b"))

    def test_a_kind_may_be_named(self) -> None:
        frame = polars.DataFrame({"item": ["a", "b"], "brand": [1, 2], "bits": [[0, 1], [1, 1]]})
        assert columns(read_items(frame).rows)["brand"] == ("number", 1)
        found = read_items(frame, features="brand:category,bits:vector").rows
        assert columns(found) == {"brand": ("category", 1), "bits": ("vector", 2)}
        assert found.labels == ((0, "1"), (0, "2"))

    def test_what_is_of_no_use_is_left_out_and_told(self) -> None:
        frame = polars.DataFrame({
            "item": range(300), "title": [f"t{i}" for i in range(300)], "price": [1.5] * 300,
            "day": [None] * 300,
        }).with_columns(polars.lit("2020-01-01").str.to_date().alias("made"))  # fmt: skip
        found = read_items(frame)
        assert list(columns(found.rows)) == ["price"]
        assert [re.findall(r"'(\w+)'", told)[0] for told in found.told] == ["title", "day", "made"]
        assert list(columns(read_items(frame, features="title").rows)) == ["title"]

    def test_rows_without_an_id(self) -> None:
        found = read_items(polars.DataFrame({"item": ["a", None, "b"], "price": [1, 2, 3]}))
        assert list(found.ids) == ["a", "b"]
        assert found.rows.numbers.flatten().tolist() == [1, 3]
        assert found.told == ("1 rows without an item id, left out",)

    @pytest.mark.parametrize(("rows", "options", "words"), [
        ({"x": [1], "price": [2]}, {}, ["cannot tell", "items_id=…", "--items-id-column"]),
        ({"item": [1], "price": [2]}, {"id_column": "sku"}, ["no column 'sku'", "'price'"]),
        ({"item": [1], "price": [2]}, {"features": "cost"}, ["no column 'cost'"]),
        ({"item": [1], "price": [2]}, {"features": "price:text"}, ["price:text", "category"]),
        ({"item": [1], "price": [2]}, {"features": "item"}, ["'item' holds the item ids"]),
        ({"item": [1]}, {}, ["beside the item ids"]),
        ({"item": [None], "price": [1]}, {}, ["no row has an item id"]),
        ({"item": ["a", "b", "a"], "price": [1, 2, 3]}, {}, ["row 2", "'a' again", "row 0"]),
        ({"item": [1, 2], "price": [2.0, float("inf")]}, {}, ["row 1", "'price'", "not finite"]),
        ({"item": [1, 2], "price": [2.0, 1e60]}, {}, ["row 1", "float32"]),
        ({"item": [1, 2], "v": [[1.5], [1.5, 2.0]]}, {}, ["row 1", "vector of 2", "has 1"]),
        ({"item": [1, 2], "v": [[1.5], [float("nan")]]}, {}, ["row 1", "not finite"]),
        ({"item": [1, 2], "p": ["1", "x"]}, {"features": "p:number"}, ["row 1", "'x'", "number"]),
        ({"item": [1, 2], "d": [{"a": 1}, {"a": 2}]}, {}, ["row 0", "category"]),
        ({"item": [1, 2], "t": [None, None]}, {}, ["none of the columns is a feature", "empty"]),
    ])  # fmt: skip
    def test_what_is_refused(
        self, rows: dict[str, list[Any]], options: dict[str, str], words: list[str]
    ) -> None:
        with pytest.raises(DataError) as caught:
            read_items(polars.DataFrame(rows), **options)
        assert all(word in str(caught.value) for word in words), caught.value

    def test_sources_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="items is a dict"):
            read_items({"a": 1})
        (tmp_path / "a.txt").write_text("u1 a b c\n")
        with pytest.raises(DataError, match="no table"):
            read_items(tmp_path / "a.txt")


class TestCatalogue:
    def test_trained_items_come_first_and_cold_ones_join(self) -> None:
        data = af.load(SHOP, items=polars.DataFrame(ROWS))
        # Of leave-one-out tea and jam train; milk and rice are held out, and nobody had cocoa.
        assert data.items.ids == ["jam", "tea", "milk", "rice", "cocoa"]
        assert data[0] == SHOP["ann"]
        features = data.features
        assert features is not None
        assert features.trained == 2
        assert features.facts["not_listed"] == 1  # rice
        assert features.facts["unknown"] == 1
        assert features.rows.numbers[:, 0].tolist() == [2, 3, 0, 0, 4]
        assert features.rows.missing[3].all()
        words = features.in_words()
        assert "3 of 5 items are cold" in words
        assert "tags (3 values)" in words

    def test_without_a_table_nothing_changes(self) -> None:
        data = af.load(SHOP)
        assert data.features is None
        assert data.items.ids == sorted(data.items.ids)

    def test_a_split_by_time_keeps_what_is_listed(self) -> None:
        log = {"user": list("aaabbbaab"), "item": list("xyxyxyzwz"), "time": range(9)}
        items = polars.DataFrame({"item": ["x", "y", "z"], "kind": ["k", "k", "l"]})
        options: dict[str, Any] = {
            "user": "user", "item": "item", "time": "time", "split": "time", "at": 6, "valid_at": 4
        }  # fmt: skip
        plain = af.load(polars.DataFrame(log), **options)
        assert plain.items.ids == ["x", "y"]
        data = af.load(polars.DataFrame(log), items=items, **options)
        assert data.items.ids == ["x", "y", "z"]
        assert data.features.trained == 2
        assert Split(data).targets("test").tolist() == [3, 3]
        assert Split(plain).targets("test").tolist() == [0, 0]
        assert data.cuts is not None
        assert data.cuts.facts["test"]["unseen_items"] == 1

    def test_ids_are_of_one_kind(self) -> None:
        numbers = {"ann": [1, 2, 3], "bob": [2, 1, 3]}
        data = af.load(numbers, items=polars.DataFrame({"item": ["1", "7"], "price": [1, 2]}))
        assert data.items.ids == [1, 2, 3, 7]
        with pytest.raises(DataError, match="whole numbers in the data"):
            af.load(numbers, items=polars.DataFrame({"item": ["1", "x"], "price": [1, 2]}))
        with pytest.raises(DataError, match=r"none of its 2 items, such as 'p'"):
            af.load(SHOP, items=polars.DataFrame({"item": ["p", "q"], "price": [1, 2]}))

    def test_columns_need_a_table(self) -> None:
        with pytest.raises(DataError, match="items=…, which is not given"):
            af.load(SHOP, features="brand")

    def test_written_and_read_back(self) -> None:
        features = af.load(SHOP, items=polars.DataFrame(ROWS)).features
        assert features is not None
        about = json.loads(json.dumps(features.described()))
        again = ItemFeatures.read(features.tensors(), about)
        assert again.fingerprint() == features.fingerprint()
        assert repr(again) == repr(features)
        for change in ({"trained": 9}, {"columns": []}, {"labels": [[7, "x"]]}):
            with pytest.raises(DataError, match="damaged"):
                ItemFeatures.read(features.tensors(), about | change)
        without = {n: t for n, t in features.tensors().items() if n != "codes"}
        with pytest.raises(DataError, match="damaged"):
            ItemFeatures.read(without, about)

    def test_features_of_a_grown_catalogue(self) -> None:
        data = af.load(SHOP, items=polars.DataFrame(ROWS))
        assert data.features is not None
        new = {"item": ["pie", "tea"], "brand": ["z", "y"], "price": [9.0, 8.0], "size": [1, 2]}
        everything = data.replace(cuts=af.load(SHOP, split="none").cuts)
        table = read_items(polars.DataFrame(new))
        grown = refeatured(everything, data.features, data.items, table)
        assert grown.items.ids == ["jam", "tea", "milk", "rice", "cocoa", "pie"]
        features = grown.features
        assert features is not None
        assert features.trained == 4
        # The table's row counts of tea, and what it does not say of it is not known any more.
        assert features.rows.numbers[:, 0].tolist() == [2, 8, 0, 0, 4, 9]
        assert features.rows.missing[1].tolist() == [False, True]
        assert features.rows.labels[: len(data.features.rows.labels)] == data.features.rows.labels
        assert features.rows.labels[-1] == (0, "z")
        assert "'size' is no feature of the run" in features.in_words()
        wrong = read_items(polars.DataFrame({"item": ["pie"], "brand": [1]}))
        with pytest.raises(DataError, match="'brand' is a number in the new table"):
            refeatured(everything, data.features, data.items, wrong)

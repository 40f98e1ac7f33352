"""The scaling bench: the fit, a run, and slices that are put together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from bench import records, scaling  # noqa: E402


def test_fit_finds_the_exponent_of_a_power() -> None:
    values = [10, 20, 40, 80]
    constant, exponent = scaling.fit(values, [3 * value**1.5 for value in values])
    assert constant == pytest.approx(3)
    assert exponent == pytest.approx(1.5)


def test_axes_change_one_quantity_each() -> None:
    assert all(len(axis.values) >= 4 for axis in scaling.AXES.values())
    assert scaling._histories("users", 128).batch == 128
    long = scaling._histories("length", 8)
    assert long.lengths.unique().tolist() == [8]
    assert long.batch == scaling._histories("size", 16).batch == 256
    few = scaling._histories("items", 1000)
    assert int(few.item_ids.max()) <= 1000 >= int(few.targets.max())


def test_slices_end_in_one_record_and_a_plot(tmp_path: Path) -> None:
    common = ["--points", "2", "--seconds", "0", "--results-dir", str(tmp_path)]
    assert scaling.main(["--axis", "users", *common]) == 0
    assert scaling.main(["--axis", "size", *common]) == 0
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert list(record["axes"]) == ["users", "size"]
    for axis in record["axes"].values():
        assert len(axis["values"]) == len(axis["seconds"]) == 2
        assert all(0 < point["min"] <= point["median"] for point in axis["seconds"])
    assert records.newest("cpu", tmp_path) is None  # the tables' reader passes it over
    pytest.importorskip("matplotlib")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_fit_needs_two_points(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--points", "1"])
    assert "--points 1 must be at least 2" in capsys.readouterr().err

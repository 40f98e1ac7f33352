"""Pictures of the layers and of peers: what is drawn is what the page and the record say."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="pictures need adarec_fast[viz]")

from adarec_fast.plotting.style import look
from bench import drawings, records


def test_the_house_has_every_room() -> None:
    floors = drawings.layers()
    assert floors[0] == ["__init__", "cli"]
    assert ["training"] in floors
    with look():
        (axes,) = drawings.house().axes
    rooms = [room for floor in floors for room in floor]
    assert {text.get_text() for text in axes.texts} >= set(rooms)
    assert len(axes.patches) == len(rooms)


def test_peers_are_those_of_the_record() -> None:
    record = records.newest("cpu")
    assert record is not None
    timed = drawings.epochs(record)
    assert [seconds for _, seconds in timed] == sorted(seconds for _, seconds in timed)
    ours = next(row for row in record["rows"] if row.get("ours")
                and (row["subject"], row["form"]) == ("Beauty epoch", "beside SASRec"))  # fmt: skip
    assert dict(timed)["ADARec, adarec_fast"] == ours["seconds"]["median"] * ours["stretches"]
    assert not any(name.startswith("Re") for name, _ in timed)  # not installed, so not timed
    with look():
        (axes,) = drawings.peers(record).axes
    assert [bar.get_width() for bar in axes.patches] == [seconds for _, seconds in timed[::-1]]
    assert record["date"][:10] in axes.get_xlabel()


def test_a_command_writes_png_and_svg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench.drawings", "house", "--out", str(tmp_path)])
    assert drawings.main() == 0
    assert (tmp_path / "house.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "house.svg").read_bytes()

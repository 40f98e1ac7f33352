"""Files made to harm: no code of theirs runs, and memory and time stay bounded.

Each is read in a process of its own that may take 256 MiB more than it has and a few seconds.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import refusal
from safetensors.torch import save

from adarec_fast import ADARec, TrainConfig, synthetic
from adarec_fast.data import load
from adarec_fast.training import load_run, metrics_log, train
from adarec_fast.training.checkpoint import MANIFEST, STATE_TENSORS, STATE_VALUES, _sha256
from adarec_fast.training.values import read_config

DATA = synthetic(num_users=40, num_items=60, num_themes=3, subthemes_per_theme=2, seed=2)
MODEL: dict[str, Any] = {
    "hidden_size": 16, "num_layers": 1, "max_depth": 2, "max_length": 10, "backend": "packed",
}  # fmt: skip
CONFIG = TrainConfig.create(epochs=1, batch_size=64, device="cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("made") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics_log, "_summary_writer", lambda *_: None)
        train(MODEL, CONFIG, DATA, folder)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run to be tampered with."""
    monkeypatch.setattr(metrics_log, "_summary_writer", lambda *_: None)
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def resign(folder: Path) -> None:
    """Make the manifest agree with the files, as whoever means harm would."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["sha256"] = {name: _sha256(folder / name) for name in manifest["sha256"]}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def resume(run_dir: Path) -> None:
    train(MODEL, CONFIG, DATA, run_dir, resume=True)


# ---------------------------------------------------------------------- safetensors


def tensors_file(header: Any, body: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS: dict[str, bytes | Callable[[], bytes]] = {
    "header of 2**60 bytes": tensors_file({}, size=2**60),
    "header of 2**64 - 1 bytes": tensors_file({}, size=2**64 - 1),
    "header of 99 MB in a short file": tensors_file({}, size=99_000_000),
    "no header": b"\0" * 8,
    "half a length": b"\0\0\0",
    "header nested 100,000 deep": tensors_file(b"[" * 100_000),
    "tensor nested 100,000 deep": tensors_file(b'{"a":' * 100_000),
    "header not UTF-8": tensors_file(b'{"\xff": {}}'),
    "shape of 2**80 elements": tensors_file({"a": entry([2**40, 2**40], [0, 4])}, bytes(4)),
    "shape of 2**64 + 1 elements": tensors_file({"a": entry([2**32, 2**32 + 1], [0, 4])}, bytes(4)),
    "shape of a petabyte": tensors_file({"a": entry([2**48], [0, 2**50])}, bytes(4)),
    "negative shape": tensors_file({"a": entry([-1], [0, 4])}, bytes(4)),
    "offsets behind the end": tensors_file({"a": entry([1], [0, 4])}),
    "offsets that run backwards": tensors_file({"a": entry([1], [4, 0])}, bytes(4)),
    "offsets of 2**63": tensors_file({"a": entry([1], [2**63, 2**63 + 4])}, bytes(4)),
    "tensors on each other": tensors_file(
        {"a": entry([2], [0, 8]), "b": entry([2], [0, 8])}, bytes(8)
    ),
    "a gap": tensors_file({"a": entry([1], [4, 8])}, bytes(8)),
    "a tensor twice": tensors_file(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8),
    ),
    "unknown dtype": tensors_file({"a": entry([1], [0, 4], "PICKLE")}, bytes(4)),
    **{
        f"dtype {name}": tensors_file({"a": entry([8], [0, size], name)}, bytes(size))
        for name, size in (("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("F8_E8M0", 8),
                           ("F8_E5M2", 8), ("F8_E4M3", 8), ("BOOL", 8), ("C64", 64), ("U64", 64))
    },
    "a tensor of another kind": save({"a": torch.zeros(3, dtype=torch.int16)}),
    # Made where it is used: every worker of the suite would make it otherwise.
    "200,000 tensors": lambda: tensors_file({f"t{i}": entry([0], [0, 0]) for i in range(200_000)}),
}  # fmt: skip


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors(run: Path, name: str) -> None:
    made = SAFETENSORS[name]
    content = made() if callable(made) else made
    for folder, file, read in (
        ("best", "model.safetensors", lambda: load_run(run)),
        ("last", STATE_TENSORS, lambda: resume(run)),
    ):
        path = run / folder / file
        whole = path.read_bytes()
        path.write_bytes(content)
        resign(run / folder)
        assert str(path) in refusal(read)
        path.write_bytes(whole)
        resign(run / folder)
    path = run / "interactions.safetensors"
    path.write_bytes(content)
    assert str(path) in refusal(lambda: load_run(run))


class Payload:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_no_pickle_is_read(run: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    plain = pickle.dumps(Payload(mark))
    torch.save({"a": Payload(mark)}, tmp_path / "torch")
    tensors, rest = list(run.rglob("*.safetensors")), list(run.rglob("*.json"))
    for content, paths in (
        (plain, [*tensors, *rest, run / "metrics.jsonl"]),
        ((tmp_path / "torch").read_bytes(), tensors),
        (tensors_file({"a": 1}, plain), tensors),
    ):
        for path in paths:
            whole = path.read_bytes()
            path.write_bytes(content)
            if path.parent != run and path.name != MANIFEST:
                resign(path.parent)
            which = "last" if path.parent.name == "last" else "best"
            refusal(lambda w=which: (load_run(run, which=w), resume(run)))
            path.write_bytes(whole)
            if path.parent != run and path.name != MANIFEST:
                resign(path.parent)
    for suffix in ("csv", "tsv", "jsonl", "inter", "parquet", "txt", "yaml", "json"):
        path = tmp_path / f"data.{suffix}"
        path.write_bytes(plain)
        refusal(lambda p=path, s=suffix: read_config(p) if s in ("yaml", "json") else load(p))
    assert not mark.exists()


# ---------------------------------------------------------------------- JSON


JSON = {
    "nested 100,000 deep": ("[" * 100_000, "nested more than"),
    "nested and closed": ('{"epochs": ' + "[" * 500 + "]" * 500 + "}", "nested more than"),
    "a key twice": ('{"epochs": 1, "epochs": 2}', "'epochs' occurs twice"),
    "not a number": ('{"epochs": NaN}', "NaN is not a finite number"),
    "infinity": ('{"epochs": -Infinity}', "-Infinity is not a finite number"),
    "1e999": ('{"epochs": 1e999}', "1e999 is out of range"),
    "digits without end": ('{"epochs": ' + "9" * 200_000 + "}", "does not parse as JSON"),
    "cut off": ('{"epochs": 1', "does not parse as JSON"),
    "nothing": ("", "does not parse as JSON"),
    "a list": ("[]", "a list, not a JSON object|no mapping"),
    "a surrogate alone": ('{"\\ud800": 1}', "must hold the objects|unknown|does not parse"),
    "null": ("null", "NoneType|no mapping"),
}


@pytest.mark.parametrize("name", JSON)
def test_json(run: Path, tmp_path: Path, name: str) -> None:
    text, message = JSON[name]
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    said = refusal(lambda: TrainConfig.load(path))
    assert re.search(message, said), said
    names = [
        "config.json", "users.json", "best/config.json", "best/items.json", f"best/{MANIFEST}",
        f"last/{STATE_VALUES}", "environment.json",
    ]  # fmt: skip
    for file in names:
        path = run / file
        whole = path.read_bytes()
        path.write_text(text, encoding="utf-8")
        if path.parent != run and path.name != MANIFEST:
            resign(path.parent)
        said = refusal(lambda: (load_run(run), resume(run)))
        # A model's configuration and vocabulary are named by their folder at least.
        assert str(path.parent) in said
        path.write_bytes(whole)
        if path.parent != run and path.name != MANIFEST:
            resign(path.parent)
    path = run / "metrics.jsonl"
    path.write_text(text + "\n", encoding="utf-8")
    assert f"{path}:1" in refusal(lambda: load_run(run))


def test_vocabularies(run: Path) -> None:
    path = run / "users.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    for changes in (
        {"ids": [10**400] * 40}, {"ids": [2**64] * 40}, {"ids": [1] * 40}, {"ids": [True] * 40},
        {"ids": [None] * 40}, {"ids": {}}, {"first": 2**70}, {"first": -1}, {"first": "x"},
        {"kind": ["int"]}, {"kind": "pickle"}, {"ids": [1.5] * 40}, {"ids": ["\ud800"] * 40,
        "kind": "str"}, {"extra": 1},
    ):  # fmt: skip
        path.write_text(json.dumps({**whole, **changes}), encoding="utf-8")
        refusal(lambda: load_run(run))


def test_a_state_that_contradicts_itself(run: Path) -> None:
    path = run / "last" / STATE_VALUES
    whole = json.loads(path.read_text(encoding="utf-8"))
    steps = whole["step"]
    for changes, message in (
        ({"epoch": 10**15, "step": steps * 10**15}, "one line for each of the epochs"),
        ({"epoch": 10**300}, "does not fit in 64 bits"),
        ({"epoch": -1}, "epoch=-1"),
        ({"epoch": "x"}, "epoch='x'"),
        ({"epoch": None}, "epoch=None"),
        ({"batch": steps + 1, "step": 2 * steps + 1}, "is not batch"),
        ({"step": steps + 1}, "is not batch"),
        ({"examples": -1}, "examples=-1"),
        ({"epoch_seconds": -1.0}, "epoch_seconds"),
        ({"early_stopping": None}, "early_stopping"),
        ({"early_stopping": {"best": "x", "best_epoch": 0, "waited": -1}}, "early_stopping"),
        ({"more": 1}, "unknown key 'more'"),
    ):
        path.write_text(json.dumps({**whole, **changes}), encoding="utf-8")
        resign(run / "last")
        said = refusal(lambda: resume(run))
        assert re.search(message, said), said
    for name in whole:
        values = {key: value for key, value in whole.items() if key != name}
        path.write_text(json.dumps(values), encoding="utf-8")
        resign(run / "last")
        assert f"{name} is missing" in refusal(lambda: resume(run))


def test_state_tensors_of_other_shapes_and_kinds(run: Path) -> None:
    from safetensors.torch import load_file

    path = run / "last" / STATE_TENSORS
    whole = load_file(path)
    whole = {name: tensor.clone() for name, tensor in whole.items()}
    for name in ("statistics", "rng/cpu", "adam/item_embedding.weight/exp_avg",
                 "adam/item_embedding.weight/step"):  # fmt: skip
        tensor = whole[name]
        for other in (tensor[..., None], tensor.to(torch.int16), torch.zeros(7)):
            path.write_bytes(save({**whole, name: other.contiguous()}))
            resign(run / "last")
            assert f"{path}: {name} is torch." in refusal(lambda: resume(run))
        rest = {key: value for key, value in whole.items() if key != name}
        if not name.startswith("adam/"):  # or the others of its parameter are unknown
            path.write_bytes(save(rest))
            resign(run / "last")
            assert f"{path}: the tensor {name} is missing" in refusal(lambda: resume(run))


def test_manifests_that_point_elsewhere(run: Path) -> None:
    path = run / "best" / MANIFEST
    whole = json.loads(path.read_text(encoding="utf-8"))
    for name in ("../config.json", "/etc/hostname", ".", "", "a/../../config.json"):
        path.write_text(json.dumps({**whole, "sha256": {**whole["sha256"], name: "0"}}))
        assert MANIFEST in refusal(lambda: load_run(run))
    for sums in (None, [], {"model.safetensors": {}}, {"x" * 5000: 1}, {}):
        path.write_text(json.dumps({**whole, "sha256": sums}))
        refusal(lambda: load_run(run))


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 65_536},
        {"num_items": 2**31 - 1},
        {"num_items": 2**31 - 1, "hidden_size": 65_536, "num_layers": 256, "max_length": 65_535},
        {"num_layers": 256, "feedforward_multiplier": 64},
        {"num_items": 10**30},
        {"num_layers": 10**9},
        {"hidden_size": 10**12, "num_heads": 10**12},
        {"max_depth": 10**9},
        {"feedforward_multiplier": 10**12},
    ],
)
def test_configurations_that_ask_for_too_much(run: Path, changes: dict[str, int]) -> None:
    """What the weights do not bear out is not allocated."""
    path = run / "best" / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, **changes}), encoding="utf-8")
    resign(run / "best")
    assert str(run / "best") in refusal(lambda: ADARec.from_pretrained(run / "best"))
    assert str(run / "best") in refusal(lambda: load_run(run))

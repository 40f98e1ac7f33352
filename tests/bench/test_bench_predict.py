"""Predicted times: what follows from the model, and the file that a page's table is made of."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from adarec_fast.ops import OPS
from bench import predict
from bench.triton_model import LOADS, units


def test_the_file_is_what_the_command_writes() -> None:
    assert json.loads(predict.SAVED.read_text(encoding="utf-8")) == json.loads(
        json.dumps(predict.document())
    )


def test_the_page_that_says_what_launches_are_for_agrees_with_the_file() -> None:
    page = (Path(__file__).parents[2] / "adarec_fast" / "docs" / "gpu.md").read_text()
    step = json.loads(predict.SAVED.read_text())["predicted"]["64"]["train"]["H100"]["tf32"]
    each = {
        op: one["count"] * sum(p["launches"] for p in one["passes"].values())
        for op, one in step["ops"].items()
    }  # fmt: skip
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| (\d+) \|$", page, re.MULTILINE)
    named = [re.findall(r"`([^`]+)`", ops) for ops, _ in rows]
    assert sorted(op for ops in named for op in ops) == sorted(each)
    for ops, count in zip(named, (int(count) for _, count in rows), strict=True):
        assert count == (sum(each[op] for op in ops) if ops else predict.OTHER_LAUNCHES), ops
    assert sum(int(count) for _, count in rows) == step["launches"]
    assert f"is {step['launches']} kernels" in page


def test_every_op_of_a_step_has_its_floor() -> None:
    names = {op.partition("[")[0] for op, _, _ in predict.STEP}
    # The last has no kernel.
    elsewhere = {op.partition("[")[0] for op in predict.BESIDE} - names | {"wide_normals"}
    assert names | elsewhere == set(OPS)
    assert not names & elsewhere
    for op, _, _ in predict.STEP:
        assert units(op, LOADS["train"], 64, "tf32", False)[1], op


@pytest.mark.parametrize("op", ["hda_trajectory", "linear_cross_entropy", "encoder_layer[last]"])
@pytest.mark.parametrize("backward", [False, True])
def test_a_prediction_is_above_its_floor_and_grows(op: str, backward: bool) -> None:
    for gpu in predict.GPUS:
        for precision, kind in predict.PRECISIONS.items():
            small, large = (
                predict.predicted(op, LOADS[name], 64, precision, gpu, backward)
                for name in ("train", "large")
            )
            assert small is not None
            assert large is not None
            assert small.launches == large.launches
            assert predict.LEAST * small.launches <= small.time < large.time
            assert max(units(op, LOADS["large"], 64, kind, backward)[1][gpu].values()) < large.time


def test_a_row_of_a_record_has_its_prediction() -> None:
    card = "NVIDIA H100 80GB HBM3"
    found = predict.foreseen(card, "hda_trajectory", None, "train", 64, "forward", "tf32")
    both = predict.foreseen(card, "hda_trajectory", None, "train", 64, "forward+backward", "tf32")
    assert found is not None
    assert both is not None
    assert 1e-6 < found < both < 1e-3
    last = predict.foreseen(card, "encoder_layer", "fine expert", "large", 64, "forward", "ieee")
    whole = predict.foreseen(card, "encoder_layer", "backbone", "large", 64, "forward", "ieee")
    assert last is not None
    assert whole is not None
    assert last != whole
    assert predict.foreseen("A100", "hda_trajectory", None, "train", 64, "forward", "tf32") is None
    assert predict.foreseen(card, "wide_normals", None, "train", 64, "forward", "tf32") is None


def test_what_is_in_no_step_has_its_prediction() -> None:
    card = "NVIDIA H200"

    def found(subject: str, workload: str, form: str = "") -> float:
        seconds = predict.foreseen(card, subject, form, workload, 64, "forward", "tf32")
        assert seconds is not None, subject
        return seconds

    assert predict.foreseen(card, "score_topk", "", "serve-1", 64, "forward", "tf32") is None
    ranked, remembered = (found(op, "serve-1024") for op in ("score_topk", "memory_topk"))
    assert 1e-6 < ranked < remembered < 1e-2
    few, many = (found("linear_cross_entropy", "large", f) for f in ("", "10^6 items"))
    assert 20 * few < many < 1

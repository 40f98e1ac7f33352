"""The profiler: ranges, figures, costs, and a whole run on the CPU."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from adarec_fast import ADARec  # noqa: E402
from adarec_fast.ops import _library  # noqa: E402
from adarec_fast.ops._library import collecting  # noqa: E402
from bench import costs, profile, ranges  # noqa: E402
from bench.roofline import Point  # noqa: E402
from bench.test_bench_hda_trajectory import HDATrajectory  # noqa: E402
from bench.workloads import NUM_ITEMS, histories  # noqa: E402

PEAKS = {"gflops": 100.0, "gbps": 10.0}


def test_ranges_name_every_op_of_a_step_and_leave_nothing_behind() -> None:
    before = _library.implementation
    batch = histories("train")[0].part(0, 8)
    model = ADARec(num_items=NUM_ITEMS, hidden_size=16, backend="packed").train()
    with ranges.marked() as marks:
        model.loss(batch.as_batch()).total.backward()
    assert _library.implementation is before
    uses = {use for use, _, _ in marks.found.values()}
    on_cuda = {
        "level_biases", "mlp_expert_pooled", "length_bias", "embedding", "objective",
        "epoch_statistics", "gradient_norm", "adam",
    }  # fmt: skip
    elsewhere = {"score_topk", "memory_topk", "fused_trajectory", "local_path"}
    assert uses == set(ranges.EQUATIONS) - elsewhere - on_cuda
    assert marks.found["Eq 4-5 hda_trajectory backward"] == ("hda_trajectory", "backward", "packed")
    assert {"backbone encoder_layer forward", "Eq 8 fine expert backward"} <= set(marks.found)
    assert [len(depth) for depth in marks.depths] == [8]
    # Nsight's filters give these a meaning.
    assert not set("/,[]*+@$|") & set("".join(marks.found))


def test_figures_are_those_of_the_op_cases_at_the_drawn_depths() -> None:
    batch = histories("train")[0]
    marks = ranges.Marks()
    for direction in ranges.DIRECTIONS.values():
        title = ranges.label("hda_trajectory", direction)
        marks.found[title] = ("hda_trajectory", direction, "cpp")
    marks.depths.append(batch.depth)
    work = costs.figures(marks, [batch], 64, training=True)
    case = HDATrajectory("train", 64, "forward", "cpu")
    assert work["Eq 4-5 hda_trajectory forward"] == (case.flops(), case.bytes())
    both = HDATrajectory("train", 64, "forward+backward", "cpu")
    backward = (both.flops() - case.flops(), both.bytes() - case.bytes())
    assert work["Eq 4-5 hda_trajectory backward"] == backward
    marks.depths[0] = torch.zeros_like(batch.depth)  # level 0 is E itself
    assert costs.figures(marks, [batch], 64, training=True)["Eq 4-5 hda_trajectory forward"][0] == 0


def test_a_point_knows_its_ceiling() -> None:
    products = Point("a", flops=80e9, bytes=1e9, seconds=1.0)
    assert products.bound_by_arithmetic(PEAKS)
    assert products.share(PEAKS) == pytest.approx(0.8)
    copy = Point("b", flops=1e9, bytes=5e9, seconds=1.0)
    assert not copy.bound_by_arithmetic(PEAKS)
    assert copy.share(PEAKS) == pytest.approx(0.5)


def test_gaps_are_between_spans_that_may_overlap() -> None:
    count, idle, whole = costs._gaps([(5e6, 6e6), (0.0, 2e6), (1e6, 3e6)])
    assert (count, idle, whole) == (1, pytest.approx(2.0), pytest.approx(6.0))
    assert costs._gaps([]) == (0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.011, "near the bound"), (0.02, "at most 2.0 times as fast"), (0.2, "random numbers")],
)
def test_sentences_say_what_a_share_means(seconds: float, words: str) -> None:
    point = Point("op", flops=1e9, bytes=1e6, seconds=seconds)
    cost = costs.Cost("op", "op", "cpp", 1, 0, seconds, 0.5, point)
    sentence = cost.sentence(PEAKS, "cpu")
    assert words in sentence
    assert sentence.startswith(f"op: 50% of the step, {seconds * 1e3:.3g} ms. ")


@pytest.mark.parametrize("workload", ["train", "serve-1024"])
def test_a_run_on_the_cpu(
    workload: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--workload", workload, "--hidden-size", "16", "--device", "cpu", "--steps", "1",
        "--output", str(tmp_path),
    ]  # fmt: skip
    assert profile.main(arguments) == 0
    out = capsys.readouterr().out
    assert "the five largest costs" in out
    assert "\n5. " in out
    record = json.loads((tmp_path / "profile.json").read_text())
    assert sum(cost["share"] for cost in record["costs"]) == pytest.approx(1.0, abs=1e-3)
    measured = {cost["name"]: cost for cost in record["costs"] if "flops" in cost}
    last = "Eq 13 linear_cross_entropy" if workload == "train" else "ranking score_topk"
    one = measured[f"{last} forward"]
    batch = histories(workload)[0].batch
    products = 3 if workload == "train" else 1
    assert one["flops"] == pytest.approx(products * 2 * batch * NUM_ITEMS * 16, rel=1e-4)
    assert one["gflops"] == pytest.approx(one["flops"] / one["seconds"] / 1e9, rel=1e-3)
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())[
        "traceEvents"
    ]}  # fmt: skip
    assert set(measured) <= names
    ran = {f"adarec_fast::hda_trajectory_{suffix}" for suffix in ("fwd", "keep")}
    assert ran & names
    assert sum(cost["seconds"] for cost in record["costs"]) == pytest.approx(
        record["profiled_seconds"], rel=0.01
    )
    pytest.importorskip("matplotlib")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"trace.json", "profile.json", "roofline.png"}


def test_nsight_commands_are_whole(tmp_path: Path) -> None:
    title = "Eq 4-5 hda_trajectory forward"
    commands = profile.nsight(title, "train", 64, tmp_path)
    for tool, command in commands.items():
        words = shlex.split(command)
        assert words[0] == tool
        start = words.index("bench.profile") + 1
        assert profile._arguments([w for w in words[start:] if w != "cuda" and w != "--device"
                                   and w != "--ranges-only"]).steps == 1  # fmt: skip
    assert f"{title}/" in shlex.split(commands["ncu"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--hidden-size", "-1"], "--hidden-size -1 must be at least 1"),
        (["--device", "cpu", "--ranges-only"], "--device cuda"),
        (["--save-results", "a/b"], "--save-results 'a/b' must be letters"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        profile.main(arguments)
    assert complaint in capsys.readouterr().err


@pytest.mark.gpu
def test_a_run_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if collecting():
        pytest.skip("its kernels are those of the phases before the tests")
    arguments = ["--device", "cuda", "--steps", "2", "--output", str(tmp_path)]
    assert profile.main(arguments) == 0
    out = capsys.readouterr().out
    assert "\nncu --profile-from-start off --nvtx" in out
    assert "\nnsys profile" in out
    record = json.loads((tmp_path / "profile.json").read_text())
    assert record["launches"] > 10
    assert 0 <= record["gap_seconds"] < record["profiled_seconds"]
    kernels = {cost["name"]: cost["launches"] for cost in record["costs"] if "flops" in cost}
    assert kernels["Eq 4-5 hda_trajectory forward"] >= 1
    assert profile.main([*arguments, "--ranges-only"]) == 0

"""The benchmarks' own parts: workloads, baselines, timing, records and tables."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).parents[1]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from adarec_fast import ADARec, ragged, rng  # noqa: E402
from adarec_fast.reference.depth_controller import (  # noqa: E402
    depth_controller as reference_controller,
)
from bench import conftest, records, report, summary  # noqa: E402
from bench.baselines import library_gru  # noqa: E402
from bench.baselines.packed import PackedADARec  # noqa: E402
from bench.baselines.padded import PaddedADARec  # noqa: E402
from bench.baselines.sasrec import PackedSASRec  # noqa: E402
from bench.cell import Cell, Group, Session  # noqa: E402
from bench.harness import (  # noqa: E402
    COMPILED,
    EAGER,
    PACKED,
    Prepared,
    Subject,
    Unavailable,
    compare,
    replay,
    replay_clock,
)
from bench.machine import peak_memory  # noqa: E402
from bench.test_bench_depth_controller import DepthController  # noqa: E402
from bench.test_bench_hda_trajectory import HDATrajectory  # noqa: E402
from bench.test_bench_score_topk import ScoreTopK  # noqa: E402
from bench.workloads import MAX_DEPTH, MAX_LENGTH, WORKLOADS, histories  # noqa: E402

T, D = 3, 8


@pytest.fixture
def model() -> ADARec:
    """In float64, without dropout, so that only depths and noise are drawn."""
    made = ADARec(
        num_items=12_101, hidden_size=D, max_depth=T, dropout=0.0, attention_dropout=0.0,
        backend="reference",
    ).double()  # fmt: skip
    with torch.no_grad():  # so that users differ in their depths
        for parameter in made.depth_controller.parameters():
            parameter.normal_(0.0, 0.5)
    return made


def test_workloads_are_deterministic_and_as_real_ones() -> None:
    first = histories("train")[0]
    histories.cache_clear()
    again = histories("train")[0]
    assert torch.equal(first.item_ids, again.item_ids)
    assert torch.equal(first.depth, again.depth)
    for name, workload in WORKLOADS.items():
        batch = histories(name)[0]
        assert batch.batch == workload.batch
        assert 1 <= int(batch.lengths.min()) <= int(batch.lengths.max()) <= MAX_LENGTH
        assert batch.level_tokens == int((batch.lengths * (batch.depth + 1)).sum())
    large = histories("large")[0]
    assert set(large.depth.tolist()) == set(range(MAX_DEPTH + 1))
    # Of a batch that is padded to 50, most is padding.
    assert 5 < large.tokens / large.batch < 12


def test_parts_of_a_batch_are_its_sequences() -> None:
    batch = histories("train")[0]
    parts = [batch.part(low, low + 64) for low in range(0, 256, 64)]
    assert torch.equal(torch.cat([p.item_ids for p in parts]), batch.item_ids)
    assert all(int(p.offsets[-1]) == p.tokens for p in parts)
    whole = histories("train", every_position=True)[0]
    assert whole.targets.numel() == whole.tokens
    assert torch.equal(
        torch.cat([whole.part(0, 100).targets, whole.part(100, 256).targets]), whole.targets
    )


@pytest.mark.parametrize("every_position", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_padded_baseline_has_the_models_loss_and_gradients(
    model: ADARec, training: bool, every_position: bool
) -> None:
    batch = histories("train", every_position=every_position)[0].part(0, 24)
    model.config = model.config.replace(supervision="all" if every_position else "prefix")
    model.train(training)
    noise = gumbel = None
    if training:
        seed = model.noise_seed.clone()
        packed = rng.trajectory_noise(seed, batch.tokens, D, T, torch.float64)
        noise = ragged.to_padded(packed, batch.offsets, MAX_LENGTH, dim=1)
        gumbel = rng.gumbel(seed, batch.batch, T + 1, torch.float64)
    wanted = model.loss(batch.as_batch()).total
    baseline = PaddedADARec(model).train(training)
    found = baseline(batch.padded_ids(), batch.lengths, batch.targets, noise, gumbel)
    torch.testing.assert_close(found, wanted)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(wanted, parameters),
        torch.autograd.grad(found, parameters),
        strict=True,
    ):
        torch.testing.assert_close(theirs, ours)


def test_packed_baseline_has_the_models_loss_and_gradients(model: ADARec) -> None:
    batch = histories("train")[0].part(0, 24)
    model.eval()
    wanted = model.loss(batch.as_batch()).total
    found = PackedADARec(model).eval()(batch.item_ids, batch.offsets, batch.targets)
    torch.testing.assert_close(found, wanted)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(wanted, parameters),
        torch.autograd.grad(found, parameters),
        strict=True,
    ):
        torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("baseline", [PackedADARec, PackedSASRec])
def test_peers_of_an_epoch_have_the_models_loss_and_gradients(
    baseline: type[PackedADARec] | type[PackedSASRec],
) -> None:
    off = {"moe": False, "diffusion": False, "depth": "fixed", "lambda_cont": 0.0}
    made = ADARec(
        num_items=12_101, hidden_size=D, max_depth=T, supervision="all", dropout=0.0,
        attention_dropout=0.0, backend="reference", **(off if baseline is PackedSASRec else {}),
    ).double().eval()  # fmt: skip
    batch = histories("train")[0].part(0, 24)
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(1, 12_102, batch.item_ids.shape, generator=generator)
    wanted = made.loss(batch.as_batch()._replace(targets=targets)).total
    longest = [int(batch.lengths.max())] if baseline is PackedSASRec else []
    found = baseline(made).eval()(batch.item_ids, batch.offsets, targets, *longest)
    torch.testing.assert_close(found, wanted)
    parameters = [p for p in made.parameters() if p.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(wanted, parameters, allow_unused=True),
        torch.autograd.grad(found, parameters, allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(theirs, ours)


def test_sasrec_baseline_refuses_what_it_does_not_compute() -> None:
    with pytest.raises(ValueError, match="supervision='prefix'"):
        PackedSASRec(ADARec(num_items=10, hidden_size=D))


def test_an_epoch_is_judged_by_its_stretches() -> None:
    fields = {"subject": "Beauty epoch", "direction": "epoch", "stretches": 8, "data": "Beauty"}
    rows = [_row("packed SASRec", 2.0, **fields), _row("adarec_fast", 1.25, ours=True, **fields)]
    (comparison,) = summary.comparisons(rows)
    (judged,) = summary.judge(comparison, "cpu")
    assert str(judged) == "10 of ≤ 10.6 s: met"
    summary.print_tables(rows, {"gflops": 1.0}, "cpu")


def test_packed_baseline_draws_dropout_and_noise() -> None:
    batch = histories("train")[0].part(0, 24)
    baseline = PackedADARec(ADARec(num_items=12_101, hidden_size=D, max_depth=T)).train()
    first, second = (
        float(baseline(batch.item_ids, batch.offsets, batch.targets).detach()) for _ in range(2)
    )
    assert first != second
    # The stand-in for the noise contract is gone again.
    from adarec_fast.packed import encoder_layer

    assert encoder_layer.rng is rng


def test_baselines_recommend_what_the_model_does(model: ADARec) -> None:
    batch = histories("serve-1024")[0].part(0, 24)
    model.eval()
    items, scores = model.recommend((batch.item_ids, batch.offsets), k=5)
    ids = batch.padded_ids()
    with torch.no_grad():
        padded = PaddedADARec(model).eval().recommend(ids, batch.lengths, 5)
    packed = PackedADARec(model).eval().recommend(batch.item_ids, batch.offsets, ids, 5)
    for found in (padded, packed):
        torch.testing.assert_close(found[0], scores)
        assert torch.equal(found[1], items)


def test_baselines_refuse_what_they_do_not_compute() -> None:
    with pytest.raises(ValueError, match="router='level'"):
        PaddedADARec(ADARec(num_items=10, hidden_size=D, router="level"))
    with pytest.raises(ValueError, match="serve-1024"):
        histories("serve-1024", every_position=True)


class _Toy(Subject):
    name, workload, size, direction, device = "toy", "train", 1, "forward", "cpu"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def prepare(self, variant: str) -> Prepared:
        if variant == "missing":
            raise Unavailable("not here")
        if variant == "broken":
            raise RuntimeError("does not run")
        wrong = "off by 1" if variant == "wrong" else None
        return Prepared(lambda: self.calls.append(variant), {"ours": variant == "a"}, wrong)


class _Sized(_Toy):
    def flops(self) -> int:
        return 1

    def bytes(self) -> int:
        return 1


class _Silent:
    """pytest-benchmark's fixture where benchmarks are disabled."""

    disabled = True

    def __init__(self) -> None:
        self.extra_info: dict[str, object] = {}

    def __call__(self, function: Callable[[], object]) -> None:
        function()


def test_rounds_are_interleaved_and_wrong_results_are_told() -> None:
    toy = _Toy()
    names = ["a", "b", "missing", "broken", "wrong"]
    found = compare(toy, names, seconds=0.0, least_rounds=3)
    assert [len(found[name].rounds) for name in found] == [3, 3, 0, 0, 3]
    assert found["missing"].unavailable == "not here"
    assert isinstance(found["broken"].error, RuntimeError)
    assert [found[name].complaint for name in ("a", "wrong")] == [None, "off by 1"]
    order = [key for key, _ in itertools.groupby(toy.calls)]
    assert order == ["a", "b", "wrong"] * 4  # one call each for its time, then the rounds


def test_a_failed_check_is_recorded_with_its_time_and_fails_its_test() -> None:
    group = Group(_Toy, "train", 1, "forward", "cpu", 0.0, 3, ["wrong"])  # type: ignore[arg-type]
    group.subject = _Sized()
    group.outcomes = compare(group.subject, ["wrong"], seconds=0.0, least_rounds=3)
    session = Session("cpu", peaks={"gflops": 1.0, "gbps": 1.0})
    with pytest.raises(AssertionError, match="off by 1"):
        Cell(group, "wrong", session).run(_Silent())  # type: ignore[arg-type]
    (row,) = session.rows
    assert row["failed_check"] == "off by 1"
    assert row["seconds"]["rounds"] == 3


def test_replayed_rounds_take_as_long_as_measured() -> None:
    run = replay([0.25, 1.5])
    start = replay_clock()
    run()
    assert replay_clock() - start == pytest.approx(0.25)
    run()
    assert replay_clock() - start == pytest.approx(1.75)


def test_peak_memory_sees_what_is_freed_again() -> None:
    found = peak_memory(lambda: torch.ones(64 << 20, dtype=torch.uint8).max(), "cpu")
    if found is None:
        pytest.skip("this system does not tell a process its peak")
    assert 60 << 20 < found < 200 << 20


@pytest.mark.parametrize("case", [HDATrajectory, ScoreTopK])
def test_a_wrong_variant_is_caught(case: type[HDATrajectory] | type[ScoreTopK]) -> None:
    class Wrong(case):  # type: ignore[misc, valid-type]
        def packed(self, *arguments: object) -> object:
            first, second = super().packed(*arguments)
            return first * 1.001, second

    made = Wrong(case.workloads[0] if case is HDATrajectory else "serve-1", 16, "forward", "cpu")
    assert f"{case.name}: output 0: off by" in str(made.prepare(PACKED).complaint)


def test_the_librarys_gru_is_the_references() -> None:
    made = DepthController("train", 8, "forward+backward", "cpu")
    batch = made.batch.part(0, 9)
    t = {name: value.double().requires_grad_() for name, value in made.tensors.items()}
    padded = ragged.to_padded(t["embeddings"][: batch.tokens], batch.offsets, MAX_LENGTH)
    weights = [t[name] for name in ("w_ih", "w_hh", "b_hh", "w_out", "b_out")]
    found = []
    for function in (reference_controller, library_gru.depth_controller):
        logits, _ = function(padded, made.valid(batch), t["sequence_bias"][:9], *weights)
        gradients = torch.autograd.grad(logits.square().sum(), [*t.values()], retain_graph=True)
        found.append((logits, *gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_padded_baseline_in_chunks_has_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    made = HDATrajectory("train", 8, "forward+backward", "cpu")
    monkeypatch.setattr("bench.op_case.MEMORY_LIMIT", made.padded_floats() * 4 // 3)
    prepared = made.prepare(EAGER)
    assert prepared.complaint is None
    assert prepared.info["chunks"] == 4
    monkeypatch.setattr(HDATrajectory, "chunkable", False)
    with pytest.raises(Unavailable, match="GiB"):
        made.prepare(EAGER)


def _row(variant: str, median: float, **fields: object) -> dict[str, object]:
    return {
        "subject": "training step", "form": "", "workload": "train", "hidden_size": 64,
        "direction": "step", "variant": variant, "peak_memory": 1 << 20,
        "seconds": {"median": median, "min": median, "mean": median, "max": median, "rounds": 3},
        "gflops": 1.0, "gbps": 1.0, "share_of_roofline": 0.5, "share_of_peak_bandwidth": 0.1,
        **fields,
    }  # fmt: skip


def _rows() -> list[dict[str, object]]:
    return [
        _row(EAGER, 2.1, peak_memory=4 << 20),
        _row(COMPILED, 0.9),
        _row("adarec_fast", 0.1, ours=True),
    ]


def test_targets_are_judged() -> None:
    (comparison,) = summary.comparisons(_rows())
    judged = summary.judge(comparison, "cpu")
    found = {one.target.measure: (round(one.reached, 6), one.met) for one in judged}
    assert found == {EAGER: (21.0, True), COMPILED: (9.0, False), "memory": (4.0, False)}


def test_precisions_are_compared_apart(results: Path, tmp_path: Path) -> None:
    rows = [
        *_rows(), _row("adarec_fast", 4e-4, ours=True, precision="tf32"),
        _row("adarec_fast", 9e-4, ours=True, precision="ieee", share_of_roofline=None),
    ]  # fmt: skip
    names = [comparison.name for comparison in summary.comparisons(rows)]
    what = "training step, train, D=64, step"
    assert names == [what, f"{what}, tf32", f"{what}, ieee"]
    record = json.loads(next(p for p in results.iterdir() if "other" not in p.name).read_text())
    record |= {"device": "cuda", "rows": rows, "slug": "card"}
    record["machine"]["gpu"] = "Card 1"
    record["phases"] = {"ops": {"status": "killed: its time was over", "seconds": 3.2}}
    records.write(record, tmp_path)
    text = report.build("targets-cuda", tmp_path)
    assert f"| {what}, tf32 | 0.40 of ≤ 0.8 ms | met |" in text
    assert f"| {what}, ieee | 0.90 of ≤ 0.8 ms | NOT MET |" in text
    assert f"| {what}, ieee | 0.9 ms (adarec_fast) | – | – | – | – |" in report.build(
        "step-cuda", tmp_path
    )
    assert "| ops | killed: its time was over | 3 s |  |" in report.build("phases-cuda", tmp_path)
    assert "Card 1, " in text
    assert "Nothing has been measured on a GPU yet" in report.build("step-cuda", results)


def test_tables_print(capsys: pytest.CaptureFixture[str]) -> None:
    summary.print_tables(_rows(), {"gflops": 1.0, "gbps": 2.0}, "cpu")
    out = capsys.readouterr().out
    assert "21.00x (≥ 20: met)" in out
    assert "9.00x (≥ 10: NOT MET)" in out


def test_a_run_from_the_command_line_saves_its_results(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-q", "-p", "no:cacheprovider",
        "--op", "score_topk", "--workload", "serve-1", "-k", "not compiled",
        "--benchmark-max-time", "0.01", "--save-results", "--results-dir", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "times of the baselines over ours" in done.stdout
    record = records.newest("cpu", tmp_path)
    assert record is not None
    measured = {row["variant"]: row for row in record["rows"] if "seconds" in row}
    assert {EAGER, PACKED} < set(measured)
    assert sum(row.get("ours", False) for row in measured.values()) == 1
    for row in measured.values():
        assert row["seconds"]["rounds"] >= 5
        assert row["flops"] == 2 * 12_101 * 64
        assert row["gflops"] == pytest.approx(row["flops"] / row["seconds"]["median"] / 1e9, 1e-3)
        assert 0 < row["share_of_peak_flops"] <= row["share_of_roofline"]


@pytest.mark.parametrize(("asked", "wanted"), [([], False), (["--op", "epoch"], True)])
def test_an_epoch_beside_peers_is_timed_only_if_asked_for(asked: list[str], wanted: bool) -> None:
    command = [
        sys.executable, "-m", "pytest", "bench", "--collect-only", "-q", "-p", "no:cacheprovider",
    ]  # fmt: skip
    done = subprocess.run(
        [*command, *asked], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "test_epoch[train-64-epoch-adarec_fast]" in done.stdout
    assert ("test_epoch[beside_SASRec-train-64-epoch-adarec_fast]" in done.stdout) is wanted
    assert ("test_bench_step.py" in done.stdout) is not wanted


def test_unknown_names_are_refused() -> None:
    given = SimpleNamespace(getoption=lambda name: "train, huge")
    with pytest.raises(pytest.UsageError, match="--workload: 'huge' is unknown; choose from train"):
        conftest.chosen(given, "workload", list(WORKLOADS))
    given.getoption = lambda name: "large"
    assert conftest.chosen(given, "workload", list(WORKLOADS)) == ["large"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    session = Session("cpu", _rows(), {"gflops": 50.0, "gbps": 20.0})
    folder = tmp_path / "results"
    path = records.write(records.make(session, ["pytest", "bench/"]), folder)
    assert [p.name for p in folder.iterdir()] == [path.name]
    (folder / "other.json").write_text("[1]")  # of another tool
    return folder


def test_records_name_machine_versions_and_command(results: Path) -> None:
    record = records.newest("cpu", results)
    assert record is not None
    assert record["command"] == "pytest bench/"
    assert record["versions"]["torch"] == torch.__version__
    assert record["machine"]["cores"] >= 1
    assert records.newest("cuda", results) is None
    (results / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json: not valid JSON"):
        records.newest("cpu", results)


def test_a_later_run_of_the_day_keeps_what_it_did_not_measure(tmp_path: Path) -> None:
    def record(command: str, torch: str, *subjects: str) -> dict[str, object]:
        rows = [
            {"subject": name, "form": "", "workload": "train", "hidden_size": 64,
             "direction": "forward", "variant": command, "gflops": 5.0, "gbps": 1.0}
            for name in subjects
        ]  # fmt: skip
        return {
            "kind": records.KIND, "device": "cpu", "slug": "toy", "date": "2026-01-02 03:04 UTC",
            "command": command, "versions": {"torch": torch},
            "peaks": {"gflops": 20.0 if command == "one" else 10.0, "gbps": 10.0},
            "machine": {"cpu": "toy", "cores": 2}, "rows": rows,
        }  # fmt: skip

    first, second = record("one", "2.13", "a", "b"), record("two", "2.13", "b", "c")
    assert records.joined(first, tmp_path) == first
    records.write(first, tmp_path)
    both = records.joined(second, tmp_path)
    assert [(row["subject"], row["variant"]) for row in both["rows"]] == [
        ("a", "one"), ("b", "two"), ("c", "two"),
    ]
    assert both["command"] == "one; two"
    assert both["peaks"] == {"gflops": 20.0, "gbps": 10.0}
    assert {row["share_of_peak_flops"] for row in both["rows"]} == {0.25}
    other = record("three", "2.14", "c")
    assert records.joined(other, tmp_path) == other


def test_the_pages_show_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {page.relative_to(report.ROOT).as_posix() for page in report.pages()}
    assert {"README.md", "bench/README.md", "adarec_fast/docs/choosing-a-model.md"} <= shown
    assert report.main(["--check"]) == 0, capsys.readouterr().out


def test_every_table_stands_on_a_page() -> None:
    marked = {
        name for page in report.pages()
        for name in re.findall(r"<!-- bench:([\w-]+) -->", page.read_text(encoding="utf-8"))
    }  # fmt: skip
    assert marked >= {*report.tables.TABLES, "targets-cpu", "speed-cpu", "step-cpu", "ops-cpu"}
    assert marked >= {"step-cuda", "predicted-train", "predicted-large"}


def test_the_picture_follows_the_record(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "speed.svg"
    assert report.draw(path, results, check=True) == 1
    assert not path.exists()
    assert report.draw(path, results, check=False) == 0
    assert report.draw(path, results, check=True) == 0
    drawn = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    shapes = [child.tag.rpartition("}")[2] for child in drawn]
    assert shapes.count("rect") > 1
    path.write_text("<svg/>")
    assert report.draw(path, results, check=True) == 1


def test_report_rebuilds_and_checks(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- bench:targets-cpu -->\nold\n<!-- /bench:targets-cpu -->\nz\n")
    assert report.run(readme, results, check=True) == 1
    assert "old" in readme.read_text()
    assert report.run(readme, results, check=False) == 0
    text = readme.read_text()
    assert "old" not in text
    assert text.startswith("a\n<!-- bench:targets-cpu -->\n")
    assert text.endswith("<!-- /bench:targets-cpu -->\nz\n")
    assert "21.0x" in text
    assert report.run(readme, results, check=True) == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- bench:nonsense -->\n<!-- /bench:nonsense -->", "nonsense"),
        ("<!-- bench:step-cpu -->\n", "step-cpu"),
        ("<!-- bench:step-rocm -->\n<!-- /bench:step-rocm -->", "choose from targets-cpu"),
    ],
)
def test_report_names_what_is_wrong(
    results: Path, tmp_path: Path, text: str, complaint: str
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(report.ReportError, match=complaint):
        report.run(readme, results, check=False)


def test_report_without_markers_does_nothing(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("plain\n")
    assert report.run(readme, results, check=True) == 0
    assert "nothing to rebuild" in capsys.readouterr().out


def test_rounding_keeps_five_digits() -> None:
    assert json.dumps(records.rounded({"a": [1.23456789e-5, 3]})) == '{"a": [1.2346e-05, 3]}'

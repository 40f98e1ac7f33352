"""Exported models: the same ranking on every shape, whole folders or none, no code of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_export import SIZES, make_model, make_run
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from adarec_fast import ADARec, ConfigError, TrainConfig, synthetic
from adarec_fast.cli import app
from adarec_fast.export import Exported, ExportError, ExportOptions, export_run, formats
from adarec_fast.export.graph import RankingModel, capture
from adarec_fast.training import Run, load_run, train

VARIANTS: list[dict[str, Any]] = [
    {}, {"coarse_expert": "transformer"}, {"router": "level"}, {"residual": True},
    {"start": "backbone", "denoiser": "bounded"},
    {"depth": "fixed"}, {"diffusion": False}, {"moe": False}, {"num_layers": 0},
    {"local_path": 3},
    {"depth": "fixed", "diffusion": False, "moe": False},
]  # fmt: skip
FEW = ExportOptions(k=5, users=30, max_batch=64, dtype="float16")


@pytest.fixture(scope="module")
def exported(run: Run) -> dict[str, Exported]:
    """Every format that takes no compiler."""
    for package in ("onnxruntime", "onnxscript", "faiss"):
        pytest.importorskip(package)
    made = export_run(run, run.path / "out", ["torch", "onnx", "ann"], FEW)
    return {entry.format: entry for entry in made}


def shapes(num_items: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of 1, 3 and 64 users, whose longest history is each length from 1 to the greatest."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for users in (1, 3, 64):
        for length in range(1, SIZES["max_length"] + 1):
            ids = torch.randint(1, num_items + 1, (users, length), generator=generator)
            sizes = torch.randint(1, length + 1, (users, 1), generator=generator)
            sizes[0] = length
            ids[torch.arange(length) >= sizes] = 0
            made.append((ids, torch.randint(0, num_items + 1, (users, 9), generator=generator)))
    return made


def assert_ranks_like(model: ADARec, answer: Callable[..., tuple[Tensor, ...]]) -> None:
    for ids, seen in shapes(model.config.num_items):
        items, scores = answer(ids, seen)
        counts = (seen != 0).sum(1)
        jagged = seen[seen != 0], torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        expected, expected_scores = model.recommend(ids, k=5, seen=jagged)
        assert torch.equal(items, expected)
        torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_graph_is_the_model(options: dict[str, Any]) -> None:
    model = make_model(50, **options)
    users = model.user_graph()
    with torch.no_grad():
        for ids, _ in shapes(50)[5::6]:
            torch.testing.assert_close(users(ids), model(ids).user, rtol=1e-5, atol=1e-6)


def test_models_that_cannot_be_exported_are_named() -> None:
    with pytest.raises(ConfigError, match="evaluation_samples=2 draws noise"):
        make_model(9, evaluation_samples=2).user_graph()
    with pytest.raises(ConfigError, match="backbone of your own"):
        ADARec(
            num_items=9, hidden_size=8, backbone=nn.GRU(8, 8, batch_first=True)
        ).user_graph()
    with pytest.raises(ConfigError, match=r"k=10 must lie in 1\.\.9"):
        RankingModel(make_model(9), k=10, exclude_seen=True)


def test_torch(run: Run, exported: dict[str, Exported]) -> None:
    made = exported["torch"]
    folder = made.folder
    assert (folder, made.outcome.users) == (run.path / "out" / "torch", 36)
    assert sorted(p.name for p in folder.iterdir()) == ["items.json", "manifest.json", "model.pt2"]
    assert_ranks_like(run.model, torch.export.load(folder / "model.pt2").module())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["name"] for entry in manifest["inputs"]] == ["item_ids", "seen"]
    assert (manifest["k"], manifest["batch"], manifest["length"]) == (5, [1, 64], [1, 6])
    assert manifest["versions"]["torch"] == torch.__version__
    ids = json.loads((folder / manifest["items"]["file"]).read_text())
    assert [ids["ids"][i - 1] for i in (1, 50)] == run.data.items.decode([1, 50])


def test_the_program_needs_no_code_of_ours(
    run: Run, exported: dict[str, Exported], tmp_path: Path
) -> None:
    script = (
        "import sys, torch\n"
        "program = torch.export.load(sys.argv[1]).module()\n"
        "history = torch.tensor([[3, 1, 4]])\n"
        "items, _ = program(history, history)\n"
        "assert 'adarec_fast' not in sys.modules\n"
        "print(items.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(exported["torch"].folder / "model.pt2")], cwd=tmp_path,
        timeout=120, capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected, _ = run.model.recommend([[3, 1, 4]], k=5)
    assert json.loads(done.stdout) == expected.tolist()


def test_onnx(run: Run, exported: dict[str, Exported]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        exported["onnx"].folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert [entry.name for entry in session.get_inputs()] == ["item_ids", "seen"]
    assert [entry.name for entry in session.get_outputs()] == ["items", "scores"]

    def answer(ids: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        fed = {"item_ids": ids.numpy(), "seen": seen.numpy()}
        return tuple(torch.from_numpy(x) for x in session.run(None, fed))

    assert_ranks_like(run.model, answer)


def test_the_axes_of_an_onnx_file_are_the_manifests(exported: dict[str, Exported]) -> None:
    import onnx

    folder = exported["onnx"].folder
    graph = onnx.load(folder / "model.onnx").graph
    manifest = json.loads((folder / "manifest.json").read_text())
    for side, values in (("inputs", graph.input), ("outputs", graph.output)):
        shapes = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in values
        }
        assert shapes == {entry["name"]: entry["shape"] for entry in manifest[side]}


ANSWERED = {
    "columns cut out of a wider tensor", "a transposed tensor", "every second place of a tensor",
    "padding on the left",
}  # fmt: skip


@pytest.mark.parametrize("format", ["torch", "onnx", "ann"])
def test_foreign_inputs_are_answered_rightly_or_refused_by_all(
    exported: dict[str, Exported], format: str
) -> None:
    told = json.loads((exported[format].folder / "manifest.json").read_text())["foreign_inputs"]
    assert {name for name, what in told.items() if what == "answered"} == ANSWERED
    assert len(told) == (19 if format == "ann" else 23)


def compiler() -> str:
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


@pytest.mark.slow
def test_aoti(tmp_path: Path) -> None:
    """The longest of these tests: it compiles a small model."""
    compiler()
    run = make_run(tmp_path, num_layers=0, max_depth=1, hidden_size=8)
    (made,) = export_run(run, tmp_path / "out", ["aoti"], FEW)
    assert_ranks_like(run.model, torch._inductor.aoti_load_package(str(made.folder / "model.pt2")))
    told = json.loads((made.folder / "manifest.json").read_text())["foreign_inputs"]
    assert {name for name, what in told.items() if what == "answered"} == ANSWERED
    assert len(told) == 23


PROGRAM = r"""
#include <iostream>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

int main(int, char** argv) {
  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  auto item_ids = torch::tensor({3, 1, 4}, torch::kInt64).view({1, 3});
  auto outputs = model.run({item_ids, item_ids});
  for (int64_t i = 0; i < outputs[0].size(1); ++i)
    std::cout << outputs[0][0][i].item<int64_t>() << "\n";
}
"""


@pytest.mark.slow
def test_aoti_from_cpp(run: Run, tmp_path: Path) -> None:
    """A minute and a half: a program of C++ alone loads the package and ranks."""
    gxx = compiler()
    (made,) = export_run(run, tmp_path / "out", ["aoti"], FEW)
    (tmp_path / "main.cpp").write_text("#include <torch/torch.h>\n" + PROGRAM)
    root = Path(torch.__file__).parent
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    subprocess.run(
        [gxx, "-std=c++20", "main.cpp", "-o", "main", f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
         f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include", f"-L{root}/lib",
         "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root}/lib"],
        cwd=tmp_path, timeout=300, check=True,
    )  # fmt: skip
    done = subprocess.run(
        ["./main", str(made.folder / "model.pt2")], cwd=tmp_path, timeout=60, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    expected, _ = run.model.recommend([[3, 1, 4]], k=5)
    assert [int(line) for line in done.stdout.split()] == expected[0].tolist()


def test_files_have_the_usual_mode(exported: dict[str, Exported], tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    modes = {p.stat().st_mode for made in exported.values() for p in made.folder.rglob("*.*")}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_embeddings_and_index(run: Run, exported: dict[str, Exported]) -> None:
    import faiss

    made = exported["ann"]
    table = load_file(made.folder / "items.safetensors")["embeddings"]
    assert torch.equal(table, run.model.item_embedding.weight[1:].half())
    user_model = torch.export.load(made.folder / "user.pt2").module()
    index = faiss.read_index(str(made.folder / "index.faiss"))
    ids = torch.tensor([[3, 1, 4], [7, 0, 0]])
    user = user_model(ids).detach()
    torch.testing.assert_close(user, run.model(ids).user)
    _, rows = index.search(user.numpy(), 5)
    expected = (user @ table.float().T).topk(5).indices
    assert torch.equal(torch.from_numpy(rows), expected)
    assert made.index is not None
    assert made.index.recall > 0.99
    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert manifest["index"]["recall"] == made.index.recall
    assert made.size == sum((made.folder / name).stat().st_size for name in manifest["files"])


def test_an_index_that_misses_is_refused(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    options = ExportOptions(k=5, users=30, index="IVF10,Flat", search="nprobe=1", min_recall=0.99)
    with pytest.raises(ExportError, match=r"recall@5 against exact search is 0\.\d+"):
        export_run(run, tmp_path / "out", ["ann"], options)
    assert list((tmp_path / "out").glob("ann*")) == []
    with pytest.raises(ConfigError, match="index='HSNW32'"):
        export_run(run, tmp_path / "out", ["ann"], ExportOptions(k=5, index="HSNW32"))
    with pytest.raises(ExportError, match=r"index='IVF99,Flat' cannot be trained on 50 items"):
        export_run(run, tmp_path / "out", ["ann"], ExportOptions(k=5, index="IVF99,Flat",
                                                                     search="nprobe=99"))


def test_a_wrong_program_is_refused_and_the_old_one_stays(
    run: Run, exported: dict[str, Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported["torch"].folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def load_wrong(path: Path, device: torch.device) -> formats.Call:
        right = formats._load_torch(path, device)

        def call(*inputs: Tensor) -> tuple[Tensor, ...]:
            items, scores = right(*inputs)
            return items.flip(-1), scores

        return call

    wrong = formats.Format(".pt2", lambda _, to: shutil.copy(folder / "model.pt2", to), load_wrong)
    monkeypatch.setitem(formats.PROGRAMS, "torch", wrong)
    monkeypatch.setattr("adarec_fast.export.capture", lambda *_, **__: None)
    with pytest.raises(ExportError, match="torch does not rank as the model: for the history"):
        export_run(run, folder.parent, ["torch"], FEW)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(folder.parent.glob("torch.*"))


def test_what_is_missing_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install adarec_fast\[ann\]"):
        export_run(run, tmp_path, ["ann"], FEW)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"pip install adarec_fast\[onnx\]"):
        export_run(run, tmp_path, ["onnx"], FEW)
    with pytest.raises(ConfigError, match="format='tflite' must be one of"):
        export_run(run, tmp_path, ["tflite"], FEW)  # type: ignore[list-item]
    for options, message in (
        ({"max_batch": 1}, "max_batch=1"), ({"dtype": "int8"}, "dtype='int8'"),
        ({"min_recall": 1.5}, r"min_recall=1\.5"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            ExportOptions(**options)


def test_a_length_of_one_item(tmp_path: Path) -> None:
    model = make_model(9, max_length=1)
    program = capture(
        RankingModel(model, k=3, exclude_seen=False), model.config.max_length, max_batch=8,
        num_items=9,
    ).module()
    for users in (1, 8):
        ids = torch.arange(1, users + 1)[:, None]
        assert torch.equal(program(ids)[0], model.recommend(ids, k=3, exclude_seen=False)[0])


def test_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sizes = {name: size for name, size in SIZES.items() if name != "max_depth"}
    train({"model": "sasrec", **sizes, "backend": "packed"}, TrainConfig(epochs=1, batch_size=64),
          synthetic(num_users=60, num_items=40), folder)  # fmt: skip

    def export(*options: str) -> Result:
        return CliRunner().invoke(app, ["export", str(folder), *options], env={"COLUMNS": "200"})

    shown = export("--k", "3", "--users", "20", "--max-batch", "8")
    assert shown.exit_code == 0, shown.output
    assert str(folder / "export" / "torch") in shown.output
    program = torch.export.load(folder / "export" / "torch" / "model.pt2").module()
    history = torch.tensor([[3, 1, 4]])
    expected, _ = load_run(folder).model.recommend(history, k=3)
    assert torch.equal(program(history, history)[0], expected)


def test_the_command_says_what_is_wrong(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adarec_fast.training.load_run", lambda *_, **__: run)

    def export(*options: str) -> Result:
        return CliRunner().invoke(app, ["export", str(run.path), *options])

    shown = export("--k", "99")
    assert (shown.exit_code, "k=99 must lie in 1..50" in shown.output) == (2, True)

    def refuse(*_: object) -> None:
        raise ExportError("it differs")

    monkeypatch.setattr("adarec_fast.export.export_run", refuse)
    shown = export()
    assert (shown.exit_code, "error: it differs" in shown.output) == (1, True)

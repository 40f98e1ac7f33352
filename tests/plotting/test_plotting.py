"""Pictures: what is drawn is what was measured, and files are whole and reproducible."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_cli import MODEL, PACKAGE, TRAIN, adarec
from typer.testing import CliRunner

from adarec_fast.cli import app
from adarec_fast.clustering import kmeans, normalized_mutual_info
from adarec_fast.config import ConfigError, TrainConfig
from adarec_fast.data import DataError, InteractionData, Split, synthetic
from adarec_fast.models.adarec.parsing import encode
from adarec_fast.plotting import PICTURES, RunPictures, _short, plot_run
from adarec_fast.plotting.hierarchy import length_bins
from adarec_fast.plotting.measure import levels, sample_users
from adarec_fast.plotting.style import COLOURS, look
from adarec_fast.plotting.users import trajectory
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.ranking.ranks import user_metrics
from adarec_fast.training import Run, load_run, train

# Looked for and not imported, for two seconds: every worker of the suite reads this.
if not all(map(importlib.util.find_spec, ("matplotlib", "sklearn"))):
    pytest.skip("pictures need adarec_fast[viz]", allow_module_level=True)


def planted() -> InteractionData:
    return synthetic(num_users=90, num_items=60, num_themes=3, subthemes_per_theme=2, seed=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run") / "run"
    train(MODEL, TrainConfig.create(**{**TRAIN, "epochs": 2}), planted(), folder)
    return load_run(folder)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run without anything of ADARec."""
    folder = tmp_path_factory.mktemp("backbone") / "run"
    bare = {**MODEL, "depth": "fixed", "diffusion": False, "moe": False}
    train(bare, TrainConfig.create(**TRAIN), planted(), folder)
    return load_run(folder)


@pytest.fixture
def pictures(run: Run) -> RunPictures:
    return RunPictures(run, users=70, clusters=3)


@pytest.fixture(autouse=True)
def _look() -> Iterator[None]:
    with look():
        yield


def curve(axes: Any, label: str | None = None) -> np.ndarray:
    """Values of one line of axes, the first one by default."""
    lines = [line for line in axes.get_lines() if label in (None, line.get_label())]
    return np.asarray(lines[0].get_ydata(), dtype=float)


def test_losses_are_those_of_the_log(pictures: RunPictures) -> None:
    figure = pictures.losses()
    assert len(figure.axes) == 4
    for axes, name in zip(figure.axes, ("rec", "deno", "cont", "expl"), strict=True):
        expected = [line[f"loss_{name}"] for line in pictures.run.history]
        np.testing.assert_array_equal(curve(axes), expected)
        np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), [1, 2])
        assert axes.get_ylabel()
        assert axes.get_xlabel() == "epoch"
    assert "weight 0.1" in figure.axes[1].get_title()


def test_losses_that_are_switched_off_are_left_out(backbone: Run) -> None:
    (axes,) = RunPictures(backbone).losses().axes
    assert "rec" in axes.get_title()


def test_metrics_are_those_of_the_log(pictures: RunPictures) -> None:
    figure = pictures.metrics()
    for axes, metric in zip(figure.axes, ("HR", "NDCG"), strict=True):
        for k in (5, 10, 20):
            for part, users in (("valid", "all"), ("valid_sparse", "sparse")):
                expected = [line[part][f"{metric}@{k}"] for line in pictures.run.history]
                np.testing.assert_array_equal(curve(axes, f"@{k}, {users} users"), expected)
    assert len(figure.legends) == 1


def test_bins_of_lengths() -> None:
    labels, place = length_bins(torch.tensor([1, 8, 9, 12, 13, 50, 51, 4000]))
    assert labels == ["1", "8", "9–12", "13–20", "21–50", "≥51"]
    assert place.tolist() == [0, 1, 2, 2, 3, 4, 5, 5]


def test_depths_by_length(pictures: RunPictures) -> None:
    run = pictures.run
    figure = pictures.depth()
    chosen, soft = figure.axes
    lengths = run.data.lengths - 1
    labels, place = length_bins(lengths)
    assert [text.get_text() for text in chosen.get_xticklabels()] == labels
    values, offsets = run.split.inputs("test")
    kept = adarec_depths(run, values, offsets)
    for axes in (chosen, soft):
        heights = np.array([[bar.get_height() for bar in part] for part in axes.containers])
        assert heights.shape == (3, len(labels))
        np.testing.assert_allclose(heights.sum(0), 1, atol=1e-6)
        counts = [text.get_text() for text in axes.texts]
        assert counts == [str(int((place == b).sum())) for b in range(len(labels))]
    shares = [[bar.get_height() for bar in part] for part in chosen.containers]
    for k in range(3):
        for b in range(len(labels)):
            expected = float((kept[place == b] == k).double().mean())
            assert shares[k][b] == pytest.approx(expected)


def adarec_depths(run: Run, values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """T_u one user at a time."""
    bounds = offsets.tolist()
    depth = []
    for begin, end in itertools.pairwise(bounds):
        with torch.no_grad():
            depth.append(int(run.model(values[begin:end][None]).depth))
    return torch.tensor(depth)


def test_quality_by_length_is_that_of_the_evaluation(run: Run, backbone: Run) -> None:
    figure = RunPictures(run, compare=(backbone,)).length()
    labels, place = length_bins(run.data.lengths - 1)
    for axes, metric in zip(figure.axes, ("HR@20", "NDCG@20"), strict=True):
        assert [text.get_text() for text in axes.get_xticklabels()] == labels
        assert [text.get_text() for text in axes.texts] == [
            str(int((place == b).sum())) for b in range(len(labels))
        ]
        for one, bars in zip((run, backbone), axes.containers, strict=True):
            users = user_metrics(evaluate(one.model, one.split, intents=False).ranks, metric)
            line, _, (whiskers,) = bars.lines
            for b in range(len(labels)):
                mine = users[place == b].double()
                assert line.get_ydata()[b] == pytest.approx(float(mine.mean()))
                low, high = whiskers.get_segments()[b][:, 1]
                error = float(mine.std()) / len(mine) ** 0.5 if len(mine) > 1 else 0.0
                assert (high - low) / 2 == pytest.approx(1.96 * error, abs=1e-9)


def test_a_trajectory_has_the_cells_that_are_computed(pictures: RunPictures) -> None:
    (axes,) = trajectory([2, 1, 3], [0, 2, 1], 2).axes
    filled = [part for part in axes.collections if len(part.get_facecolor())]
    assert sum(len(part.get_paths()) for part in axes.collections) == 6 * 3
    assert sum(len(part.get_paths()) for part in filled) == 2 * 1 + 1 * 3 + 3 * 2
    assert axes.get_title().startswith("11 cells are computed")
    assert "would be 27 (41%)" in axes.get_title()
    drawn = pictures.trajectory().axes[0]
    assert "cells are computed" in drawn.get_title()
    assert len([text for text in drawn.texts if text.get_text()]) == 8


def test_a_users_hierarchy_names_the_nearest_items(run: Run) -> None:
    user = run.data.users.ids[7]
    left, right = RunPictures(run, user=user).hierarchy().axes
    values, offsets = run.split.inputs("test")
    history = values[offsets[7] : offsets[8]]
    with torch.no_grad():
        output = run.model(history[None], return_gates=True)
        depth = int(output.depth)
        table = torch.nn.functional.normalize(run.model.table()[1:], dim=-1)
        near = levels(run, torch.tensor([7]))["x0"][:, 0] @ table.T
    words = [text.get_text() for text in right.texts]
    assert len(words) == 3
    for level in range(3):
        if level > depth:
            assert words[level] == "not reached"
        else:
            best = run.data.items.ids[int(near[level].argmax())]
            assert words[level].startswith(f"{best} ({float(near[level].max()):.2f})")
    assert [bar.get_width() for bar in left.patches] == pytest.approx(
        output.gates[: depth + 1, 0].tolist()
    )
    with pytest.raises(DataError, match="nobody"):
        RunPictures(run, user="nobody").hierarchy()


def test_gates_are_those_of_evaluation_and_log(pictures: RunPictures) -> None:
    run = pictures.run
    left, right = pictures.gate().axes
    for k in range(3):
        expected = [line["gate"][k] for line in run.history]
        np.testing.assert_allclose(curve(left, str(k)), expected)
    gates = pictures._depths.gates
    assert gates is not None
    means = evaluate(run.model, run.split, intents=False).gate
    assert means is not None
    medians = [line for line in right.get_lines() if line.get_color() == "black"]
    drawn = {float(np.mean(np.asarray(line.get_xdata()))): line for line in medians}
    for k, mean in enumerate(means):
        reached = gates[k][~gates[k].isnan()]
        if mean is None:
            assert reached.numel() == 0
            continue
        assert float(reached.mean()) == pytest.approx(mean, rel=1e-5)
        middle = float(np.median(reached.numpy()))
        heights = {float(y) for line in medians for y in np.atleast_1d(line.get_ydata())}
        assert min(abs(middle - y) for y in heights) < 1e-7
    assert drawn
    assert left.get_yscale() == "logit"


def test_t_sne_shows_every_user_in_its_cluster(pictures: RunPictures) -> None:
    figure = pictures.tsne()
    assert len(figure.axes) == 2
    users = sample_users(pictures.run.split, 70, seed=0)
    batch = pictures.run.split.inputs("test")
    parts = [batch[0][batch[1][u] : batch[1][u + 1]] for u in users.tolist()]
    lengths = torch.tensor([part.numel() for part in parts])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    found = pictures.run.model.representations((torch.cat(parts), offsets))
    for axes, name in zip(figure.axes, ("user", "coarse"), strict=True):
        points = torch.nn.functional.normalize(found[name], dim=-1)
        sizes = torch.bincount(kmeans(points, 3, seed=0)).tolist()
        assert [part.get_offsets().shape[0] for part in axes.collections] == sizes
        assert sum(sizes) == 70
        assert re.search(r"70 users, silhouette -?\d\.\d\d", axes.get_title())
        colours = [tuple(part.get_facecolor()[0][:3]) for part in axes.collections]
        assert len(set(colours)) == 3


def test_t_sne_of_two_runs(run: Run, backbone: Run) -> None:
    figure = RunPictures(run, users=40, clusters=2, compare=(backbone,)).tsne()
    assert len(figure.axes) == 2
    assert [sum(len(p.get_offsets()) for p in axes.collections) for axes in figure.axes] == [40] * 2
    assert figure.axes[0].get_title().startswith("$h_u$ of run\n")


def test_long_names_of_runs_are_shortened() -> None:
    assert _short("a" * 36) == f"$h_u$ of {'a' * 36}"
    title = _short("begin" + "x" * 200 + "end$")
    assert len(title) < 50
    assert title.startswith("$h_u$ of begin")
    assert title.endswith(r"end\$")


def test_cluster_scores_by_level(pictures: RunPictures) -> None:
    from sklearn.metrics import silhouette_score

    run = pictures.run
    figure = pictures.clusters_by_level()
    assert len(figure.axes) == 4
    users = sample_users(run.split, 70, seed=0)
    found = levels(run, users)
    assert {name: part.shape for name, part in found.items()} == {
        name: (3, 70, 8) for name in ("x0", "fine", "coarse")
    }
    assert run.data.labels is not None
    themes = run.data.labels.user_theme[users]
    for line, points in enumerate(found.values()):
        drawn = [np.asarray(axes.get_lines()[line].get_ydata()) for axes in figure.axes]
        for k in range(3):
            clusters = kmeans(points[k], 3, seed=0)
            expected = silhouette_score(points[k].numpy(), clusters.numpy())
            assert drawn[0][k] == pytest.approx(expected, abs=1e-6)
            assert drawn[1][k] > 0
            nmi = normalized_mutual_info(kmeans(points[k], 3, seed=0), themes)
            assert drawn[2][k] == pytest.approx(nmi)


def test_levels_begin_with_the_embeddings(run: Run) -> None:
    """Level 0 is E itself, and the whole hierarchy is there whatever depth users have."""
    users = torch.tensor([3])
    values, offsets = run.split.inputs("test")
    history = values[offsets[3] : offsets[4]][-10:]
    with torch.no_grad():
        whole = torch.tensor([0, history.numel()])
        mean = encode(run.model, history, whole).mean(0)
    expected = torch.nn.functional.normalize(mean, dim=0)
    torch.testing.assert_close(levels(run, users)["x0"][0, 0], expected, rtol=1e-4, atol=1e-5)


def test_files_are_whole_and_the_same_again(pictures: RunPictures, tmp_path: Path) -> None:
    first = plot_run(pictures, tmp_path / "a", dpi=80)
    second = plot_run(
        RunPictures(pictures.run, users=70, clusters=3), tmp_path / "b", dpi=80
    )
    assert {path.name for path in first} == {
        f"{name}.{kind}" for name in PICTURES for kind in ("png", "svg")
    }
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        path.name for path in first
    )
    for one, other in zip(first, second, strict=True):
        content = one.read_bytes()
        assert content == other.read_bytes(), one.name
        if one.suffix == ".png":
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            width, height = struct.unpack(">II", content[16:24])
            assert 250 < width < 1000
            assert 150 < height < 1000
            assert not re.search(rb"tEXt(Creation|Date|Software)", content)
            assert colours_in(one) > 20
        else:
            root = ElementTree.fromstring(content)
            assert len(root.findall(".//{http://www.w3.org/2000/svg}path")) > 20
            assert b"<dc:date>" not in content


def colours_in(path: Path) -> int:
    from matplotlib.image import imread

    pixels = imread(path)[..., :3].reshape(-1, 3)
    return len(np.unique(pixels, axis=0))


def test_another_process_writes_the_same_bytes(run: Run, tmp_path: Path) -> None:
    plot_run(RunPictures(run), tmp_path / "here", only=["losses"])
    command = "import sys; from adarec_fast.cli import app; app(sys.argv[1:])"
    environment = {
        **os.environ, "PYTHONHASHSEED": "7", "MPLBACKEND": "svg",
        "PYTHONPATH": os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", command, "plot", str(run.path), "--only", "losses", "--out",
         str(tmp_path / "there")],
        env=environment, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    for name in ("losses.png", "losses.svg"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_users_are_drawn_by_the_seed(run: Run) -> None:
    split = run.split
    first = sample_users(split, 20, seed=0)
    assert first.tolist() == sorted(set(first.tolist()))
    assert torch.equal(first, sample_users(split, 20, seed=0))
    assert not torch.equal(first, sample_users(split, 20, seed=1))
    assert sample_users(split, 10**6, seed=0).numel() == split.num_users
    assert bool(split.sparse_users()[sample_users(split, 20, seed=0, sparse=True)].all())
    with pytest.raises(ConfigError, match="users=0"):
        sample_users(split, 0, seed=0)


def test_what_a_model_has_not_is_left_out(backbone: Run, tmp_path: Path) -> None:
    said: list[str] = []
    pictures = RunPictures(backbone, users=40, clusters=2)
    written = plot_run(pictures, tmp_path, formats=["svg"], skipped=said.append)
    assert {path.stem for path in written} == {"losses", "metrics", "length", "depth", "tsne"}
    assert len(said) == 4
    assert "moe=False" in said[0]
    assert all("diffusion=False" in why for why in said[1:])
    with pytest.raises(ConfigError, match="moe=False"):
        plot_run(pictures, tmp_path, only=["gate"])


def test_from_the_command_line(run: Run, tmp_path: Path) -> None:
    options = ["plot", run.path, "--out", tmp_path / "out", "--only", "metrics,tsne"]
    shown = adarec(*options, "--users", "40", "--clusters", "2", "--format", "png", "--sparse")
    assert shown.exit_code == 0, shown.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.png", "tsne.png"]
    assert str(tmp_path / "out" / "tsne.png") in shown.stdout
    for extra, message in (
        (["--only", "los"], "picture 'los' is not one of losses"),
        (["--format", "gif"], "format 'gif' is not one of png, svg"),
        (["--clusters", "1"], f"clusters=1 must be in 2..{len(COLOURS)}"),
        (["--users", "10", "--clusters", "5"], "too few for 5 clusters"),
        (["--which", "first"], "must be best or last"),
    ):
        refused = adarec(*options, *extra)
        assert refused.exit_code == 2, refused.output
        assert message in refused.stderr
    nothing = adarec("plot", tmp_path)
    assert nothing.exit_code == 2
    assert "holds no run" in nothing.stderr


def test_a_missing_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "sklearn"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            refused = adarec("plot", run.path, "--only", "tsne")
        assert refused.exit_code == 2, refused.output
        assert f"need {module}" in refused.stderr
        assert 'pip install "adarec_fast[viz]"' in refused.stderr


def test_the_callers_matplotlib_is_left_alone(pictures: RunPictures, tmp_path: Path) -> None:
    import matplotlib

    matplotlib.rcParams["font.size"] = 17
    plot_run(pictures, tmp_path, only=["losses"])
    assert matplotlib.rcParams["font.size"] == 17
    loaded = "import sys, adarec_fast.cli, adarec_fast.plotting, adarec_fast.experiments\n"
    loaded += "assert not {'matplotlib', 'sklearn'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    subprocess.run([sys.executable, "-c", loaded], env=environment, check=True, timeout=120)


def test_runs_on_other_data_are_not_drawn_beside(run: Run) -> None:
    def beside(data: InteractionData) -> Run:
        return replace(run, path=Path("other"), data=data, split=Split(data))

    data = run.data
    fewer = InteractionData.from_flat(
        data.values[: data.offsets[-2]], data.offsets[:-1], data.items,
        data.users.take(np.arange(data.num_users - 1)), data.name,
    )  # fmt: skip
    reordered = replace(data, values=data.values.flip(0))
    for other in (fewer, reordered):
        with pytest.raises(ConfigError, match="other was trained on other data than"):
            RunPictures(run, compare=(beside(other),))
    RunPictures(run, compare=(beside(replace(data, values=data.values.clone())),))


def test_a_run_without_a_validation_is_drawn_from_its_last_weights(
    run: Run, tmp_path: Path
) -> None:
    """As of one that diverged before the first."""
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder)
    shutil.rmtree(folder / "best")
    shown = CliRunner().invoke(
        app, ["plot", str(folder), "--only", "losses", "--format", "png", "--dpi", "50"]
    )
    assert shown.exit_code == 0, shown.output
    assert "no validation yet, drawn from last/" in shown.output
    assert (folder / "plots" / "losses.png").exists()
    shown = CliRunner().invoke(app, ["plot", str(folder), "--which", "best"])
    assert shown.exit_code == 2
    assert "no such checkpoint yet" in shown.output

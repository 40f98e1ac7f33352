"""Pictures of sweeps: means, deviations, and a line a setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_cli import MODEL, TRAIN, adarec

from adarec_fast.config import ConfigError
from adarec_fast.data import synthetic, write_csv
from adarec_fast.experiments import Group, Sweep, run_sweep
from adarec_fast.plotting.sensitivity import sensitivity
from adarec_fast.training.values import Values

pytest.importorskip("matplotlib", reason="pictures need adarec_fast[viz]")


def group(values: dict[str, Any], *numbers: float) -> Group:
    runs = [{"test": {"NDCG@20": n}, "test_sparse": {"NDCG@20": n / 2}} for n in numbers]
    return Group(values, tuple(runs))


def test_sensitivity_shows_means_and_deviations() -> None:
    groups = [
        group({"lambda_deno": 0.1}, 0.06, 0.08),
        group({"lambda_deno": 0.01}, 0.05, 0.05),
        group({"lambda_expl": 0.01}, 0.04, 0.05),
        group({"lambda_expl": 0.03}),
        group({"lambda_expl": 0.02}, 0.03, 0.07),
    ]
    deno, expl = sensitivity(groups).axes
    assert deno.get_xscale() == "log"
    (bars,) = deno.containers
    np.testing.assert_allclose(bars.lines[0].get_xdata(orig=False), [0.01, 0.1])
    np.testing.assert_allclose(bars.lines[0].get_ydata(orig=False), [0.05, 0.07])
    segments = bars.lines[2][0].get_segments()
    deviation = np.std([0.06, 0.08], ddof=1)
    np.testing.assert_allclose(segments[1][:, 1], [0.07 - deviation, 0.07 + deviation])
    assert [text.get_text() for text in deno.get_xticklabels()] == ["0.01", "0.1"]
    np.testing.assert_allclose(expl.containers[0].lines[0].get_xdata(orig=False), [0.01, 0.02])
    assert deno.get_ylabel() == "NDCG@20, test users"
    sparse = sensitivity(groups, sparse=True).axes[0].containers[0].lines[0]
    np.testing.assert_allclose(sparse.get_ydata(orig=False), [0.025, 0.035])


def test_sensitivity_draws_a_line_a_setting() -> None:
    groups = [
        group({"lambda_deno": x, "depth": d}, 0.1 * x)
        for x in (0, 0.1, 1)
        for d in ("fixed", "adaptive")
    ]
    (axes,) = sensitivity(groups).axes
    assert len(axes.containers) == 2
    assert axes.get_xscale() == "symlog"
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words == ["depth = fixed", "depth = adaptive"]
    for wrong, message in (
        ([group({"lambda_deno": 0.1})], "no finished run"),
        ([group({"depth": "fixed"}, 0.1), group({"depth": "adaptive"}, 0.1)], "no number"),
        ([group({"seed_": s, "x": x}, 0.1) for s in range(12) for x in (1, 2)], "cannot be"),
    ):
        with pytest.raises(ConfigError, match=message):
            sensitivity(wrong)
    with pytest.raises(ConfigError, match="metric='HR@3' is not one of NDCG@20"):
        sensitivity(groups, "HR@3")


def test_sensitivity_of_one_weight_at_a_time_is_a_line_a_panel() -> None:
    settings = [(0.1, 0.01), (0.03, 0.01), (0.3, 0.01), *((0.1, x / 100) for x in range(2, 9))]
    groups = [
        group({"lambda_deno": deno, "lambda_expl": expl}, deno + expl) for deno, expl in settings
    ]
    deno, expl = sensitivity(groups).axes
    (bars,) = deno.containers
    np.testing.assert_allclose(bars.lines[0].get_xdata(orig=False), [0.03, 0.1, 0.3])
    np.testing.assert_allclose(bars.lines[0].get_ydata(orig=False), [0.04, 0.11, 0.31])
    (bars,) = expl.containers
    assert len(bars.lines[0].get_xdata(orig=False)) == 8
    assert deno.get_legend() is None
    # Alone in all lines, the points are what there is.
    (deno, expl) = sensitivity([groups[0], group({"lambda_deno": 1, "lambda_expl": 1}, 0.5)]).axes
    assert len(deno.containers) == len(expl.containers) == 2


def test_of_a_sweep(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    data = synthetic(num_users=90, num_items=60, num_themes=3, subthemes_per_theme=2, seed=1)
    write_csv(data, path)
    base = Values({"data": str(path)}, dict(MODEL), dict(TRAIN))
    run_sweep(Sweep.create(base, {"lambda_deno": [0.01, 1]}), tmp_path / "sweep")
    shown = adarec("plot", tmp_path / "sweep", "--metric", "HR@5")
    assert shown.exit_code == 0, shown.output
    files = sorted(p.name for p in (tmp_path / "sweep" / "plots").iterdir())
    assert files == ["sensitivity.png", "sensitivity.svg"]
    for extra, message in (
        (["--only", "gate"], "is a sweep"),
        (["--metric", "HR@3"], "metric='HR@3' is not one of HR@5"),
    ):
        refused = adarec("plot", tmp_path / "sweep", *extra)
        assert refused.exit_code == 2, refused.output
        assert message in refused.stderr

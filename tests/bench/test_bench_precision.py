"""`bench.precision`: what is rounded, where, and that a run goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from adarec_fast import ADARec, synthetic  # noqa: E402
from bench import precision  # noqa: E402
from bench.precision import Rounded, round_to  # noqa: E402
from bench.workloads import histories  # noqa: E402


@pytest.mark.parametrize(("bits", "kept"), [(13, 10), (16, 7)])
def test_rounding_is_to_nearest_and_unbiased(bits: int, kept: int) -> None:
    x = torch.randn(20_000)
    rounded = round_to(x, bits)
    error = (rounded.double() - x.double()) / x.double()
    assert error.abs().max() <= 2.0 ** -(kept + 1)
    assert error.mean().abs() < 2.0 ** -(kept + 6)  # truncation has a mean of 2^-(kept + 1)
    assert torch.equal(round_to(rounded, bits), rounded)
    one = torch.tensor([1.0 + 2.0 ** -(kept + 1), -(1.0 + 2.0 ** -(kept + 1))])
    assert torch.equal(round_to(one, bits), torch.sign(one) * (1 + 2.0**-kept))  # ties go away
    assert round_to(x.double(), bits).dtype == torch.float64


def test_products_alone_are_rounded_forward_and_backward() -> None:
    x, w = torch.randn(5, 7, requires_grad=True), torch.randn(3, 7, requires_grad=True)
    b = torch.randn(3)
    with Rounded("tf32"):
        y = torch.nn.functional.linear(x, w, b)
        y.backward(torch.ones_like(y) * (1 + 2.0**-20))
    with torch.no_grad():
        wanted = round_to(x, 13) @ round_to(w, 13).T + b
        torch.testing.assert_close(y, wanted, rtol=1e-6, atol=1e-6)
        grad = torch.ones(5, 3)  # of 1 + 2^-20, rounded
        torch.testing.assert_close(x.grad, grad @ round_to(w, 13), rtol=1e-6, atol=1e-6)


def test_the_products_inside_ops_are_seen() -> None:
    batch = histories("train")[0].part(0, 8).as_batch()
    losses = {}
    for name in ("plain", "tf32", "bf16"):
        model = ADARec(num_items=12_101, hidden_size=16, backend="packed").train()
        if name == "plain":
            total = model.loss(batch).total
        else:
            with Rounded(name):
                total = model.loss(batch).total
        total.backward()
        losses[name] = torch.cat([p.grad.flatten() for p in model.parameters()])
    scale = losses["plain"].norm()
    off = {name: float((value - losses["plain"]).norm() / scale) for name, value in losses.items()}
    assert 1e-5 < off["tf32"] < 3e-3
    assert 4 * off["tf32"] < off["bf16"] < 3e-2


def test_a_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = synthetic(num_users=30, num_items=30, num_themes=2, subthemes_per_theme=2)
    monkeypatch.setattr(precision, "load", lambda _: data)
    monkeypatch.setattr(precision, "RUNS", (("ieee", 0), ("tf32", 0)))
    path = tmp_path / "result.json"
    common = ["--data", "Data.txt", "--output", str(path), "--runs", str(tmp_path / "runs")]
    precision.main([*common, "--epochs", "1"])
    first = json.loads(path.read_text())["rows"]
    assert [(r["precision"], r["epoch"]) for r in first] == [("ieee", 1), ("tf32", 1)]
    assert first[0]["loss"] != first[1]["loss"]
    precision.main([*common, "--epochs", "2"])
    both = json.loads(path.read_text())["rows"]
    assert both[:2] == first
    assert [(r["precision"], r["epoch"]) for r in both[2:]] == [("ieee", 2), ("tf32", 2)]

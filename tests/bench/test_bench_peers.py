"""Plain PyTorch of the comparison systems computes what the systems do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

if not (Path(__file__).parents[2] / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from bench.test_bench_peers import CASES, PeerStep


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.form)
def test_baselines_have_the_systems_loss_and_gradients(case: type[PeerStep]) -> None:
    subject = case("train", 8, "step", "cpu")
    batch = subject.part()
    changes: dict[str, Any] = {**subject._still(), "backend": "packed"}
    model = type(subject.model)(subject.model.config.replace(**changes)).double()
    plain, loss = subject.plain(model)
    # Before ours, which goes on to the next seed.
    found = loss(batch)
    theirs = torch.autograd.grad(found, list(model.parameters()))
    wanted = model.train().loss(batch).total
    torch.testing.assert_close(found, wanted)
    ours = torch.autograd.grad(wanted, list(model.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)
    assert isinstance(plain, nn.Module)
    assert subject.flops() > 0

"""What users run: captured training steps against plain ones, requests against the model."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from adarec_fast import ADARec, Recommender, TrainConfig
from adarec_fast.config import Supervision
from adarec_fast.training.captured import CapturedStepper, capacity, in_bucket, why_not
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.statistics import EpochStatistics

from ...workloads import histories
from ..phase import Results
from ..work import PRECISIONS, attempt, exercised, model

_STEPS, _SIZE, _LOSS = 6, 64, 1e-4
_SUPERVISIONS: tuple[Supervision, ...] = ("prefix", "all")
_ASKED = (1, 3, 300)  # users of a request


def run(results: Results) -> None:
    """Pass or fail, with the differences, of each flow."""
    device = results.settings.device
    checks = [
        *((f"steps, {s}, {p}", _steps, s, p)
          for p, s in itertools.product(PRECISIONS, _SUPERVISIONS)),
        ("first loss against a CPU", _against_cpu),
        *((f"requests, {p}", _requests, p) for p in PRECISIONS),
    ]  # fmt: skip
    failed = []
    for name, check, *arguments in checks:
        found: dict[str, Any] = {"flow": name}
        error = attempt(check, found, device, *arguments)
        if error is not None:
            found["error"] = error
            failed.append(name)
        results.add("flows", found)
        results.say(f"{name}: {error or 'ok'} {found}")
        results.put(summary=f"{len(checks) - len(failed)} pass; failed: {failed or 'none'}")


def _train(
    kind: type[Stepper], supervision: str, precision: str, device: str, steps: int
) -> tuple[dict[str, Tensor], Stepper]:
    """Weights after some steps on batches of two shapes."""
    place = torch.device(device)
    stepper = kind(model(_SIZE, supervision, precision, device).train(), TrainConfig(), place)
    statistics = EpochStatistics(stepper.model.diagnostics(), place)
    data = histories("train", 2, every_position=supervision == "all")
    batches = itertools.cycle([b.to(device).as_batch() for b in data])
    for number, batch in zip(range(1, steps + 1), batches, strict=False):
        if kind is Stepper:
            batch = in_bucket(batch, capacity(batch.item_ids.shape[0]), supervision)
        stepper.step(batch, number, statistics)
    diverged = statistics.diverged()
    assert diverged is None, f"not finite: {diverged}"
    state = {name: value.detach().clone() for name, value in stepper.model.named_parameters()}
    return {**state, "sums": statistics.sums}, stepper


def _steps(found: dict[str, Any], device: str, supervision: str, precision: str) -> None:
    """Captured steps have the bits of plain ones, and of themselves when run again."""
    refusal = why_not(model(_SIZE, supervision, precision, device), torch.device(device))
    assert refusal is None, refusal
    plain, _ = _train(Stepper, supervision, precision, device, _STEPS)
    captured, stepper = _train(CapturedStepper, supervision, precision, device, _STEPS)
    again, _ = _train(CapturedStepper, supervision, precision, device, _STEPS)
    assert isinstance(stepper, CapturedStepper)
    found["graphs"] = sum(graph is not None for graph in stepper._graphs.values())
    for name, other in (("from_plain", plain), ("from_itself", again)):
        found[name] = max(
            float((captured[k].double() - v.double()).abs().max()) for k, v in other.items()
        )
    assert found["graphs"] >= 1
    assert found["from_itself"] == 0.0, "two runs differ"
    assert found["from_plain"] <= _LOSS, "captured steps are not the plain ones"


def _against_cpu(found: dict[str, Any], device: str) -> None:
    """The loss of a first step, with its noise, by plain PyTorch on the CPU."""
    losses = {}
    for place, backend in (("cpu", "packed"), (device, "auto")):
        made = model(_SIZE, "prefix", "ieee", "cpu")
        made = ADARec(made.config.replace(backend=backend)).to(place).train()
        with torch.no_grad():
            output = made.loss(histories("train")[0].part(0, 64).to(place).as_batch())
        losses[place] = {**output.parts, "total": output.total}
    for name, right in losses["cpu"].items():
        ours = float(losses[device][name])
        found[name] = [float(right), ours]
        assert abs(ours - float(right)) <= _LOSS * max(abs(float(right)), 1.0), f"L_{name}"


def _requests(found: dict[str, Any], device: str, precision: str) -> None:
    """Scores of a recommender, replayed ones included, are the model's own; no item is wrong."""
    made = model(_SIZE, "prefix", precision, device).eval()
    exact = ADARec(made.config.replace(backend="packed", precision="ieee")).to(device).eval()
    exact.load_state_dict(made.state_dict())
    recommender = Recommender(made)
    batch = histories("serve-1024")[0]
    worst = 0.0
    for users in _ASKED:
        asked = batch.part(0, users)
        for _ in range(4):
            ranking = recommender.recommend((asked.item_ids, asked.offsets), 20)
        with torch.no_grad():
            user = exact((asked.item_ids.to(device), asked.offsets.to(device))).user
            scores = exact.score(user)
        own = scores.gather(1, ranking.items)
        scale = float(scores[:, 1:].abs().max())
        worst = max(worst, float((own - ranking.scores).abs().max()) / scale)
    found["scores_off"] = worst
    found["graphs"] = sum(g is not None for g in (recommender._graphs or {}).values())
    allowed = {"ieee": 1e-5, "tf32": 2e-3, "bf16": 2e-2}[precision]
    assert worst <= allowed, f"scores are off by {worst:.2g} of the largest, {allowed} allowed"


def kernels(device: str) -> None:
    """Every launch of :func:`run`."""
    for precision in PRECISIONS:
        exercised(_SIZE, precision, device, batches=(256,), supervisions=_SUPERVISIONS)
        exercised(_SIZE, precision, device, batches=(64, *_ASKED))

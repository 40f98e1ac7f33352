"""Workers of one machine, forked after torch is imported once, and what they are asked to do.

``python helpers_distributed.py FOLDER JOB...`` does the jobs below, each in ``FOLDER/<job>``, where
it leaves ``<job>-<W>-<rank>.pt`` or what else it makes; of one that fails ``failed`` has the
traceback, and the others go on.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

# Every worker would import them for itself, for DistributedDataParallel.
import torch._dynamo
import torch._inductor.utils
import torch.distributed as dist
import torch.distributed.tensor.parallel

from adarec_fast import ADARec, TrainConfig, synthetic
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.distributed import Workers, join
from adarec_fast.distributed.batches import SharedBatches
from adarec_fast.distributed.items import ShardedItems
from adarec_fast.distributed.workers import Agreement
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import Reporter, train, trainer

DATA = synthetic(num_users=61, num_items=57, num_themes=3, subthemes_per_theme=2, seed=2)
MODEL: dict[str, Any] = {
    "hidden_size": 16, "num_layers": 1, "max_depth": 3, "max_length": 12, "dropout": 0.3,
    "attention_dropout": 0.3, "seed": 1, "num_items": DATA.num_items,
}  # fmt: skip
TRAIN: dict[str, Any] = {"epochs": 2, "batch_size": 64, "log_every": 2, "device": "cpu"}
VARIANTS: dict[str, dict[str, Any]] = {
    "prefix": {},
    "all": {"supervision": "all", "coarse_expert": "transformer", "label_smoothing": 0.2},
    "three experts": {"num_experts": 3},
    "full": {"depth_gradient": "full", "residual": True},
    "backbone": {"depth": "fixed", "diffusion": False, "moe": False, "local_path": 3},
}


def launch(
    size: int,
    function: Callable[..., None],
    *arguments: Any,
    watch: Callable[[list[int]], None] | None = None,
    **options: Any,
) -> list[int]:
    """Fork ``size`` workers that call ``function(*arguments, **options)``; their exit codes.

    ``watch`` is called with the processes' numbers while they run.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size),
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                )  # fmt: skip
                function(*arguments, **options)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    if watch is not None:
        watch(children)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def batches(supervision: Any) -> TrainingBatches:
    """Two whole batches or more, and a last one with fewer examples than workers."""
    values, offsets = Split(DATA).inputs("train")
    kept = 26

    def make(size: int) -> TrainingBatches:
        return TrainingBatches(
            values[: offsets[kept]], offsets[: kept + 1], supervision=supervision,
            batch_size=size, max_length=12, seed=3,
        )  # fmt: skip

    number = make(1).num_examples
    return make(next(size for size in range(number // 3, 0, -1) if number % size == 1))


def gradients(folder: Path, workers: Workers | None) -> None:
    """Losses and gradients of the first and the last batch in float64.

    By variant, whether the table is split, Eq. 6's negatives and the batch's number.
    """
    cases = [(variant, split, "batch") for variant in VARIANTS for split in (False, True)]
    cases += [("prefix", False, "rank"), ("all", True, "rank")]
    if workers is None:
        cases = [case for case in cases if not case[1]]
    elif workers.size > 2:
        cases = [case for case in cases if case[0] in ("prefix", "all") and case[1]]
    found = {}
    for variant, split, negatives in cases:
        model = ADARec(**{**MODEL, **VARIANTS[variant], "backend": "packed"}).double().train()
        whole = batches(model.config.supervision)
        chosen: Any = ((batch, None) for batch in whole.epoch(0))
        if workers is not None:
            gather = negatives == "batch"
            chosen = SharedBatches(whole, workers, gather_negatives=gather).epoch(0)
            if split:
                model.split_items(workers)
        for index, (batch, share) in enumerate(chosen):
            if 0 < index < len(whole) - 1:
                continue
            model.noise_seed.fill_(index)
            if split:
                model.item_embedding.most_tokens = share.most_tokens
            model.zero_grad()
            output = model.loss(batch, share)
            output.total.backward()
            found[variant, split, negatives, index] = {
                "total": output.total.detach(), **output.parts, "gate": output.gate,
                "gradients": whole_gradients(model, workers),
            }  # fmt: skip
    save(folder, "gradients", workers, found)


def whole_gradients(model: ADARec, workers: Workers | None) -> dict[str, torch.Tensor]:
    """Each parameter's gradient, added up over workers or put together from their parts."""
    named = dict(model.named_parameters())
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
    if workers is None:
        return found
    items = model.item_embedding
    split = {
        name: items.whole(found[name])
        for name, parameter in named.items()
        if isinstance(items, ShardedItems) and parameter is items.weight
    }
    # One sum of all others, since each waits for every worker.
    rest = [name for name in named if name not in split]
    sums = workers.sum(torch.cat([found[name].flatten() for name in rest]))
    parts = sums.split([named[name].numel() for name in rest])
    return split | {n: part.view_as(named[n]) for n, part in zip(rest, parts, strict=True)}


def catalogue(folder: Path, workers: Workers | None) -> None:
    """Top k, ranks and metrics of an evaluation, with and without a split table."""
    model = ADARec(**MODEL).eval()
    histories = [[3, 14, 15], [9], [26, 5, 35, 8], list(range(1, 30))]
    split = Split(DATA)
    found = {}
    for sharded in (False, True):
        if sharded and workers is not None:
            model.split_items(workers)
        items, scores = model.recommend(histories, k=10)
        everything = model.recommend(histories[:1], k=DATA.num_items)[0]
        found[sharded] = {
            "items": items, "scores": scores, "everything": everything,
            **{
                mask: evaluate(
                    model, split, "test", batch_size=25, seen_mask=mask,  # type: ignore[arg-type]
                    intents=False, workers=workers,
                )
                for mask in ("neg-inf", "official", "off")
            },
        }  # fmt: skip
    save(folder, "catalogue", workers, found)


def save(folder: Path, job: str, workers: Workers | None, found: Any) -> None:
    size, rank = (1, 0) if workers is None else (workers.size, workers.rank)
    torch.save(found, folder / f"{job}-{size}-{rank}.pt")


def run(name: Path, variant: str, stop: int | None, resume: bool, **options: Any) -> None:
    result = train(
        {**MODEL, **VARIANTS[variant]}, TrainConfig.create(**{**TRAIN, **options}), DATA, name,
        resume=resume, stop_after_steps=stop,
    )  # fmt: skip
    print(json.dumps([str(name), os.environ.get("RANK", "0"), result.status, result.steps]))


def whole_runs(folder: Path) -> None:
    """Runs of one worker and of more; stopped and resumed ones."""
    for variant in ("prefix", "all"):
        options: dict[str, Any] = {"batch_size": 64}
        if variant == "all":
            options = {
                "batch_size": 16, "learning_rate_schedule": "cosine", "warmup_steps": 3,
            }  # fmt: skip
        run(folder / f"{variant}-1", variant, None, False, **options)
        for workers in (2, 3):
            name = folder / f"{variant}-{workers}"
            expect(launch(workers, run, name, variant, None, False, **options), workers)
    split = {"shard_items": True}
    expect(launch(2, lambda: run(folder / "split-2", "prefix", None, False, **split)), 2)
    # Stopped inside the second epoch with two workers, and gone on with by others.
    for name, size, options in (
        ("by-2", 2, {}), ("by-1", 1, {}), ("by-3-split", 3, split), ("split-by-1", 1, {}),
    ):  # fmt: skip
        first = split if name.startswith("split") else {}
        at = folder / name
        expect(launch(2, lambda at=at, first=first: run(at, "prefix", 9, False, **first)), 2)
        if size == 1:
            run(at, "prefix", None, True, **options)
        else:
            expect(
                launch(size, lambda at=at, o=options: run(at, "prefix", None, True, **o)), size
            )


def expect(codes: list[int], workers: int) -> None:
    assert codes == [0] * workers, codes


class Slow(Reporter):
    """Leaves time for a signal, and says where the run is."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def step(self, progress: Any) -> None:
        if progress.step == 6:
            self.mark.write_text("6", encoding="utf-8")


def stop_in_a_save(after: int) -> None:
    """Have this process stop for good in the middle of its ``after``-th checkpoint."""
    save, count = trainer.save_checkpoint, itertools.count(1)

    def stopping(run_dir: Path, name: str, fill: Callable[[Path], None], *rest: Any) -> None:
        def fill_and_stop(folder: Path) -> None:
            fill(folder)
            if next(count) == after:
                os.kill(os.getpid(), signal.SIGSTOP)

        save(run_dir, name, fill_and_stop, *rest)

    trainer.save_checkpoint = stopping


def endless(folder: Path, timeout: float, save_timeout: float) -> None:
    begun = time.monotonic()
    if save_timeout and os.environ["RANK"] == "0":
        stop_in_a_save(4)
    try:
        result = train(
            MODEL,
            TrainConfig.create(
                **{**TRAIN, "epochs": 10**6, "patience": 10**6, "log_every": 1,
                   "worker_timeout": timeout, "save_timeout": save_timeout},
            ),
            DATA, folder / "run", reporter=Slow(folder / "mark"),
        )  # fmt: skip
        said = f"{result.status} {result.steps}"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    rank = os.environ["RANK"]
    (folder / f"said-{rank}").write_text(
        json.dumps({"said": said, "seconds": time.monotonic() - begun}), encoding="utf-8"
    )


def signalled(folder: Path, number: int, rank: int, timeout: float, save: float = 0.0) -> None:
    """A signal to one of three workers in the middle of training, or by itself while it saves.

    Args:
        folder: of the run and of what the workers say.
        number: the signal.
        rank: who gets it.
        timeout: ``worker_timeout``.
        save: ``save_timeout``; if it is not 0, the signal comes from inside a checkpoint.
    """
    folder.mkdir()
    others = [folder / f"said-{i}" for i in range(3) if i != rank]

    def send(children: list[int]) -> None:
        while not (folder / "mark").exists():
            time.sleep(0.02)
        if not save:
            os.kill(children[rank], number)
        if number == signal.SIGSTOP:
            while not all(path.exists() for path in others):
                time.sleep(0.05)
            os.kill(children[rank], signal.SIGKILL)

    launch(3, endless, folder, timeout, save, watch=send)


def signals(folder: Path) -> None:
    signalled(folder / "term", signal.SIGTERM, 1, 45.0)
    signalled(folder / "kill-last", signal.SIGKILL, 2, 45.0)
    signalled(folder / "kill-first", signal.SIGKILL, 0, 45.0)
    signalled(folder / "stop", signal.SIGSTOP, 1, 3.0)
    signalled(folder / "stop-saving", signal.SIGSTOP, 0, 45.0, save=3.0)


def refused(folder: Path) -> None:
    """What every worker says about options that do not fit together."""

    def attempt(case: str) -> None:
        rank = int(os.environ["RANK"])
        options: dict[str, Any] = {**TRAIN, "epochs": 1}
        model = dict(MODEL)
        data = DATA
        if case == "options":
            options["learning_rate"] = 0.1 if rank == 1 else 0.2
        elif case == "data" and rank == 1:
            data = synthetic(num_users=61, num_items=57, num_themes=3, seed=3)
            model["num_items"] = data.num_items
        elif case == "device":
            options["device"] = "cuda:0"
        try:
            train(model, TrainConfig.create(**options), data, folder / case)
            said = "nothing"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        (folder / f"{case}-{rank}").write_text(said, encoding="utf-8")

    (folder / "taken").mkdir()
    (folder / "taken" / "config.json").write_text("{}", encoding="utf-8")
    for case in ("options", "data", "device", "taken"):
        launch(2, attempt, case)


def apart(folder: Path) -> None:
    """As on GPUs, where a collective does not block the host: who says that a worker hangs?

    Gloo takes NCCL's place, and the second worker never comes.
    """
    def two_steps(workers: Workers) -> None:
        agreement = Agreement(workers)
        for _ in range(2):
            agreement.ask(False)

    ways: dict[str, Callable[[Workers], object]] = {
        "meet": Workers.meet,
        "step": two_steps,
        "whole": lambda workers: workers.whole(torch.ones(1), 2),
    }

    def body() -> None:
        make, rank, waits = dist.new_group, os.environ["RANK"], {}

        def gloo(*, backend: str, timeout: timedelta) -> Any:
            waits[backend] = timeout.total_seconds()
            return make(backend="gloo", timeout=timeout)

        with join("cpu", 45.0):
            dist.new_group = gloo
            for name, wait in ways.items():
                workers = Workers(torch.device("cuda"), 2.0)
                workers.device = torch.device("cpu")
                workers.sum = lambda tensor: tensor  # NCCL's returns at once
                said = folder / name
                if rank == "1":
                    while not said.exists():
                        time.sleep(0.02)
                    continue
                begun = time.monotonic()
                try:
                    with workers.watched(lambda: "all is kept"):
                        wait(workers)
                    words = "nothing"
                except Exception as error:
                    words = f"{type(error).__name__}: {error}"
                partial = said.with_suffix(".partial")
                partial.write_text(json.dumps([words, time.monotonic() - begun, waits["nccl"]]))
                partial.rename(said)

    expect(launch(2, body), 2)


def in_workers(size: int, job: Callable[[Path, Workers | None], None], folder: Path) -> None:
    def body() -> None:
        with join("cpu", 45.0) as workers:
            job(folder, workers)

    expect(launch(size, body), size)


def main() -> None:
    torch.set_num_threads(1)  # no thread pool, so that a fork is whole
    folder, *jobs = sys.argv[1:]
    for job in jobs:
        at = Path(folder) / job
        at.mkdir()
        try:
            do(job, at)
        except Exception:
            (at / "failed").write_text(traceback.format_exc(), encoding="utf-8")


def do(job: str, at: Path) -> None:
    if job in ("gradients", "catalogue"):
        body = {"gradients": gradients, "catalogue": catalogue}[job]
        body(at, None)
        for size in (2, 4):
            in_workers(size, body, at)
    else:
        {"runs": whole_runs, "signals": signals, "refused": refused, "apart": apart}[job](at)


if __name__ == "__main__":
    main()

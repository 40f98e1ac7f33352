"""The workers of a run: processes that torchrun started, one a device, and how they agree.

Two process groups: ``group`` carries tensors of the training device (NCCL on CUDA, gloo on CPU)
and waits for a late worker no longer than a timeout; ``control`` (gloo) carries the decisions of
the hosts, and waits long, since one worker writes checkpoints while the others wait.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..config import ConfigError
from .errors import WorkersError

# What torchrun sets; without all of them this is one process.
_ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_CONTROL_TIMEOUT = timedelta(minutes=60)

_Result = TypeVar("_Result")


class Workers:
    """This process among ``size`` workers.

    Args:
        device: where this worker trains.
        timeout: seconds that a step or an evaluation waits for the other workers.

    Attributes:
        rank: this worker's number, from 0; the first one writes, logs and speaks.
        size: how many there are.
    """

    def __init__(self, device: torch.device, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        backend = "nccl" if device.type == "cuda" else "gloo"
        self.group = dist.new_group(backend=backend, timeout=timedelta(seconds=timeout))
        self.control = dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This worker's of ``count`` things: a run as long as the others' or one longer."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over workers, in place, of a tensor on the training device."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """``[W, n, ...]`` of equally shaped ``[n, ...]`` on the training device."""
        result = tensor.new_empty(self.size, *tensor.shape)
        # all_gather_into_tensor has a new name since torch 2.13.
        into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        into(result.flatten(0, 1), tensor.contiguous(), group=self.group)
        return result

    def scatter_sum(self, tensor: Tensor) -> Tensor:
        """This worker's ``[n, ...]`` of the sum over workers of ``[W, n, ...]``."""
        result = tensor.new_empty(tensor.shape[1:])
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        scatter(result, tensor.contiguous().flatten(0, 1), group=self.group)
        return result

    def whole(self, part: Tensor, count: int) -> Tensor:
        """All ``count`` of what each worker has its :meth:`part` of; on the CPU, on all workers."""
        result = torch.zeros(count, dtype=part.dtype, device=self.device)
        result[self.part(count)] = part.to(self.device)
        return self.sum(result).cpu()

    def announce(self, value: str | None) -> str:
        """The first worker's text, on all workers."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        assert values[0] is not None
        return values[0]

    def first_does(self, function: Callable[[], None]) -> None:
        """The first worker calls ``function``; all wait for it.

        Raises:
            WorkersError: on the other workers, if it failed there; on the first, its own error.
        """
        failed = ""
        error: BaseException | None = None
        if self.first:
            try:
                function()
            except BaseException as caught:
                error, failed = caught, str(caught) or type(caught).__name__
        failed = self.announce(failed)
        if error is not None:
            raise error
        if failed:
            raise WorkersError(f"worker {self.rank} ends because the first one failed: {failed}")

    def barrier(self) -> None:
        """Wait for all workers."""
        dist.barrier(group=self.control)

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Every worker must have been started alike.

        Raises:
            ConfigError: on all workers; names the first value that differs.
        """
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, dict(values), group=self.control)
        for name, value in everyone[0].items():
            for rank, other in enumerate(everyone):
                if other[name] != value:
                    raise ConfigError(
                        f"{name} is {value!r} at worker 0 and {other[name]!r} at worker {rank}; "
                        "start all workers with the same options and data"
                    )

    @contextlib.contextmanager
    def watched(self, kept: Callable[[], str]) -> Iterator[None]:
        """Turn a lost connection into a :class:`WorkersError`; ``kept`` says what is not lost."""
        try:
            yield
        except RuntimeError as error:
            if not connection_lost(error):
                raise
            # gloo's: [file:line] what happened. Advice.
            reason = str(error).splitlines()[0].partition("] ")[2].partition(". ")[0]
            reason = reason or type(error).__name__
            raise WorkersError(
                f"worker {self.rank} of {self.size} lost another one ({reason}): a process ended "
                f"or hangs, and the run cannot go on; {kept()}; "
                "start all workers again and resume"
            ) from error


def connection_lost(error: BaseException) -> bool:
    """Whether an error is a process group's, about another worker."""
    text = str(error)
    return isinstance(error, dist.DistError) or "/gloo/" in text or "Connection" in text


class Agreement:
    """Whether any worker wants something; all get the same answer at the same call.

    The answer is that of the previous call's question, so that nobody waits for the network.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._asked: tuple[dist.Work, Tensor] | None = None

    def ask(self, wanted: bool) -> bool:
        """Every worker calls this equally often."""
        answer = self.close()
        flag = torch.tensor([int(wanted)])
        work = dist.all_reduce(
            flag, dist.ReduceOp.MAX, group=self._workers.control, async_op=True
        )
        self._asked = work, flag
        return answer

    def close(self) -> bool:
        """The answer to the last question, if there was one."""
        if self._asked is None:
            return False
        work, flag = self._asked
        self._asked = None
        work.wait()
        return bool(flag.item())


def started() -> bool:
    """Whether this process is one of several, by torchrun's environment or a process group."""
    if not dist.is_available():
        return False
    if dist.is_initialized():
        return dist.get_world_size() > 1
    return all(name in os.environ for name in _ENVIRONMENT) and int(os.environ["WORLD_SIZE"]) > 1


def speaks() -> bool:
    """Whether this process is alone or the first worker; for words before the workers have met."""
    return not started() or os.environ.get("RANK", "0") == "0"


def worker_device(name: str) -> torch.device:
    """``auto`` and ``cuda`` are the CUDA device of the worker's local rank.

    Raises:
        ConfigError: one device for all workers, or fewer devices than workers.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise ConfigError(
            f"device={name!r} would be every worker's; write auto, cuda (each worker takes its "
            "own) or cpu"
        )
    local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= devices:
        raise ConfigError(
            f"device={name!r}: worker {local} of this machine has no CUDA device of its own, there "
            f"are {devices}; start at most {devices} workers a machine, or write device=cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextlib.contextmanager
def join(device: str, timeout: float) -> Iterator[Workers | None]:
    """The workers this process belongs to, or None if it is alone.

    Meets the others first, if no process group is there yet, and leaves them at the end.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        timeout: seconds that a step or an evaluation waits for the other workers.
    """
    if not started():
        yield None
        return
    own = not dist.is_initialized()
    chosen = worker_device(device)
    if own:
        # Meeting takes as long as the slowest start, so the steps' timeout is not asked here.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=_CONTROL_TIMEOUT
        )
    workers = Workers(chosen, timeout)
    yield workers
    # After an error the others may be gone, and leaving together would wait for them.
    if own:
        workers.barrier()
        dist.destroy_process_group()

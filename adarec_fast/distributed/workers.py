"""The workers of a run: processes that torchrun started, one a device, and how they agree.

Process groups: ``group`` carries tensors of the training device (NCCL on CUDA, gloo on CPU) and
waits for a late worker no longer than a timeout; ``control`` (gloo) carries the decisions of the
hosts, and waits as long as the slowest start; ``saving`` (gloo) waits while the first worker
writes, which takes longer than a step, but not for ever; ``stepping`` (gloo) is where hosts wait
for each other while they train. On CUDA a collective blocks the device and not the host, and the
watchdog of NCCL ends a process whose collective takes too long before it can say anything: so the
hosts meet before they wait for the device, and find there that one is lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
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
# What NCCL's watchdog waits longer than hosts wait for each other, so that they speak first.
_WATCHDOG = timedelta(seconds=30)
# Bytes a second of a slow disk, a network's for example: written, flushed and read for SHA-256.
_SLOWEST_DISK = 20e6

_Result = TypeVar("_Result")


class Workers:
    """This process among ``size`` workers.

    Args:
        device: where this worker trains.
        timeout: seconds that a step or an evaluation waits for the other workers.

    Attributes:
        rank: this worker's number, from 0; the first one writes, logs and speaks.
        size: how many there are.
        save_timeout: seconds that the others wait for the first one in :meth:`first_does`.
    """

    def __init__(self, device: torch.device, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        step = timedelta(seconds=timeout)
        self._apart = device.type == "cuda"  # hosts go on while devices wait for each other
        if self._apart:
            self.group = dist.new_group(backend="nccl", timeout=step + _WATCHDOG)
        else:
            self.group = dist.new_group(backend="gloo", timeout=step)
        self.control = dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT)
        self.stepping = self.control
        if self._apart:
            self.stepping = dist.new_group(backend="gloo", timeout=step)
        self.saving, self.save_timeout = self.control, _CONTROL_TIMEOUT.total_seconds()

    def bound_saving(self, seconds: float) -> None:
        """From now on :meth:`first_does` waits no longer; every worker calls this alike."""
        self.saving = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
        self.save_timeout = seconds

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
        self.sum(result)
        self.meet()
        return result.cpu()

    def announce(self, value: str | None, group: dist.ProcessGroup | None = None) -> str:
        """The first worker's text, on all workers."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=group or self.control)
        assert values[0] is not None
        return values[0]

    def first_does(self, function: Callable[[], None]) -> None:
        """The first worker calls ``function``; all wait for it, :attr:`save_timeout` at most.

        Raises:
            WorkersError: on the other workers, if it failed there; on the first, its own error.
            RuntimeError: on the other workers, if it took too long or the first one is gone;
                :meth:`watched` makes a :class:`WorkersError` of it.
        """
        failed = ""
        error: BaseException | None = None
        if self.first:
            try:
                function()
            except BaseException as caught:
                error, failed = caught, str(caught) or type(caught).__name__
        begun = time.monotonic()
        try:
            failed = self.announce(failed, self.saving)
        except RuntimeError as lost:
            if connection_lost(lost) and time.monotonic() - begun >= self.save_timeout:
                raise _TooLong(
                    f"worker 0 has not ended its writing in {self.save_timeout:g} s, "
                    "--save-timeout allows more"
                ) from lost
            raise
        if error is not None:
            raise error
        if failed:
            raise WorkersError(f"worker {self.rank} ends because the first one failed: {failed}")

    def meet(self) -> None:
        """Before the host waits for a device whose collectives others take part in: are they there?

        On CPUs a collective itself waits for them, and this does nothing.

        Raises:
            RuntimeError: one is not, in a step's time; see :meth:`watched`.
        """
        if self._apart:
            dist.barrier(group=self.stepping)

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
        """Turn a lost connection into a :class:`WorkersError`; ``kept`` says what is not lost.

        The first SIGTERM after that does nothing.
        """
        try:
            yield
        except RuntimeError as error:
            if not connection_lost(error):
                raise
            _outlive_one_sigterm()
            if isinstance(error, _TooLong):
                reason = str(error)
            else:
                # gloo's: [file:line] what happened. Advice.
                reason = str(error).splitlines()[0].partition("] ")[2].partition(". ")[0]
                reason = reason or type(error).__name__
            raise WorkersError(
                f"worker {self.rank} of {self.size} lost another one ({reason}): a process ended "
                f"or hangs, and the run cannot go on; {kept()}; "
                "start all workers again and resume"
            ) from error


def _outlive_one_sigterm() -> None:
    """torchrun ends all workers when one died, and this one has still to say what is kept."""
    if threading.current_thread() is not threading.main_thread():
        return  # Python lets only the main thread set handlers
    before = signal.getsignal(signal.SIGTERM)

    def once(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

    signal.signal(signal.SIGTERM, once)


class _TooLong(RuntimeError):
    """The first worker did not end what all wait for."""


def connection_lost(error: BaseException) -> bool:
    """Whether an error is a process group's, about another worker."""
    text = str(error)
    return isinstance(error, dist.DistError | _TooLong) or "/gloo/" in text or "Connection" in text


def saving_seconds(size: int, step_timeout: float, save_timeout: float = 0.0) -> float:
    """How long the other workers wait for ``size`` bytes to be saved.

    Args:
        size: of the largest thing that is written at once.
        step_timeout: seconds that a step waits for a late worker.
        save_timeout: what was asked for; 0 leaves it to the size, for a slow disk.
    """
    return save_timeout or step_timeout + size / _SLOWEST_DISK


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
            flag, dist.ReduceOp.MAX, group=self._workers.stepping, async_op=True
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
    return all(name in os.environ for name in _ENVIRONMENT) and _number("WORLD_SIZE") > 1


def speaks() -> bool:
    """Whether this process is alone or the first worker; for words before the workers have met."""
    return not started() or _number("RANK") == 0


def _number(name: str, most: int = 1 << 31) -> int:
    """A number of torchrun's environment, 0 where it is not set.

    Raises:
        ConfigError: it is none, or not in 0..``most``.
    """
    text = os.environ.get(name, "0")
    if not re.fullmatch(r"\s*\d{1,10}\s*", text) or int(text) > most:
        raise ConfigError(
            f"{name}={text!r} must be a whole number in 0..{most}, as torchrun sets it; unset "
            "RANK, LOCAL_RANK and WORLD_SIZE to train in one process"
        )
    return int(text)


def _check_alone() -> None:
    """Several processes that each believe to be alone would train the same run side by side."""
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    if not missing and _number("RANK") >= _number("WORLD_SIZE"):
        raise ConfigError(
            f"RANK={os.environ['RANK']} is no worker of WORLD_SIZE={os.environ['WORLD_SIZE']}; "
            "start the workers with torchrun, or unset both to train in one process"
        )
    grouped = dist.is_available() and dist.is_initialized()
    if missing and not grouped and _number("WORLD_SIZE") > 1:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: one of several workers, but not set: "
            f"{', '.join(missing)}; start them with torchrun, or unset WORLD_SIZE to train in one "
            "process"
        )


def _meet(device: torch.device) -> None:
    """Make the process group.

    Raises:
        ConfigError: a number of torchrun's environment is none.
        WorkersError: the workers cannot meet where the environment says.
    """
    size = _number("WORLD_SIZE")
    _number("LOCAL_RANK")
    rank, port = _number("RANK", size - 1), _number("MASTER_PORT", 65535)
    _check_address(os.environ["MASTER_ADDR"])
    try:
        # Meeting takes as long as the slowest start, so the steps' timeout is not asked here.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_CONTROL_TIMEOUT
        )
    except (RuntimeError, ValueError, OSError) as error:  # RuntimeError: torch's DistError too
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise WorkersError(
            f"worker {rank} of {size} cannot meet the others at {os.environ['MASTER_ADDR']}, port "
            f"{port}: {reason}; if another program has the port, choose another "
            "(torchrun --rdzv-endpoint=HOST:PORT, or --standalone on one machine)"
        ) from error


def _check_address(host: str) -> None:
    """torch asks for an address that nobody knows again and again, until the timeout."""
    try:
        if not host.strip():
            raise OSError("it is empty")
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise WorkersError(
            f"MASTER_ADDR={host!r} is the address of no machine: {reason}; write the name or the "
            "address of the first worker's machine (torchrun --rdzv-endpoint=HOST:PORT, or "
            "--standalone on one machine)"
        ) from error


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
    local, devices = _number("LOCAL_RANK"), torch.cuda.device_count()
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

    Raises:
        ConfigError: the environment is torchrun's in part only, or a number of it is none.
        WorkersError: the workers cannot meet.
    """
    if not started():
        _check_alone()
        yield None
        return
    own = not dist.is_initialized()
    chosen = worker_device(device)
    if own:
        _meet(chosen)
    workers = Workers(chosen, timeout)
    yield workers
    # After an error the others may be gone, and leaving together would wait for them.
    if own:
        workers.barrier()
        dist.destroy_process_group()

"""Reading in a process of its own, where memory and time are short."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adarec_fast import ConfigError
from adarec_fast.data import DataError
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.training import RunFolderError

OURS = (CheckpointError, RunFolderError, ConfigError, DataError)
MORE_MEMORY = 256 << 20
SECONDS = 10


def refusal(function: Callable[[], Any]) -> str:
    """The message with which a call refuses; it may take no more than a little memory and time."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "ended without an answer"
        try:
            os.close(reading)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            limit = pages * resource.getpagesize() + MORE_MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            function()
            answer = "accepted"
        except OURS as error:
            answer = f"refused {error}"
        except BaseException as error:
            answer = f"{type(error).__name__} {error}"[:2000]
        finally:
            os.write(writing, answer.encode(errors="replace")[:60_000])
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "took too long"
    assert answer.startswith("refused "), answer
    return answer.removeprefix("refused ")

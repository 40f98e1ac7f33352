"""What the CUDA extension needs of a machine: architectures, nvcc, headers, the runtime library.

Headers and the runtime come from nvcc's toolkit or from the wheels that torch brings, whichever
has them: a toolkit may be nvcc alone, and the wheels hold neither nvcc nor a ``libcudart.so``.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"


class ExtensionError(RuntimeError):
    """The extension cannot be built or loaded here; the message says why and what would help."""


class NotForThisMachine(ExtensionError):
    """There is nothing to build for, or no CUDA compiler: usual, and no fault."""


class Toolkit(NamedTuple):
    """nvcc, the folders of headers in the order to search, and the CUDA runtime to link with."""

    nvcc: Path
    includes: tuple[Path, ...]
    runtime: Path


def requested_architectures() -> tuple[str, ...]:
    """``TORCH_CUDA_ARCH_LIST`` as ``("80", "86")`` of e.g. ``"8.0 8.6"``; empty where not set.

    What torch's own builds take: numbers, separated by spaces or semicolons. The ``a`` of ``9.0a``
    and ``+PTX`` are read over: the kernels use nothing of the one, and a library is for the
    architectures that it names alone.

    Raises:
        ExtensionError: an entry that is no compute capability.
    """
    found: dict[str, None] = {}
    value = os.environ.get(ARCHITECTURES, "")
    for entry in re.split(r"[\s;]+", value.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", entry)
        if match:
            found[match[1] + match[2]] = None
        elif entry:
            raise ExtensionError(
                f"{ARCHITECTURES}={value!r}: {entry!r} is not a compute capability; it takes "
                f"numbers like 8.6, separated by spaces or semicolons"
            )
    return tuple(found)


def device_architectures() -> tuple[str, ...]:
    """The architectures of the devices there are, each once, ``("86",)`` of an RTX 3090.

    Raises:
        NotForThisMachine: no device.
    """
    if not torch.cuda.is_available():
        raise NotForThisMachine(
            f"no CUDA device; set {ARCHITECTURES}, e.g. to 8.6, to build for one elsewhere"
        )
    every = (torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    return tuple(f"{major}{minor}" for major, minor in sorted(set(every)))


def _wheels() -> list[Path]:
    """Folders of torch's CUDA wheels that may hold nvcc, headers or the runtime."""
    spec = importlib.util.find_spec("nvidia")
    major = (torch.version.cuda or "").partition(".")[0]
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    folders = [Path(place) / name for place in places for name in (f"cu{major}", "cuda_runtime")]
    return [folder for folder in folders if folder.is_dir()]


def find_nvcc() -> Path:
    """nvcc: ``$NVCC``, or that of ``$CUDA_HOME``, of a wheel, of PATH or of /usr/local/cuda.

    Raises:
        ExtensionError: ``$NVCC`` is not a program.
        NotForThisMachine: there is none.
    """
    chosen = os.environ.get("NVCC")
    if chosen:
        program = shutil.which(chosen)
        if program is None:
            raise ExtensionError(f"NVCC={chosen!r} is not a program")
        return Path(program)
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), *map(str, _wheels())]
    names = [*(f"{home}/bin/nvcc" for home in homes if home), "nvcc", "/usr/local/cuda/bin/nvcc"]
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        version = torch.version.cuda
        raise NotForThisMachine(
            f"nvcc is not there; install the CUDA toolkit {version}, e.g. "
            f"pip install 'cuda-toolkit[nvcc,crt,nvvm]=={version}.*', or set NVCC or CUDA_HOME"
        )
    return Path(program)


@functools.cache
def _dry_run(nvcc: Path, host: tuple[str, ...]) -> str:
    """What nvcc would do: it alone knows where its headers are, be it called by a script."""
    line = [str(nvcc), "--dryrun", *host, "-x", "cu", "-c", "/dev/null"]
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, errors="replace", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExtensionError(f"{nvcc} does not run: {error}") from error
    if done.returncode != 0:
        raise ExtensionError(f"{nvcc} does not run: {(done.stderr or done.stdout).strip()[:400]}")
    return done.stderr + done.stdout


def _folders(said: str, variable: str, option: str) -> list[Path]:
    found = re.search(rf"^#\$ {variable}=(.*)$", said, re.MULTILINE)
    words = shlex.split(found[1]) if found else []
    return [Path(word[2:]) for word in words if word.startswith(option)]


def toolkit(host: tuple[str, ...]) -> Toolkit:
    """What nvcc and torch's wheels hold together, with nvcc's options ``host`` for the host's part.

    Raises:
        NotForThisMachine: no nvcc.
        ExtensionError: nvcc is of another CUDA than torch, or headers or the runtime are missing.
    """
    nvcc = find_nvcc()
    said = _dry_run(nvcc, host)
    release = re.search(r"__CUDACC_VER_MAJOR__=(\d+) -D__CUDACC_VER_MINOR__=(\d+)", said)
    wanted = torch.version.cuda or ""
    if release is None or release[1] != wanted.partition(".")[0]:
        # A library has one CUDA runtime, and it is torch's; its interface is fixed by major.
        version = f"{release[1]}.{release[2]}" if release else "an unknown release"
        raise ExtensionError(
            f"{nvcc} is of CUDA {version}, torch {torch.__version__} of CUDA {wanted}; set NVCC or "
            f"CUDA_HOME to one of CUDA {wanted.partition('.')[0]}"
        )
    wheels = _wheels()
    includes = [*_folders(said, "INCLUDES", "-I"), *(folder / "include" for folder in wheels)]
    # The compiler's own folder must not be named: its headers include others from behind it.
    includes = [p.resolve() for p in includes if p.resolve() != Path("/usr/include")]
    everywhere = [*includes, Path("/usr/include")]
    for name in ("cuda_runtime_api.h", "cuda_runtime.h"):
        if not any((folder / name).exists() for folder in everywhere):
            raise ExtensionError(f"{name} is in none of {', '.join(map(str, everywhere))}")
    # The wheel's runtime first: it is the one that torch has loaded.
    libraries = [folder / "lib" for folder in wheels] + _folders(said, "LIBRARIES", "-L")
    pattern = f"libcudart.so.{release[1]}*"
    for folder in libraries:
        for runtime in [*sorted(folder.glob(pattern)), folder / "libcudart.so"]:
            if runtime.exists():
                return Toolkit(nvcc, tuple(dict.fromkeys(includes)), runtime.resolve())
    raise ExtensionError(
        f"libcudart.so of CUDA {release[1]} is in none of {', '.join(map(str, libraries))}"
    )

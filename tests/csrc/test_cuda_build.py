"""The CUDA extension is built with and without a device, from whatever holds nvcc and headers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from adarec_fast.cli import app
from adarec_fast.ops import _plans, _toolkit, extension

ROOT = Path(__file__).resolve().parents[2]
# What `nvcc --dryrun` says of itself, and else a file for each `-o`.
FAKE_NVCC = """\
#!/bin/sh
echo "$@" >> "{log}"
if [ "$1" = --dryrun ]; then
  echo '#$ INCLUDES="-I{home}/bin/../include"  ' >&2
  echo '#$ LIBRARIES=  "-L{home}/lib/stubs" "-L{home}/lib"' >&2
  echo '#$ gcc -D__CUDACC_VER_MAJOR__={major} -D__CUDACC_VER_MINOR__=2 -E' >&2
  exit 0
fi
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then echo object > "$2"; fi
  shift
done
"""


class Machine:
    """A machine with a CUDA torch 13.0, a compiler that writes what it is told to, and no GPU."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.sources, self.log, self.wheel = folder / "csrc", folder / "log", folder / "wheel"
        for name in ("cuda", "bindings", "cpu"):
            (self.sources / name).mkdir(parents=True)
        for name in ("bindings.cpp", "bindings/common.h", "cuda/one.cu", "bindings/one_cuda.cpp"):
            (self.sources / name).write_text("// nothing\n")
        self.home = folder / "toolkit"
        self.tool("compiler", self.folder / "c++")
        self.patch.setattr(_plans, "SOURCES", self.sources)
        self.patch.setattr(_toolkit, "_wheels", lambda: [self.wheel])
        self.patch.setattr(torch.version, "cuda", "13.0")
        self.patch.setenv("ADAREC_FAST_CACHE", str(folder / "cache"))
        self.patch.setenv("CXX", str(folder / "c++"))
        self.devices()

    def devices(self, *capabilities: tuple[int, int]) -> None:
        self.patch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        self.patch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        self.patch.setattr(torch.cuda, "get_device_capability", lambda i=0: capabilities[i])

    def tool(self, name: str, path: Path, major: int = 13) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE_NVCC.format(log=self.log, home=self.home, major=major))
        path.chmod(0o755)

    def install(self, folder: Path, *, headers: bool = True, runtime: str | None = None) -> None:
        """Headers and a runtime of CUDA into a toolkit's or a wheel's folder."""
        for part in ("include", "lib"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        if headers:
            for name in ("cuda_runtime.h", "cuda_runtime_api.h"):
                (folder / "include" / name).write_text("")
        if runtime:
            (folder / "lib" / runtime).write_text("")

    def toolkit(self, major: int = 13) -> None:
        self.tool("nvcc", self.home / "bin/nvcc", major)
        self.install(self.home, runtime="libcudart.so")
        self.patch.setenv("CUDA_HOME", str(self.home))

    def calls(self, word: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if word in line and "--dryrun" not in line]

    def build(self) -> Result:
        return CliRunner().invoke(app, ["build", "--no-kernels"])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in ("NVCC", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "ADAREC_FAST_NO_EXT",
                 "ADAREC_FAST_PORTABLE", "ADAREC_FAST_SANITIZE"):
        monkeypatch.delenv(name, raising=False)
    which = _toolkit.shutil.which
    inside = (str(tmp_path), "/bin", "/usr/bin")
    # No nvcc of this machine, be it on PATH or in its usual place.
    monkeypatch.setattr(
        _toolkit.shutil, "which",
        lambda name, **rest: None
        if "nvcc" in str(name) and not str(name).startswith(inside) else which(name, **rest),
    )
    return Machine(tmp_path, monkeypatch)


def libraries(result: Result) -> list[str]:
    """The kinds of the libraries whose paths were printed, all of which exist."""
    paths = [Path(line) for line in result.stdout.splitlines()]
    assert all(path.exists() for path in paths)
    return [path.name.partition("-")[0] for path in paths]


def test_without_a_device_cpp_is_built_and_the_reason_told(machine: Machine) -> None:
    machine.toolkit()
    result = machine.build()
    assert result.exit_code == 0, result.output
    assert libraries(result) == ["adarec_fast_cpp"]
    assert "cpp was built, cuda was not: no CUDA device" in result.stderr
    assert "TORCH_CUDA_ARCH_LIST" in result.stderr


def test_a_cpu_torch_has_nothing_to_say_of_cuda(machine: Machine) -> None:
    machine.patch.setattr(torch.version, "cuda", None)
    result = machine.build()
    assert result.exit_code == 0
    assert libraries(result) == ["adarec_fast_cpp"]
    assert "cuda" not in result.stderr


def test_a_device_without_nvcc_is_no_failure(machine: Machine) -> None:
    machine.devices((8, 6))
    result = machine.build()
    assert result.exit_code == 0
    assert libraries(result) == ["adarec_fast_cpp"]
    assert "cuda was not: nvcc is not there" in result.stderr
    assert "cuda-toolkit[nvcc,crt,nvvm]==13.0.*" in result.stderr


def test_the_machine_with_the_device_finds_what_was_built_without_one(machine: Machine) -> None:
    machine.toolkit()
    machine.patch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;8.6+PTX")
    result = machine.build()
    assert result.exit_code == 0, result.output
    assert libraries(result) == ["adarec_fast_cpp", "adarec_fast_cuda", "adarec_fast_cuda"]
    assert ["sm_80" in call for call in machine.calls("-gencode")] == [True, False]
    assert "sm_86" in machine.calls("-gencode")[1]
    built = [Path(line) for line in result.stdout.splitlines()]
    # It has neither nvcc nor a compiler.
    for name in ("TORCH_CUDA_ARCH_LIST", "CUDA_HOME"):
        machine.patch.delenv(name)
    machine.patch.setenv("CXX", "no-such-compiler")
    for place, capability in ((1, (8, 0)), (2, (8, 6))):
        machine.devices(capability, capability)
        assert extension.build("cuda") == built[place]
    machine.devices((9, 0))
    with pytest.raises(extension.ExtensionError, match="no-such-compiler"):
        extension.build("cuda")


def test_devices_of_two_kinds_share_a_library(machine: Machine) -> None:
    machine.toolkit()
    machine.devices((9, 0), (8, 6), (9, 0))
    assert libraries(machine.build()) == ["adarec_fast_cpp", "adarec_fast_cuda"]
    (call,) = machine.calls("-gencode")
    assert "-gencode arch=compute_86,code=sm_86 -gencode arch=compute_90,code=sm_90 " in call


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", ()), ("8.6", ("86",)), (" 8.0;8.6  9.0a+PTX ", ("80", "86", "90")),
     ("8.6 8.6+PTX", ("86",)), ("12.0", ("120",))],
)
def test_lists_of_architectures(
    value: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", value)
    assert _toolkit.requested_architectures() == expected


@pytest.mark.parametrize("value", ["86", "sm_86", "Ampere", "8.6,9.0", "8.6 x"])
def test_what_is_no_architecture_is_refused(machine: Machine, value: str) -> None:
    machine.toolkit()
    machine.patch.setenv("TORCH_CUDA_ARCH_LIST", value)
    result = machine.build()
    assert result.exit_code == 1
    assert "is not a compute capability; it takes numbers like 8.6" in result.stderr


def test_what_was_asked_for_and_cannot_be_had_is_an_error(machine: Machine) -> None:
    machine.patch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    result = machine.build()
    assert result.exit_code == 1
    assert libraries(result) == ["adarec_fast_cpp"]
    assert "nvcc is not there" in result.stderr
    machine.patch.setattr(torch.version, "cuda", None)
    result = machine.build()
    assert result.exit_code == 1
    assert "is not a CUDA build" in result.stderr


def test_another_cuda_than_torchs_is_refused(machine: Machine) -> None:
    machine.toolkit(major=12)
    with pytest.raises(extension.ExtensionError, match=r"is of CUDA 12\.2, torch .* of CUDA 13"):
        extension.build("cuda", architectures=("86",))


def test_headers_and_runtime_of_the_toolkit_alone(machine: Machine) -> None:
    machine.toolkit()
    found = _toolkit.toolkit(str(machine.folder / "c++"))
    assert found.includes[0] == machine.home / "include"
    assert found.runtime == machine.home / "lib/libcudart.so"


def test_headers_and_runtime_of_the_wheel_alone(machine: Machine) -> None:
    machine.tool("nvcc", machine.wheel / "bin/nvcc")
    machine.install(machine.wheel, runtime="libcudart.so.13")
    extension.build("cuda", architectures=("86",))
    assert machine.calls("-gencode")[0].count(f"-isystem {machine.wheel}/include") == 1
    assert f"{machine.wheel}/lib/libcudart.so.13" in machine.calls("-shared")[0]


def test_the_runtime_that_torch_has_loaded_comes_first(machine: Machine) -> None:
    machine.toolkit()
    machine.install(machine.wheel, runtime="libcudart.so.13")
    found = _toolkit.toolkit(str(machine.folder / "c++"))
    assert found.includes == (machine.home / "include", machine.wheel / "include")
    assert found.runtime == machine.wheel / "lib/libcudart.so.13"


def test_a_missing_runtime_is_named(machine: Machine) -> None:
    machine.toolkit()
    (machine.home / "lib/libcudart.so").unlink()
    with pytest.raises(extension.ExtensionError, match=r"libcudart.so of CUDA 13 is in none of"):
        extension.build("cuda", architectures=("86",))


def test_a_device_without_nvcc_does_not_warn(
    machine: Machine, recwarn: pytest.WarningsRecorder
) -> None:
    machine.devices((8, 6))
    extension._load.cache_clear()
    try:
        why = extension.unavailable("cuda")
    finally:
        extension._load.cache_clear()
    assert why is not None
    assert "nvcc is not there" in why
    assert not recwarn.list


def _missing() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    try:
        _toolkit.toolkit(tuple(_plans.host_compiler(_plans.compiler())))
    except extension.ExtensionError as error:
        return str(error)
    return None


BUILD = "from adarec_fast.ops import extension as e; print(e.build('cuda', architectures=('90',)))"
LOAD = """
import json, sys, torch
from adarec_fast.ops import extension
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda index=0: (9, 0)
assert extension.unavailable("cuda") is None, extension.unavailable("cuda")
forward, backward = extension.functions("moe_aggregate", "cuda")
z, r = torch.zeros, {"dtype": torch.int64}
inputs = [z(2, 3, 8), z(2, 3, 8), None, z(3, **r), z(2, 3), z(8, 8), z(2, 8), z(8), z(1), z(8, 8),
          z(8)]
said = []
for call, more in ((forward, []), (backward, [z(3, 8), z(2, 3), z(3, 8), z(3, 8)])):
    try:
        call(*more, *inputs)
    except ValueError as error:
        said.append(str(error).splitlines()[0])
print(json.dumps({"said": said, "initialised": torch.cuda.is_initialized()}))
"""


MISSING = _missing()


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_the_real_library_is_built_without_a_device_and_loads(tmp_path: Path) -> None:
    environment = {
        **os.environ, "ADAREC_FAST_CACHE": str(tmp_path), "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("ADAREC_FAST_NO_EXT", None)
    done = subprocess.run(
        [sys.executable, "-c", BUILD], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    built = Path(done.stdout.strip())
    assert built.parent == tmp_path
    # A machine with an H100, as far as Python can tell, loads it and has no nvcc.
    environment |= {"NVCC": "no-such-compiler", "CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "said": ["fine is on cpu; backend cuda runs on cuda"] * 2, "initialised": False
    }

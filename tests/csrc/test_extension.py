"""The extension's build: one build for many processes, a cache, and a way on where it fails."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import pwd
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from adarec_fast import rng
from adarec_fast.ops import _library, _plans, dropout, extension

ROOT = Path(__file__).resolve().parents[2]
FAKE_COMPILER = """\
#!/bin/sh
echo "$@" >> "{log}"
sleep {pause}
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then echo object > "$2"; fi
  shift
done
"""


class Workshop:
    """A small source tree, a compiler that only writes down how it was called, a cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.sources = folder / "csrc"
        self.log = folder / "log"
        (self.sources / "cpu").mkdir(parents=True)
        (self.sources / "bindings.cpp").write_text('#include "cpu/one.h"\n')
        (self.sources / "cpu/one.h").write_text("#pragma once\n")
        (self.sources / "cpu/one.cpp").write_text('#include "one.h"\n')
        (self.sources / "cpu/two.cpp").write_text("// alone\n")

    def compiler(self, text: str = FAKE_COMPILER, pause: float = 0.0) -> str:
        path = self.folder / "compiler"
        path.write_text(text.format(log=self.log, pause=pause))
        path.chmod(0o755)
        return str(path)

    def calls(self) -> list[str]:
        """What was compiled or linked since the last call of this method."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        words = [line.split() for line in lines]
        return sorted(Path(line[line.index("-o") + 1]).name for line in words)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    for name in ("ADAREC_FAST_NO_EXT", "ADAREC_FAST_PORTABLE", "ADAREC_FAST_SANITIZE"):
        monkeypatch.delenv(name, raising=False)
    place = Workshop(tmp_path)
    monkeypatch.setattr(_plans, "SOURCES", place.sources)
    monkeypatch.setenv("ADAREC_FAST_CACHE", str(place.cache))
    monkeypatch.setenv("CXX", place.compiler())
    extension._load.cache_clear()
    yield place
    extension._load.cache_clear()


WHOLE = ["adarec_fast_cpp.so", "cpu_one.cpp.o", "cpu_two.cpp.o", "csrc_bindings.cpp.o"]


def test_a_build_is_cached_and_announced_once(
    workshop: Workshop, capfd: pytest.CaptureFixture[str]
) -> None:
    library = extension.build()
    said = capfd.readouterr().err
    assert library.parent == workshop.cache
    assert library.read_text() == "object\n"
    assert said.count("\n") == 1
    assert "3 files" in said
    assert str(library) in said
    assert workshop.calls() == WHOLE
    assert extension.build() == library
    assert workshop.calls() == []
    assert capfd.readouterr().err == ""


def test_the_bindings_unit_holds_every_binding() -> None:
    text = (_plans.SOURCES / "bindings.cpp").read_text()
    named = re.findall(r'#include "bindings/(\w+)\.cpp"', text)
    there = [p.stem for p in sorted((_plans.SOURCES / "bindings").glob("*.cpp"))]
    assert named == [name for name in there if not name.endswith("_cuda")]


def test_only_what_changed_is_compiled(workshop: Workshop) -> None:
    first = extension.build(verbose=False)
    workshop.calls()
    (workshop.sources / "cpu/two.cpp").write_text("// changed\n")
    second = extension.build(verbose=False)
    assert second != first
    assert workshop.calls() == ["adarec_fast_cpp.so", "cpu_two.cpp.o"]
    # An older time stamp, as an unpacked wheel may have, must not hide a change of content.
    header = workshop.sources / "cpu/one.h"
    header.write_text("#pragma once\n// changed\n")
    os.utime(header, (1, 1))
    assert extension.build(verbose=False) not in (first, second)
    assert set(workshop.calls()) >= {"cpu_one.cpp.o", "csrc_bindings.cpp.o"}


@pytest.mark.parametrize(
    ("name", "value"), [("ADAREC_FAST_PORTABLE", "1"), ("ADAREC_FAST_SANITIZE", "address")]
)
def test_other_flags_make_another_library(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    native = extension.build(verbose=False)
    monkeypatch.setenv(name, value)
    assert extension.build(verbose=False) != native


def test_the_cache_serves_a_machine_without_a_compiler(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = extension.build(verbose=False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert extension.build(verbose=False) == library


@pytest.mark.parametrize("form", ["{} -fno-plt -DNAME='a b'", "env X=1 {} -fno-plt", " {} "])
def test_a_compiler_with_arguments_or_a_launcher(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("CXX", form.format(workshop.compiler()))
    extension.build(verbose=False)
    called = workshop.log.read_text().splitlines()
    assert all(line.startswith("-fno-plt") for line in called) == ("-fno-plt" in form)
    assert all(("-DNAME=a b" in line) == ("NAME" in form) for line in called)
    assert workshop.calls() == WHOLE


def test_a_compiler_whose_path_has_a_blank(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workshop.folder / "a b").symlink_to(workshop.compiler())
    monkeypatch.setenv("CXX", str(workshop.folder / "a b"))
    extension.build(verbose=False)
    assert workshop.calls() == WHOLE


def test_nvcc_is_given_the_compiler_without_its_launcher() -> None:
    words = ["/usr/bin/ccache", "g++", "-fno-plt", "-m64"]
    assert _plans.host_compiler(words) == [
        "-ccbin", "g++", "-Xcompiler", "-fno-plt", "-Xcompiler", "-m64",
    ]  # fmt: skip
    assert _plans.host_compiler(["/usr/bin/c++"]) == ["-ccbin", "/usr/bin/c++"]


def test_eight_processes_build_once(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", workshop.compiler(pause=0.3))
    context = multiprocessing.get_context("fork")
    with context.Pool(8) as pool:
        waiting = [pool.apply_async(extension.build, kwds={"verbose": False}) for _ in range(8)]
        found = {result.get(timeout=300) for result in waiting}
    assert len(found) == 1
    assert found.pop().read_text() == "object\n"
    assert workshop.calls() == WHOLE
    # Nothing half-written stays behind.
    assert [p.suffix for p in workshop.cache.iterdir() if p.is_file()].count(".so") == 1
    assert not [p for p in workshop.cache.iterdir() if p.name.rpartition(".")[2].isdigit()]


def _not_a_program(place: Workshop, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CXX", "no-such-compiler")


def _no_compiler(place: Workshop, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("CXX")
    patch.setenv("PATH", str(place.folder / "empty"))


def _failing(place: Workshop, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CXX", place.compiler("#!/bin/sh\necho 'one.cpp:1: error: boom'\nexit 1\n"))


def _broken_library(place: Workshop, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CXX", place.compiler())


def _unbalanced(place: Workshop, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CXX", "g++ 'open")


def _launcher(place: Workshop, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CXX", "no-such-ccache g++")


def _homeless(place: Workshop, patch: pytest.MonkeyPatch) -> None:
    """A user whom the system does not know, as in a container."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME", "ADAREC_FAST_CACHE"):
        patch.delenv(name, raising=False)
    patch.setattr(pwd, "getpwuid", unknown)


def _home_in_the_name(place: Workshop, patch: pytest.MonkeyPatch) -> None:
    _homeless(place, patch)
    patch.setenv("ADAREC_FAST_CACHE", "~/cache")


def _without_locks(place: Workshop, patch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    patch.setattr(fcntl, "flock", flock)


def _unwritable(place: Workshop, patch: pytest.MonkeyPatch) -> None:
    # A folder below a file cannot be made, by root neither, unlike one below a read-only folder.
    (place.folder / "file").write_text("")
    patch.setenv("ADAREC_FAST_CACHE", str(place.folder / "file/cache"))


def _switched_off(place: Workshop, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("ADAREC_FAST_NO_EXT", "1")


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (_not_a_program, "CXX='no-such-compiler' is not a program"),
        (_no_compiler, r"no C\+\+ compiler found"),
        (_failing, "one.cpp:1: error: boom"),
        (_broken_library, "file too short; remove it to have it built again, or set ADAREC_FAST"),
        (_unbalanced, "is no command: No closing quotation"),
        (_launcher, r"CXX='no-such-ccache g\+\+': 'no-such-ccache' is not a program"),
        (_homeless, "no home folder .*; set ADAREC_FAST_CACHE to a writable folder"),
        (_home_in_the_name, "set ADAREC_FAST_CACHE to a writable folder"),
        (_without_locks, "cannot be locked: No locks available"),
        (_unwritable, "set ADAREC_FAST_CACHE to a writable folder"),
        (_switched_off, "ADAREC_FAST_NO_EXT=1 is set"),
    ],
)
def test_without_the_extension_one_warning_and_the_packed_backend(
    workshop: Workshop,
    monkeypatch: pytest.MonkeyPatch,
    arrange: Callable[[Workshop, pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    arrange(workshop, monkeypatch)
    monkeypatch.delenv("ADAREC_FAST_BACKEND", raising=False)
    with pytest.warns(RuntimeWarning, match="slower backends run instead") as caught:
        why = extension.unavailable("cpp")
    assert why is not None
    assert re.search(reason, why), why
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.ones(3, 4)
        y = dropout(x, p=0.5, seed=rng.as_seed(1), stream=rng.STREAM_EMBEDDING)
    assert set(y.unique().tolist()) <= {0.0, 2.0}
    choice = _library.explain("dropout", "auto", "cpu")
    assert choice.backend == "packed"
    assert re.search(reason, choice.reason)
    with pytest.raises(_library.BackendError, match="cpp"):
        dropout(x, p=0.5, seed=rng.as_seed(1), stream=rng.STREAM_EMBEDDING, backend="cpp")


def test_unknown_backends_and_ops() -> None:
    with pytest.raises(extension.ExtensionError, match="'hip' is not one of cpp, cuda"):
        extension.build("hip")
    if extension.unavailable("cpp") is None:
        with pytest.raises(extension.ExtensionError, match="has no op no_such_op"):
            extension.functions("no_such_op", "cpp")


def _op_tests(environment: dict[str, str], *arguments: str) -> None:
    """Run the C++ ops' tests in a process whose extension is built in another way."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


OP_TESTS = [
    f"tests/{'csrc' if name.startswith('cpp_') else 'ops'}/test_{name}.py"
    for name in (
        "hda_trajectory", "mlp_expert", "mlp_expert_pooled", "level_pool", "dropout", "embedding",
        "local_path", "encoder_layer", "depth_controller", "moe_aggregate", "level_infonce",
        "linear_cross_entropy", "score_topk", "memory_topk", "length_bias", "objective",
        "epoch_statistics", "adam", "cpp_ops", "cpp_encoder_layer", "cpp_depth_controller",
        "cpp_moe_aggregate", "cpp_level_infonce",
        "cpp_linear_cross_entropy", "cpp_score_topk", "cpp_kept", "cpp_step", "cpp_request",
    )
]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "lanes"), [("avx2", "8"), ("generic", "4")])
def test_a_build_for_other_processors_passes_the_op_tests(target: str, lanes: str) -> None:
    portable = {"ADAREC_FAST_PORTABLE": target}
    width = "import adarec_fast.ops.extension as e, torch; assert e.unavailable('cpp') is None; "
    width += "print(torch.ops.adarec_fast_cpp.vector_width())"
    done = subprocess.run(
        [sys.executable, "-c", width], cwd=ROOT, env={**os.environ, **portable},
        capture_output=True, text=True, check=True,
    )
    assert done.stdout.split() == [lanes]
    _op_tests(portable, *OP_TESTS, "-k", "cpp")


def _runtimes(*names: str) -> str:
    """What LD_PRELOAD takes: Python itself is not instrumented, so the runtimes come first."""
    compiler = os.environ.get("CXX", "g++")
    found = []
    for name in names:
        where = subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        if not Path(where.stdout.strip()).is_absolute():
            pytest.skip(f"{compiler} has no {name}")
        found.append(where.stdout.strip())
    return ":".join(found)


@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers_are_clean() -> None:
    _op_tests(
        {
            "ADAREC_FAST_SANITIZE": "address,undefined",
            "LD_PRELOAD": _runtimes("libasan.so", "libubsan.so", "libstdc++.so"),
            # Python's own allocations at exit are not leaks.
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        *OP_TESTS, "-k", "cpp and not compile",
    )


@pytest.mark.slow
def test_the_thread_sanitizer_is_clean() -> None:
    _op_tests(
        {
            "ADAREC_FAST_SANITIZE": "thread",
            "LD_PRELOAD": _runtimes("libtsan.so", "libstdc++.so"),
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66 halt_on_error=1",
        },
        *OP_TESTS, "-k", "cpp and (float64 or thread or many_sequences or same_bits)",
    )

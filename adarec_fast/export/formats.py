"""Exported programs on disk: how each format is written, and how it is loaded to be checked."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch._inductor.exc import InductorError

from ..config import ConfigError
from .errors import ExportError
from .inputs import checked_by_aoti

# What the manifest calls the axes of the inputs.
AXES = (("batch", "length"), ("batch", "seen"))

Program = torch.export.ExportedProgram
# From the inputs, in their order, to the outputs.
Call = Callable[..., tuple[Tensor, ...]]


class Format(NamedTuple):
    """How a program is kept.

    Attributes:
        suffix: of its file.
        write: writes it.
        load: reads it into something callable on tensors of the device named.
        packages: what must be installed.
    """

    suffix: str
    write: Callable[[Program, Path], None]
    load: Callable[[Path, torch.device], Call]
    packages: tuple[str, ...] = ()


def require(package: str, extra: str, what: str) -> ModuleType:
    """Import an optional package.

    Raises:
        ConfigError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"{what} needs {package}: pip install adarec_fast[{extra}]") from error


def _write_torch(program: Program, path: Path) -> None:
    torch.export.save(program, path)


def _load_torch(path: Path, device: torch.device) -> Call:
    module = torch.export.load(path).module()
    return lambda *inputs: _tuple(module(*inputs))


def _write_aoti(program: Program, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own trees
            with checked_by_aoti():
                torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except InductorError as error:
        raise ExportError(
            f"AOTInductor cannot compile the model (it needs a C++ compiler): {error}"
        ) from error


def _load_aoti(path: Path, device: torch.device) -> Call:
    package = torch._inductor.aoti_load_package(str(path))
    return lambda *inputs: _tuple(package(*inputs))


def _write_onnx(program: Program, path: Path) -> None:
    names = program.graph_signature
    # It speaks of torchvision's operators, whoever asks for none.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        made = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=list(names.user_inputs),
            output_names=["items", "scores"] if len(names.user_outputs) == 2 else ["user"],
        )  # fmt: skip
    assert made is not None
    # Torch calls them s42 and the like.
    made.rename_axes({
        axis: name
        for tensor, names in zip(made.model.graph.inputs, AXES, strict=False)
        for axis, name in zip(tensor.shape or (), names, strict=True)
        if not isinstance(axis, int)
    })
    made.save(str(path))


def _load_onnx(path: Path, device: torch.device) -> Call:
    runtime = require("onnxruntime", "onnx", "the format onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what it refuses, it raises as well
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        fed = {name: x.cpu().numpy() for name, x in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(x).to(device) for x in session.run(None, fed))

    return call


def _tuple(outputs: Tensor | list[Tensor] | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


PROGRAMS: dict[str, Format] = {
    "torch": Format(".pt2", _write_torch, _load_torch),
    "aoti": Format(".pt2", _write_aoti, _load_aoti),
    "onnx": Format(".onnx", _write_onnx, _load_onnx, ("onnx", "onnxscript", "onnxruntime")),
}

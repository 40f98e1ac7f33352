"""A module in evaluation mode without touching its own mode, which other threads may rely on."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

ModuleType = TypeVar("ModuleType", bound=nn.Module)


def evaluating(module: ModuleType) -> ModuleType:
    """A view of a module: its weights, buffers and hooks are the module's own, its mode, and that
    of every module in it, is evaluation.

    ``module.eval()`` and ``module.train()`` around a call would change the answers of whoever uses
    the module meanwhile. Weights that the module is given later are the view's too; modules that
    are put into it later are not.
    """
    return _view(module, {})


def _view(module: ModuleType, made: dict[int, nn.Module]) -> ModuleType:
    if id(module) in made:  # a module may stand in several places
        return made[id(module)]  # type: ignore[return-value]
    view: ModuleType
    if isinstance(module, torch.jit.ScriptModule):
        view = copy.copy(module)
        view.eval()  # its mode lies outside Python
    else:
        view = object.__new__(type(module))
        view.__dict__.update(module.__dict__)
        view.__dict__["training"] = False
        # Of nn.Module.compile(), bound to the module itself.
        view.__dict__["_compiled_call_impl"] = None
    made[id(module)] = view
    if not isinstance(module, torch.jit.ScriptModule):
        view.__dict__["_modules"] = {
            name: None if child is None else _view(child, made)
            for name, child in module._modules.items()
        }
    return view

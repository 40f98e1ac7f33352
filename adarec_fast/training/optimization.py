"""One optimizer step: losses, clipping, Adam, and never an update that is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import ops
from ..config import TrainConfig, training_precision
from ..models.pretrained import CheckpointError
from ..ops._library import on_cuda
from ..precision import computing
from .adam import Adam
from .progress import check_state_tensor
from .schedule import LearningRate
from .statistics import EpochStatistics

if TYPE_CHECKING:
    from ..models.base import LossOutput, SequenceModel

_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


class Stepper:
    """Takes optimizer steps with a model on one device.

    A step never waits for the device: one that is not finite is skipped there, by the
    ``found_inf`` of torch's fused Adam, and so are all that follow it.

    Args:
        model: on its device, in training mode.
        config: learning rate and its schedule, weight decay, clipping.
        device: the model's device.
        total_steps: of the whole run, see :class:`LearningRate`.
    """

    # Whether Adam keeps its step where a CUDA graph can advance it.
    capturable = False

    def __init__(
        self,
        model: SequenceModel,
        config: TrainConfig,
        device: torch.device,
        total_steps: int | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.device = device
        self._precision = training_precision(model.config, config)
        self._names = [name for name, _ in model.named_parameters()]
        self._parameters = [parameter for _, parameter in model.named_parameters()]
        # Kernels of ours where they run: torch's norm, clipping and Adam are some 15 launches.
        self._kernels = _plain(self._parameters) and all(
            ops.has_kernel(name, model.config.backend, device.type)
            for name in ("gradient_norm", "adam")
        )
        self.learning_rate = LearningRate(config, total_steps)
        self._rate = config.learning_rate  # what the optimizer has
        # A graph and a GPU's kernel read it there, where it can change between two replays.
        on_device = self.capturable or (self._kernels and on_cuda(device))
        # As a group, which may be empty.
        self.optimizer = Adam(
            [{"params": self._parameters}],
            lr=torch.full((), self._rate, dtype=torch.float32, device=device)
            if on_device else self._rate,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=self.capturable,
        )
        self._done = torch.zeros((), dtype=torch.int32, device=device)

    def step(self, batch: Any, number: int, statistics: EpochStatistics) -> None:
        """One step on one batch, none of it waited for.

        Args:
            batch: a :class:`Batch` on the model's device, or what else :meth:`loss` takes.
            number: the step's number over the whole run, from 1.
            statistics: takes up the step's losses; its ``diverged()`` tells of a bad step later.
        """
        self._set_rate(number)
        self.update(batch, number, statistics)

    def _set_rate(self, number: int) -> None:
        """Give the optimizer the rate of a step, from 1, without waiting for the device."""
        rate = self.learning_rate.at(number - 1)
        if rate == self._rate:
            return
        self._rate = rate
        (group,) = self.optimizer.param_groups
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

    def loss(self, batch: Any) -> LossOutput:
        """The losses of a batch, with gradient."""
        return self.model.loss(batch)

    def examples(self, batch: Any) -> int:
        """Examples of a batch that this process computes."""
        return int(batch.offsets.shape[0]) - 1

    def gradient_norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of all gradients as one vector."""
        if self._kernels:
            return ops.gradient_norm(gradients, self._done)
        return torch.nn.utils.get_total_norm(gradients)

    def update(self, batch: Any, number: int | Tensor, statistics: EpochStatistics) -> None:
        """The step itself; ``number`` may live on the device."""
        for parameter in self._parameters:
            parameter.grad = None
        # The model sees to its own; what may differ is that of old runs under amp.
        with computing(self._precision, self.device.type):
            output = self.loss(batch)
        output.total.backward()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = self.gradient_norm(gradients)
        found_inf = statistics.add(output, norm, number, self.examples(batch))
        if self._kernels and _plain(gradients):
            self._adam(gradients, norm, found_inf)
            return
        if self.config.gradient_clip:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.config.gradient_clip, norm)
        self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        self.optimizer.step()

    @torch.no_grad()
    def _adam(self, gradients: list[Tensor], norm: Tensor, found_inf: Tensor) -> None:
        """Clipping and the optimizer's step by one kernel, on the optimizer's own state."""
        parameters = [p for p in self._parameters if p.grad is not None]
        (group,) = self.optimizer.param_groups
        states = [self.optimizer.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        steps, firsts, seconds = ([state[key] for state in states] for key in _ADAM_STATE)
        ops.adam(
            parameters, gradients, firsts, seconds, steps, self._done, norm, found_inf,
            lr=group["lr"], betas=group["betas"], eps=group["eps"],
            weight_decay=group["weight_decay"], max_norm=self.config.gradient_clip,
        )  # fmt: skip

    def model_state(self) -> dict[str, Tensor]:
        """What the model is saved as: its whole ``state_dict``."""
        return dict(self.model.state_dict())

    def state_tensors(self) -> dict[str, Tensor]:
        """Adam's state by parameter: ``adam/<parameter>/exp_avg`` and so on."""
        return self.own_state_tensors()

    def own_state_tensors(self) -> dict[str, Tensor]:
        """What this process holds of :meth:`state_tensors`: all of it if it works alone."""
        state = self.optimizer.state
        return {
            f"adam/{name}/{key}": state[parameter][key]
            for name, parameter in zip(self._names, self._parameters, strict=True)
            if parameter in state
            for key in _ADAM_STATE
        }

    def load_state_tensors(self, tensors: dict[str, Tensor], where: str) -> None:
        """Inverse of ``state_tensors``.

        Raises:
            CheckpointError: a tensor is missing, unknown, or of another shape than its parameter.
        """
        found = {name for name in tensors if name.startswith("adam/")}
        state: dict[int, dict[str, Tensor]] = {}
        for index, (name, parameter) in enumerate(zip(self._names, self._parameters, strict=True)):
            keys = [f"adam/{name}/{key}" for key in _ADAM_STATE]
            if keys[0] not in found:  # a parameter that no step has touched yet
                continue
            for key in keys:
                shape = torch.Size() if key.endswith("/step") else parameter.shape
                check_state_tensor(tensors, key, shape, torch.float32, where)
                found.remove(key)
            state[index] = {
                short: tensors[key] for short, key in zip(_ADAM_STATE, keys, strict=True)
            }
        if found:
            raise CheckpointError(f"{where}: unknown tensor {min(found)}")
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _plain(tensors: Sequence[Tensor]) -> bool:
    """Whether kernels that know float32 and no strides can take them."""
    return all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors)

"""Optimizer steps of several workers that end with the same weights."""

# Annotations are evaluated here: DDP checks those of its hook.
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import TrainConfig
from ..data import Batch
from ..distributed.batches import SharedBatches
from ..distributed.share import Share, SharedBatch
from ..models.base import LossOutput, SequenceModel
from .optimization import Stepper


class DistributedStepper(Stepper):
    """A :class:`Stepper` whose gradients are summed over workers by torch's DDP.

    Args:
        model: the same on all workers, or with its item table split by its ``split_items``.
        config: as for :class:`Stepper`.
        batches: the shares that the steps are taken on.
        total_steps: as for :class:`Stepper`.
    """

    def __init__(
        self,
        model: SequenceModel,
        config: TrainConfig,
        batches: SharedBatches,
        total_steps: int | None = None,
    ) -> None:
        workers = batches.workers
        super().__init__(model, config, workers.device, total_steps)
        self._workers = workers
        self._items = model.sharded
        self._table = ""
        if self._items is not None:
            names = {id(p): name for name, p in model.named_parameters()}
            self._table = names[id(self._items.weight)]
        losses = _Losses(model)
        # Every worker advances the noise seed alike, and its rows of a split table are its own.
        ignored = [name for name, _ in losses.named_buffers()]
        if self._items is not None:
            ignored.append(f"model.{self._table}")
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(losses, ignored)
        self._parallel = DistributedDataParallel(
            losses,
            process_group=workers.group,
            find_unused_parameters=batches.some_are_empty or model.leaves_some_unused,
        )
        self._parallel.register_comm_hook(workers.group, _sum)

    def loss(self, batch: SharedBatch) -> LossOutput:
        if self._items is not None:
            self._items.most_tokens = batch.share.most_tokens
        output: LossOutput = self._parallel(batch.batch, batch.share)
        return output

    def examples(self, batch: SharedBatch) -> int:
        return super().examples(batch.batch)

    def gradient_norm(self, gradients: list[Tensor]) -> Tensor:
        if self._items is None:
            return super().gradient_norm(gradients)
        own = self._items.weight.grad
        shared = super().gradient_norm([g for g in gradients if g is not own])
        square = shared.new_zeros(()) if own is None else own.norm().square()
        return (shared.square() + self._workers.sum(square)).sqrt()

    def model_state(self) -> dict[str, Tensor]:
        state = super().model_state()
        if self._items is not None:
            state[self._table] = self._items.whole(state[self._table])
        return state

    def state_tensors(self) -> dict[str, Tensor]:
        tensors = super().state_tensors()
        if self._items is not None:
            for name in self._split_names(tensors):
                tensors[name] = self._items.whole(tensors[name])
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor], where: str) -> None:
        if self._items is not None:
            tensors = dict(tensors)
            for name in self._split_names(tensors):
                tensors[name] = self._items.part(tensors[name])
        super().load_state_tensors(tensors, where)

    def _split_names(self, tensors: dict[str, Tensor]) -> list[str]:
        prefix = f"adam/{self._table}/"
        return [n for n in tensors if n.startswith(prefix) and tensors[n].dim() == 2]


class _Losses(nn.Module):
    """DDP works on ``forward``; this one is the training loss."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, share: Share) -> LossOutput:
        return self.model.loss(batch, share)


def _sum(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's own hook would average, but the losses are weighted so that gradients add up."""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future

"""A catalogue too large for one device: the item table split by rows over the workers.

Worker r keeps the rows of its part of the items, their gradient and their Adam state. A lookup
adds up what each worker has of it; Eq. 13 is torch's ``loss_parallel`` over a ``DTensor`` of
logits that is split by items; ranks and top k are merged from each worker's own. Checkpoints hold
the whole table (:meth:`ShardedItems.whole`), so that anything can read them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..config import ConfigError
from ..ops.linear_cross_entropy import target_lead
from .workers import Workers

# Logits a worker holds at once, in elements. On a CPU larger temporaries are new pages from the
# system at every use (1.6 times slower at 1 << 26); a GPU wants fewer launches.
_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 26}


class ShardedItems(nn.Module):
    """The place of the model's ``nn.Embedding`` ``[V+1, D]``.

    Attributes:
        weight: ``[n + 1, D]``; row 0 is padding and zero, rows 1..n are the items
            ``begin + 1 .. begin + n``.
        begin: items of the workers before.
        most_tokens: in training mode each worker looks up ids of its own, at most so many; set
            before each step. In evaluation mode all workers look up the same ids.
    """

    def __init__(self, table: Tensor, workers: Workers) -> None:
        super().__init__()
        self.workers = workers
        self.num_items, self.size = table.shape[0] - 1, table.shape[1]
        self.rows = -(-self.num_items // workers.size)  # DTensor's Shard(0): the last has the rest
        self.begin = workers.rank * self.rows
        if self.rows * (workers.size - 1) >= self.num_items:
            raise ConfigError(
                f"shard_items=True: {self.num_items} items over {workers.size} workers leave the "
                "last one without items; take fewer workers or do not split the table"
            )
        self.weight = nn.Parameter(self.part(table))
        self.most_tokens = 0

    def part(self, table: Tensor) -> Tensor:
        """This worker's ``[n + 1, D]`` of the table, or of anything shaped alike, ``[V+1, D]``."""
        return torch.cat([table[:1], table[1 + self.begin : 1 + self.begin + self.rows]])

    def whole(self, part: Tensor) -> Tensor:
        """``[V+1, D]`` on the CPU at the first worker, of every worker's :meth:`part`."""
        filled = part.new_zeros(self.rows, self.size)
        filled[: part.shape[0] - 1] = part.detach()[1:]
        pieces = self.workers.gather(filled).flatten(0, 1)[: self.num_items]
        return torch.cat([part.detach()[:1], pieces]).cpu()

    def local(self, ids: Tensor) -> Tensor:
        """Rows of items here, 0 for items of others and for padding."""
        row = ids - self.begin
        return torch.where((row > 0) & (row < self.weight.shape[0]), row, 0)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings ``[N, D]`` of packed ids ``[N]``."""
        if self.training:
            found: Tensor = _Lookup.apply(self.weight, ids, self)
            return found
        return self.workers.sum(F.embedding(self.local(ids), self.weight))

    def cross_entropy(
        self, hidden: Tensor, targets: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """Mean of -log softmax(h W^T)[target] over the whole catalogue.

        Args:
            hidden: ``[R, D]``, the same on all workers.
            targets: int64 ``[R]``, the same on all workers; rows of target 0 are left out.
            label_smoothing: as of :func:`adarec_fast.ops.linear_cross_entropy`.

        Returns:
            A scalar. The gradient of ``hidden`` is whole on every worker.
        """
        loss: Tensor = _CrossEntropy.apply(hidden, self.weight, targets, self)
        if not label_smoothing:
            return loss
        # Of the targets' vectors, and of the sum of all, what this worker has.
        own = F.embedding(self.local(targets), self.weight, padding_idx=0)
        parts = torch.cat([own, self.weight[1:].sum(0, keepdim=True)])
        whole: Tensor = _Sum.apply(parts, self.workers)
        lead = target_lead(hidden, whole[:-1], whole[-1] / self.num_items, targets)
        return loss + label_smoothing * lead

    def topk(
        self, user: Tensor, seen: Tensor, seen_offsets: Tensor, k: int, backend: str
    ) -> tuple[Tensor, Tensor]:
        """Scores and items ``[B, k]`` of the whole catalogue, falling; all workers ask the same.

        Arguments as of :func:`adarec_fast.ops.score_topk`.
        """
        here = min(k, self.weight.shape[0] - 1)
        scores, rows = ops.score_topk(
            user, self.weight, *self._seen_here(seen, seen_offsets), here, backend=backend
        )
        most = min(k, self.rows)
        all_scores = scores.new_full((most, user.shape[0]), float("-inf"))
        all_items = rows.new_zeros(most, user.shape[0])
        all_scores[:here], all_items[:here] = scores.T, (rows + self.begin).T
        # Workers come in the order of their items and keep theirs in order where scores are
        # equal, so that a stable sort leaves ties to the lower index.
        all_scores = self.workers.gather(all_scores).flatten(0, 1).T
        all_items = self.workers.gather(all_items).flatten(0, 1).T
        order = all_scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        return all_scores.gather(1, order), all_items.gather(1, order)

    def _seen_here(self, seen: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Of a jagged pair, the items that this worker has, by row."""
        rows = self.local(seen)
        before = F.pad((rows > 0).cumsum(0), (1, 0))
        return rows[rows > 0], before[offsets]


class _Sum(torch.autograd.Function):
    """The sum over workers, from which each of them computes the same and has the same gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, workers: Workers) -> Tensor:
        return workers.sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return grad, None


class _Lookup(torch.autograd.Function):
    """Each worker's ids, looked up by all workers, each in its own rows."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, items: ShardedItems) -> Tensor:
        most = items.most_tokens
        everyone = items.workers.gather(F.pad(ids, (0, most - ids.shape[0])))
        rows = items.local(everyone)
        ctx.items, ctx.count = items, ids.shape[0]
        ctx.save_for_backward(rows)
        return items.workers.scatter_sum(F.embedding(rows, weight))[: ctx.count]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (rows,) = ctx.saved_tensors
        items: ShardedItems = ctx.items
        filled = grad.new_zeros(rows.shape[1], grad.shape[1])
        filled[: ctx.count] = grad
        everyone = items.workers.gather(filled)
        d_weight = torch.ops.aten.embedding_dense_backward(
            everyone, rows, items.weight.shape[0], 0, False
        )
        return d_weight, None, None


class _CrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass, some rows at a time, so that few logits exist at once."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, items: ShardedItems
    ) -> Tensor:
        # Imported on use: a second or more, and only a split table needs it.
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor, Replicate, Shard
        from torch.distributed.tensor.parallel import loss_parallel

        workers = items.workers
        mesh = DeviceMesh.from_group(workers.group, workers.device.type)
        # Item i is class i - 1; padding is no class.
        classes = torch.where(targets > 0, targets - 1, -100)
        step = max(1, _LOGITS[workers.device.type] // items.rows)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        d_hidden = torch.zeros_like(hidden, dtype=wide)
        shape = torch.Size((items.num_items, items.size))
        with torch.enable_grad(), torch.autocast(hidden.device.type, enabled=False):
            table = weight.detach()[1:].to(wide).requires_grad_()
            for begin in range(0, hidden.shape[0], step):
                rows = hidden.detach()[begin : begin + step].to(wide).requires_grad_()
                logits = F.linear(
                    DTensor.from_local(rows, mesh, [Replicate()], run_check=False),
                    DTensor.from_local(
                        table, mesh, [Shard(0)], run_check=False,
                        shape=shape, stride=(items.size, 1),
                    ),
                )
                with loss_parallel():
                    loss = F.cross_entropy(
                        logits, classes[begin : begin + step], reduction="sum", ignore_index=-100
                    )
                    loss.backward()
                assert rows.grad is not None
                summed = loss.detach()
                assert isinstance(summed, DTensor)
                total += summed.to_local()
                d_hidden[begin : begin + step] = rows.grad
        count = (targets > 0).sum().clamp(min=1)
        d_table = table.grad if table.grad is not None else torch.zeros_like(table)
        d_weight = F.pad(d_table / count, (0, 0, 1, 0)).to(weight.dtype)
        ctx.save_for_backward((d_hidden / count).to(hidden.dtype), d_weight)
        return total / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grad, d_weight * grad, None, None

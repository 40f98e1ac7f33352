"""What tells x_0 from x_t, the history and the step: a small U-Net over an image of all three."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops, rng
from ..blocks.gaussian import diffrec_embedding
from ..blocks.uniform import uniform_linears

if TYPE_CHECKING:
    from ...distributed.share import Share

STEP_SIZE = 64  # of the steps' embedding
_MOMENTUM = 0.1


class Pass:
    """What a training pass has beside its input: draws of dropout, and who shares the batch.

    Args:
        seed: int64 ``[3]``, at the place of the batch; None draws none.
        share: of the batch, or None.
        backend: who runs the ops.
    """

    def __init__(self, seed: Tensor | None, share: Share | None, backend: str) -> None:
        # A row is a sequence here, not a token.
        self.seed = None if seed is None else torch.stack([seed[0], seed[2], seed[2]])
        self.share, self.backend = share, backend

    def dropout(self, x: Tensor, p: float, site: int) -> Tensor:
        """Dropout of ``[B, ...]``, images pixel by pixel; each site has its own draws."""
        if self.seed is None or not p:
            return x
        last = x.movedim(1, -1)  # where the channels lie in memory
        found = ops.dropout(
            last.flatten(1).contiguous(), p=p, seed=self.seed,
            stream=rng.STREAM_APPROXIMATOR + site, backend=self.backend,
        )  # fmt: skip
        return found.view(last.shape).movedim(-1, 1)


class _Summed(torch.autograd.Function):
    """The sum over workers, who all go on with it; so are the gradients that come back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Share) -> Tensor:
        ctx.share = share
        return share.workers.sum(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return ctx.share.workers.sum(grad.contiguous().clone()), None


class SharedBatchNorm(nn.Module):
    """Batch normalisation of ``[B, C, H, W]`` by the statistics of the whole batch, whoever shares
    it.

    Args:
        channels: C.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(channels, dtype=torch.float32))
        self.register_buffer("running_mean", torch.zeros(channels, dtype=torch.float32))
        self.register_buffer("running_variance", torch.ones(channels, dtype=torch.float32))

    def forward(self, x: Tensor, share: Share | None) -> Tensor:
        if share is None or not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_variance, self.weight, self.bias,
                self.training, _MOMENTUM,
            )  # fmt: skip
        number = share.examples * x.shape[2] * x.shape[3]
        mean: Tensor = _Summed.apply(x.sum((0, 2, 3)), share) / number
        apart = x - mean[:, None, None]
        variance: Tensor = _Summed.apply(apart.square().sum((0, 2, 3)), share) / number
        with torch.no_grad():
            self.running_mean.lerp_(mean, _MOMENTUM)
            unbiased = variance * number / max(1, number - 1)
            self.running_variance.lerp_(unbiased, _MOMENTUM)
        scale = self.weight * (variance + 1e-5).rsqrt()
        return apart * scale[:, None, None] + self.bias[:, None, None]


class _Block(nn.Module):
    """Twice a convolution, normalisation, dropout and a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, site: int, dropouts: tuple[float, float]) -> None:
        super().__init__()
        self.site, self.dropouts = site, dropouts
        self.first, self.second = _conv(inputs, outputs), _conv(outputs, outputs)
        self.first_norm, self.second_norm = SharedBatchNorm(outputs), SharedBatchNorm(outputs)

    def forward(self, x: Tensor, given: Pass) -> Tensor:
        # Channels last: oneDNN would bring every image into such an order and back.
        x = self.first(x).contiguous(memory_format=torch.channels_last)
        x = self.first_norm(x, given.share)
        x = F.leaky_relu(given.dropout(x, self.dropouts[0], self.site))
        x = self.second_norm(self.second(x), given.share)
        return F.leaky_relu(given.dropout(x, self.dropouts[1], self.site + 1))


class UNet(nn.Module):
    """An image ``[B, 1, S, S]`` to one within 0..1: 32 channels, 64 at half the side, and back.

    Args:
        dropouts: in the first and in the second half of each block.
    """

    def __init__(self, dropouts: tuple[float, float]) -> None:
        super().__init__()
        self.inward = _Block(1, 32, 1, dropouts)
        self.down = _conv(32, 32, stride=2)
        self.inner = _Block(32, 64, 3, dropouts)
        self.up = nn.Conv2d(64, 32, 1, dtype=torch.float32)
        self.outward = _Block(64, 32, 5, dropouts)
        self.last = nn.Conv2d(32, 1, 3, padding=1, dtype=torch.float32)

    def forward(self, x: Tensor, given: Pass) -> Tensor:
        wide = self.inward(x, given)
        deep = self.inner(F.leaky_relu(self.down(wide)), given)
        # Pixel by pixel, so that it may come before each pixel becomes four.
        deep = F.interpolate(self.up(deep), scale_factor=2.0, mode="nearest")
        found: Tensor = torch.sigmoid(self.last(self.outward(torch.cat([deep, wide], 1), given)))
        return found


class Approximator(nn.Module):
    """x_0 of x_t ``[B, V+1]``, as vectors ``[B, D]`` whose products with :meth:`table` are its
    logits.

    Args:
        config: a GlobalDiff's.
        generator: what the weights are drawn from.
    """

    def __init__(self, config: Any, generator: torch.Generator) -> None:
        super().__init__()
        size, items, side = config.hidden_size, config.num_items + 1, config.image_side
        self.signs, self.dropout = config.normalise == "sign", config.approximator_dropout
        self.side = side
        # Of all items by rows, so that a run that goes on with more items keeps the old ones.
        self.read = nn.Parameter(torch.empty(items, size, dtype=torch.float32))
        self.read_bias = nn.Parameter(torch.empty(size, dtype=torch.float32))
        self.paint = nn.Linear(3 * size + STEP_SIZE, side * side, dtype=torch.float32)
        self.image = UNet((config.approximator_dropout, config.image_dropout))
        self.hidden = nn.Linear(side * side, size, dtype=torch.float32)
        self.write = nn.Parameter(torch.empty(items, size, dtype=torch.float32))
        self.write_bias = nn.Parameter(torch.empty(items, dtype=torch.float32))
        uniform_linears(self, generator)
        with torch.no_grad():
            for parts, inputs in (
                ((self.read, self.read_bias), items), ((self.write, self.write_bias), size)
            ):
                for part in parts:
                    part.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)

    def forward(
        self, x: Tensor, history: Tensor, last: Tensor, steps: Tensor, given: Pass
    ) -> Tensor:
        """Vectors ``[B, D+1]``, a one behind them for the biases.

        Args:
            x: x_t ``[B, V+1]``.
            history: g ``[B, D]``, the mean of the encoder's outputs.
            last: h ``[B, D]``, the last one.
            steps: t, int64 ``[B]`` or ``[1]``.
            given: what else the pass has.
        """
        read = self.normalised(x) @ self.read + self.read_bias
        told = torch.cat([read, history.to(read.dtype), last.to(read.dtype)], 1)
        told = given.dropout(told, self.dropout, 0)
        step = diffrec_embedding(steps, STEP_SIZE).to(read.dtype).expand(told.shape[0], -1)
        image = self.paint(torch.cat([told, step], 1)).view(-1, 1, self.side, self.side)
        return F.pad(self.hidden(self.image(image, given).flatten(1)), (0, 1), value=1.0)

    def normalised(self, x: Tensor) -> Tensor:
        """What is read of x_t."""
        return x.sign() if self.signs else F.normalize(x, dim=1)

    def table(self) -> Tensor:
        """[w_i, b_i] ``[V+1, D+1]``."""
        return torch.cat([self.write, self.write_bias[:, None]], 1)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, 3, stride, padding=1, padding_mode="reflect", dtype=torch.float32
    )

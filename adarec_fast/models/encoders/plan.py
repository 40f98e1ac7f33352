"""The encoder's inference with every argument bound once, a part of models' serving plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ... import ragged
from ...ops import choose, has_kernel
from ...ops._library import implementation
from .local_path import LocalPath
from .sasrec import SASRecEncoder
from .transformer_layer import TransformerLayer


class EncoderPlan:
    """From item ids to E in evaluation mode.

    For one user the ops themselves take a third of the time that modules, checks and dispatch
    take; here the histories were checked and the weights are known.

    Args:
        encoder: in evaluation mode.
        items: the item table ``[V+1, D]``.
        backend: who runs the ops.
    """

    def __init__(self, encoder: SASRecEncoder, items: Tensor, backend: str) -> None:
        self._backend, self._device, self._dtype = backend, items.device, items.dtype
        self._encoder, self._items = encoder, items.detach()
        self._causal = encoder.causal
        # Row max_length - n of this one belongs to the first token of n. Not for a graph, whose
        # input has rows behind the last token.
        self._alone = self._device.type == "cpu"
        self._positions = encoder.position.weight.detach().flip(0)
        self._norm = (items.shape[1],), encoder.norm.weight, encoder.norm.bias, encoder.eps
        self._embedding = None
        if has_kernel("embedding", backend, self._device.type, self._dtype):
            self._embedding = self.op("embedding")
            self._embedding_weights = (
                self._items, encoder.position.weight, *self._norm[1:], 0.0, None
            )  # fmt: skip
        self.layer = self.op("encoder_layer")
        self._layers = [layer_arguments(layer) for layer in encoder.layers]
        self._paths = [path_arguments(path) for path in encoder.local_paths]
        self._path = self.op("local_path") if self._paths else None

    @staticmethod
    def suits(backend: str, items: Tensor, *ops: str) -> bool:
        """Whether our ops run the encoder, and those further ops, for such a table."""
        return all(
            choose(name, backend, items.device.type, items.dtype) != "reference"
            for name in ("encoder_layer", *ops)
        )

    def op(self, name: str) -> Callable[..., Any]:
        """The code behind an op."""
        chosen = choose(name, self._backend, self._device.type, self._dtype)
        return implementation(name, chosen).fwd

    def __call__(self, values: Tensor, offsets: Tensor) -> Tensor:
        """E ``[N, D]`` of packed histories of at most ``max_length`` items."""
        x, longest = self._embed(values, offsets)[None], self._encoder.max_length
        for number, weights in enumerate(self._layers):
            x = self._along_path(number, x, offsets)
            x = self.layer(x, offsets, None, *weights, False, longest, self._causal)
        return x[0]

    def last(self, values: Tensor, offsets: Tensor) -> Tensor:
        """Of that, the last tokens' ``[B, D]``."""
        x, longest = self._embed(values, offsets)[None], self._encoder.max_length
        if not self._layers:
            return x[0, ragged.last_tokens(offsets)]
        for number, weights in enumerate(self._layers[:-1]):
            x = self._along_path(number, x, offsets)
            x = self.layer(x, offsets, None, *weights, False, longest, self._causal)
        x = self._along_path(-1, x, offsets)
        weights = self._layers[-1]
        found: Tensor = self.layer(x, offsets, None, *weights, True, longest, self._causal)[0]
        return found

    def _along_path(self, layer: int, x: Tensor, offsets: Tensor) -> Tensor:
        """What a layer reads ``[1, N, D]``, where there are local paths."""
        if self._path is None:
            return x
        return self._path(x[0], offsets, *self._paths[layer])[None]

    def _embed(self, values: Tensor, offsets: Tensor) -> Tensor:
        """What the first layer reads ``[N, D]``."""
        if self._embedding is not None:
            embedded: Tensor = self._embedding(values, offsets, *self._embedding_weights)
            return embedded
        tokens = values.shape[0]
        x = F.embedding(values, self._items)
        if self._alone and offsets.shape[0] == 2:
            x = x + self._positions[self._encoder.max_length - tokens :]
        else:
            x = x + self._encoder.positions(offsets, tokens)
        return F.layer_norm(x, *self._norm)


def path_arguments(path: nn.Module) -> tuple[Any, ...]:
    """All that follows x and offsets in the op's."""
    assert isinstance(path, LocalPath)
    return (*path.weights(), path.eps, 0.0, None, path.stream)


def layer_arguments(layer: nn.Module) -> tuple[Any, ...]:
    """All that follows x, offsets and depth in the op's, less ``last_only``, ``max_length``
    and ``causal``."""
    assert isinstance(layer, TransformerLayer)
    return (*layer.weights(), layer.heads, layer.eps, 0.0, 0.0, None, layer.stream)

"""SASRec's encoder over packed histories."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ... import ops, ragged, rng
from ...reference.embedding import embedding
from .local_path import LocalPath
from .transformer_layer import TransformerLayer


class EncoderSettings(Protocol):
    """The fields of a model's configuration that the encoder is built from."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def feedforward_multiplier(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def dropout(self) -> float: ...
    @property
    def attention_dropout(self) -> float: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def local_path(self) -> int: ...


class SASRecEncoder(nn.Module):
    """SASRec's encoder (Kang and McAuley 2018): learned positions, causal post-LN layers.

    Positions count back from the end of a history, as in the left-padded batches of the paper's
    pipeline: the last item always has position 0, however long the history is.

    Attributes:
        local_paths: one before each layer, or none at all (``local_path=0``).
    """

    def __init__(self, config: EncoderSettings, *, causal: bool = True) -> None:
        super().__init__()
        size = config.hidden_size
        self.max_length, self.dropout = config.max_length, config.dropout
        self.eps, self.causal = config.layer_norm_eps, causal
        self.position = nn.Embedding(config.max_length, size, dtype=torch.float32)
        self.norm = nn.LayerNorm(size, dtype=torch.float32)
        self.layers = nn.ModuleList(
            TransformerLayer(
                size,
                config.num_heads,
                config.feedforward_multiplier * size,
                eps=config.layer_norm_eps,
                attention_dropout=config.attention_dropout,
                hidden_dropout=config.dropout,
                stream=rng.STREAM_BACKBONE + rng.STREAMS_PER_LAYER * index,
                causal=causal,
            )
            for index in range(config.num_layers)
        )
        self.local_paths = nn.ModuleList(
            LocalPath(
                size,
                config.local_path,
                eps=config.layer_norm_eps,
                dropout=config.dropout,
                stream=rng.STREAM_BACKBONE + rng.STREAMS_PER_LAYER * index + rng.SITE_LOCAL_PATH,
            )
            for index in range(config.num_layers if config.local_path else 0)
        )

    def forward(
        self, embedded: Tensor, offsets: Tensor, *, seed: Tensor | None, backend: str,
        places: Tensor | None = None, last_only: bool = False,
    ) -> Tensor:
        """E ``[N, D]`` of item embeddings ``[N, D]`` (Eq. 1's E_u^0).

        ``places`` int64 ``[N]``: positions of the tokens instead of their counts from the end.
        ``last_only``: E ``[B, D]`` of the last tokens, for which there must be a layer.
        """
        x = embedding(
            embedded, offsets, self.position.weight, self.norm.weight, self.norm.bias, self.eps,
            places,
        )  # fmt: skip
        x = ops.dropout(
            x, p=self.dropout, seed=seed, stream=rng.STREAM_EMBEDDING, backend=backend
        )
        levels = x[None]
        if x.requires_grad:
            # Ops write no gradient behind the last token, where LayerNorm's would read it.
            levels = ragged.mask_levels(levels, offsets, None)
        return self._through_layers(levels, offsets, seed, backend, last_only)

    def of_items(
        self, item_ids: Tensor, table: Tensor, offsets: Tensor, *, seed: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        """:meth:`forward` of items ``[N]`` by the op that does all before the layers at once.

        Returns:
            E ``[N, D]``, and the table ``[V+1, D]`` for the loss, see :class:`ops.Embedded`.
        """
        x, table = ops.embedding(
            item_ids, offsets, table, self.position.weight, self.norm.weight, self.norm.bias,
            eps=self.eps, p=self.dropout, seed=seed, backend=backend,
        )  # fmt: skip
        return self._through_layers(x[None], offsets, seed, backend), table

    def _through_layers(
        self, levels: Tensor, offsets: Tensor, seed: Tensor | None, backend: str,
        last_only: bool = False,
    ) -> Tensor:
        if offsets.shape[0] == 1:
            return levels.squeeze(0)[: 0 if last_only else None]
        options: dict[str, Any] = {"seed": seed, "max_length": self.max_length, "backend": backend}
        for path, layer in zip_longest(self.local_paths, self.layers):
            if path is not None:
                # Squeezed and not indexed: its backward is a view.
                levels = path(levels.squeeze(0), offsets, **options)[None]
            last = last_only and layer is self.layers[-1]
            levels = layer(levels, offsets, None, last_only=last, **options)
        return levels.squeeze(0)

    def positions(self, offsets: Tensor, tokens: int) -> Tensor:
        """Position embeddings ``[N, D]`` of packed tokens."""
        return self.position(ragged.from_end(offsets, tokens))

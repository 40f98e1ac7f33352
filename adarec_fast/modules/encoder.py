"""Backbones: whatever turns a history into E, one D-vector a valid token."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from .. import ops, ragged, rng
from ..config import ADARecConfig
from ..reference.embedding import embedding
from .experts import TransformerLayer


class SASRecEncoder(nn.Module):
    """SASRec's encoder (Kang and McAuley 2018): learned positions, causal post-LN layers.

    Positions count back from the end of a history, as in the left-padded batches of the paper's
    pipeline: the last item always has position 0, however long the history is.
    """

    def __init__(self, config: ADARecConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.max_length, self.dropout = config.max_length, config.dropout
        self.eps = config.layer_norm_eps
        self.position = nn.Embedding(config.max_length, size)
        self.norm = nn.LayerNorm(size)
        self.layers = nn.ModuleList(
            TransformerLayer(
                size,
                config.num_heads,
                config.feedforward_multiplier * size,
                eps=config.layer_norm_eps,
                attention_dropout=config.attention_dropout,
                hidden_dropout=config.dropout,
                stream=rng.STREAM_BACKBONE + rng.STREAMS_PER_LAYER * index,
            )
            for index in range(config.num_layers)
        )

    def forward(
        self, embedded: Tensor, offsets: Tensor, *, seed: Tensor | None, backend: str
    ) -> Tensor:
        """E ``[N, D]`` of item embeddings ``[N, D]`` (Eq. 1's E_u^0)."""
        x = embedding(
            embedded, offsets, self.position.weight, self.norm.weight, self.norm.bias, self.eps
        )
        x = ops.dropout(
            x, p=self.dropout, seed=seed, stream=rng.STREAM_EMBEDDING, backend=backend
        )
        levels = x[None]
        if x.requires_grad:
            # Ops write no gradient behind the last token, where LayerNorm's would read it.
            levels = ragged.mask_levels(levels, offsets, None)
        return self._through_layers(levels, offsets, seed, backend)

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
        self, levels: Tensor, offsets: Tensor, seed: Tensor | None, backend: str
    ) -> Tensor:
        if offsets.shape[0] == 1:
            return levels.squeeze(0)
        for layer in self.layers:
            levels = layer(
                levels, offsets, None, seed=seed, max_length=self.max_length, backend=backend
            )
        return levels.squeeze(0)  # whose backward is a view, unlike an index's

    def positions(self, offsets: Tensor, tokens: int) -> Tensor:
        """Position embeddings ``[N, D]`` of packed tokens."""
        return self.position(ragged.from_end(offsets, tokens))


class ForeignBackbone(nn.Module):
    """Any encoder in the place of the built-in one.

    What it is called with follows from the names of its ``forward``'s parameters:

    * ``item_ids``: int64 ids instead of item embeddings;
    * ``offsets``: packed input, ``[N, D]`` (or ids ``[N]``) with int64 ``offsets [B+1]``;
      otherwise padded on the right, ``[B, L, D]`` (or ids ``[B, L]``);
    * ``src_key_padding_mask``, ``key_padding_mask`` or ``padding_mask``: bool ``[B, L]``, True at
      padding; ``lengths``: int64 ``[B]``;
    * ``mask`` (torch's TransformerEncoder): the causal mask ``[L, L]``, True where forbidden.

    It returns ``[B, L, D]`` or ``[N, D]``, or a tuple whose first entry is that (nn.GRU with
    ``batch_first=True``).
    """

    _PADDING_NAMES = ("src_key_padding_mask", "key_padding_mask", "padding_mask")

    def __init__(self, module: nn.Module, size: int, max_length: int) -> None:
        super().__init__()
        self.module = module
        self.size, self.max_length = size, max_length
        parameters = inspect.signature(module.forward).parameters
        self._names = frozenset(parameters)
        known = {"item_ids", "offsets", "lengths", "mask", *self._PADDING_NAMES}
        unknown = [
            name for name, parameter in list(parameters.items())[1:]
            if name not in known and parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]  # fmt: skip
        if unknown:
            raise ValueError(
                f"backbone: forward asks for {', '.join(unknown)}, which nothing here gives it; "
                f"beside its first parameter it may ask for {', '.join(sorted(known))}"
            )
        if isinstance(module, nn.RNNBase) and not module.batch_first:
            raise ValueError("backbone: build the recurrent network with batch_first=True")

    def forward(self, item_ids: Tensor, embedded: Tensor, offsets: Tensor) -> Tensor:
        """E ``[N, D]`` of packed ids ``[N]`` and their embeddings ``[N, D]``."""
        tokens = embedded.shape[0]
        given = item_ids if "item_ids" in self._names else embedded
        options: dict[str, Tensor] = {}
        if "offsets" in self._names:
            options["offsets"] = offsets
        else:
            given = ragged.to_padded(given, offsets, self.max_length)
            valid = ragged.padding_mask(offsets, self.max_length)
            options.update({n: ~valid for n in self._PADDING_NAMES if n in self._names})
            if "mask" in self._names:
                square = torch.ones(
                    self.max_length, self.max_length, dtype=torch.bool, device=given.device
                )
                options["mask"] = square.triu(1)
        if "lengths" in self._names:
            options["lengths"] = ragged.lengths(offsets)
        result = self.module(given, **options)
        result = result[0] if isinstance(result, tuple) else result
        if not isinstance(result, Tensor) or result.shape[-1] != self.size:
            shape = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(
                f"backbone returned {shape}; it must return [B, L, {self.size}] or "
                f"[N, {self.size}], D being hidden_size"
            )
        if result.dim() == 3:
            result = ragged.from_padded(result, offsets, tokens)
        if result.shape[0] != tokens:
            raise ValueError(
                f"backbone returned {result.shape[0]} rows for {tokens} tokens in [N, D] form"
            )
        return ragged.mask_levels(result[None], offsets, None)[0]

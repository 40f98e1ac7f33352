"""An encoder from outside in the place of a built-in one."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ... import ragged
from ...config import ConfigError
from ..evaluating import evaluating

# Differences that are no more than the order of sums, of the largest number.
_ROUNDING = 1e-5


class ForeignBackbone(nn.Module):
    """Any encoder in the place of the built-in one.

    What it is called with follows from the names of its ``forward``'s parameters:

    * ``item_ids``: int64 ids instead of item embeddings;
    * ``offsets``: packed input, ``[N, D]`` (or ids ``[N]``) with int64 ``offsets [B+1]``;
      otherwise padded on the right, ``[B, L, D]`` (or ids ``[B, L]``);
    * ``src_key_padding_mask``, ``key_padding_mask`` or ``padding_mask``: bool ``[B, L]``, True at
      padding; ``lengths``: int64 ``[B]``;
    * ``inputs_embeds`` (Hugging Face's encoders and decoders): the padded embeddings by that name,
      with ``attention_mask``, int64 ``[B, L]``, 1 at items, and no cache of keys and values;
    * ``mask`` (torch's TransformerEncoder): the causal mask ``[L, L]``, True where forbidden.

    It returns ``[B, L, D]`` or ``[N, D]``, or a tuple whose first entry is that (nn.GRU with
    ``batch_first=True``), or what has it as ``last_hidden_state``.
    """

    _PADDING_NAMES = ("src_key_padding_mask", "key_padding_mask", "padding_mask")

    def __init__(self, module: nn.Module, size: int, max_length: int) -> None:
        super().__init__()
        self.module = module
        self.size, self.max_length = size, max_length
        parameters = inspect.signature(module.forward).parameters
        self._names = frozenset(parameters)
        known = {"item_ids", "offsets", "lengths", "mask", *self._PADDING_NAMES}
        if "inputs_embeds" in parameters:
            known |= {"inputs_embeds", "attention_mask"}
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
        options: dict[str, Any] = {}
        if "offsets" in self._names:
            options["offsets"] = offsets
        else:
            given = ragged.to_padded(given, offsets, self.max_length)
            valid = ragged.padding_mask(offsets, self.max_length)
            options.update({n: ~valid for n in self._PADDING_NAMES if n in self._names})
            if {"attention_mask", "inputs_embeds"} <= self._names:
                options["attention_mask"] = valid.long()
            if "mask" in self._names:
                square = torch.ones(
                    self.max_length, self.max_length, dtype=torch.bool, device=given.device
                )
                options["mask"] = square.triu(1)
        if "lengths" in self._names:
            options["lengths"] = ragged.lengths(offsets)
        if "inputs_embeds" in self._names:
            if "use_cache" in self._names:
                options["use_cache"] = False
            result = self.module(inputs_embeds=given, **options)
        else:
            result = self.module(given, **options)
        result = getattr(result, "last_hidden_state", result)
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


@torch.no_grad()
def check_causal(backbone: ForeignBackbone, num_items: int) -> None:
    """Refuse an encoder in which an item reaches the places before it.

    Under ``supervision="all"`` every place predicts the item behind it: an encoder that looks ahead
    copies it, its training losses are near 0 and its rankings random. Two histories that
    differ in their second half alone show it.

    Raises:
        ConfigError: it looks ahead.
    """
    length = backbone.max_length
    # A skeleton without weights, by which shapes are checked, computes nothing.
    if length < 2 or torch.get_default_device().type == "meta":
        return
    half = length // 2
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, num_items + 1, (length,), generator=draw).repeat(2, 1)
    embedded = torch.randn(num_items + 1, backbone.size, generator=draw)[ids]
    # Where the catalogue is too small for other ids, other vectors still tell.
    ids[1, half:] = ids[1, half:] % num_items + 1
    embedded[1, half:] = torch.randn(length - half, backbone.size, generator=draw)
    weight = next((p for p in backbone.parameters() if p.is_floating_point()), embedded)
    offsets = torch.tensor([0, length], device=weight.device)
    # A backbone that draws numbers in evaluation mode, too, draws the same for both.
    found = []
    with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
        for row in range(2):
            torch.manual_seed(0)
            encoded = evaluating(backbone)(
                ids[row].to(weight.device), embedded[row].to(weight), offsets
            )
            found.append(encoded[:half].float())
    change = (found[0] - found[1]).abs().amax(1)
    if bool((change > _ROUNDING * found[0].abs().max()).any()):
        place = int(change.argmax())
        raise ConfigError(
            f"backbone looks ahead: what it gives for place {place} of a history changes with the "
            f'items from place {half} on, and under supervision="all" each place has to predict '
            'the item behind it; make it causal, or train it with supervision="prefix"'
        )

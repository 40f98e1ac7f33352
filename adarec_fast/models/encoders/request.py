"""What a request reads of the encoder, for :class:`adarec_fast.ops.serving.Serving`."""

from __future__ import annotations

from torch import Tensor, nn

from ...ops.serving import RequestParts
from .local_path import LocalPath
from .sasrec import SASRecEncoder
from .transformer_layer import TransformerLayer


def encoder_parts(encoder: SASRecEncoder, items: Tensor) -> RequestParts:
    """The encoder and its item table ``[V+1, D]``."""
    weights = {
        "items": items, "positions": encoder.position.weight,
        "norm.w": encoder.norm.weight, "norm.b": encoder.norm.bias,
    }  # fmt: skip
    settings = {"norm.eps": encoder.eps, "layers": len(encoder.layers)}
    ops = ("embedding", "encoder_layer", *(("local_path",) if len(encoder.local_paths) else ()))
    found = RequestParts(weights, settings, ops)
    for number, layer in enumerate(encoder.layers):
        found = found.joined(layer_parts(f"layer.{number}", layer))
    for number, path in enumerate(encoder.local_paths):
        assert isinstance(path, LocalPath)
        names = (f"path.{number}.{name}" for name in ("taps", "norm_w", "norm_b"))
        taps = dict(zip(names, path.weights(), strict=True))
        found = found.joined(RequestParts(taps, {f"path.{number}.eps": path.eps}, ()))
    return found


def layer_parts(name: str, layer: nn.Module) -> RequestParts:
    """A Transformer layer."""
    assert isinstance(layer, TransformerLayer)
    weights = {f"{name}.{part}": w for part, w in layer.weights()._asdict().items()}
    settings = {f"{name}.heads": layer.heads, f"{name}.eps": layer.eps,
                f"{name}.causal": layer.causal}  # fmt: skip
    return RequestParts(weights, settings, ())

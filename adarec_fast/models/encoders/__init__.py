"""Encoders: whatever turns a history into E, one D-vector a valid token."""

from .foreign import ForeignBackbone
from .local_path import LocalPath
from .sasrec import SASRecEncoder
from .transformer_layer import TransformerLayer

__all__ = ["ForeignBackbone", "LocalPath", "SASRecEncoder", "TransformerLayer"]

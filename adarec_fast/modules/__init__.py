"""The parts of the model as modules: parameters here, arithmetic in :mod:`adarec_fast.ops`."""

from .depth_controller import DepthController
from .diffusion import Denoiser, alpha_bar_schedule
from .encoder import ForeignBackbone, SASRecEncoder
from .experts import MLPExpert, TransformerLayer
from .router import Router

__all__ = [
    "Denoiser",
    "DepthController",
    "ForeignBackbone",
    "MLPExpert",
    "Router",
    "SASRecEncoder",
    "TransformerLayer",
    "alpha_bar_schedule",
]

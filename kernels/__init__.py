"""Triton kernels, one file an op: forward and backward kernels and their launchers.

Nothing here is imported before an op picks the ``triton`` backend, so the package works without
triton. Import it as ``adarec_fast.kernels``; a top-level name ``kernels`` is never installed.
"""

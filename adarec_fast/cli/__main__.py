"""``python -m adarec_fast.cli``, for launchers that take a module, such as torchrun."""

from . import app

app(prog_name="adarec-fast")

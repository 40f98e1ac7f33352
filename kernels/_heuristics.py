"""Tile shapes, fixed by kernel, padded D, precision and architecture; chosen from resources.

``bench/triton_resources.py`` compiles every row and shows registers, spills and shared memory. A
row for an architecture is there only where it differs from the common one. ``_autotune`` puts
measured tiles in their place where it is switched on.

Of products that follow one another the compiler shares out the warps along one side: along the
columns if the first one's result is wider than high, else along the rows, of which a warp takes
sixteen. So 32 rows of 32 columns leave two of eight warps something of their own to do and let the
others repeat it; a chunk wider than the tile is high uses them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Tile(NamedTuple):
    """Rows of a tile, columns of a hidden chunk, and what the compiler is told."""

    rows: int
    chunk: int
    num_warps: int
    num_stages: int = 2
    # ptxas stops at 128 registers for some kernels and spills the rest; this lets it go on.
    max_registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        return options


# (kernel, padded D, "half" | "tf32" | "ieee") -> tile; without one, sizes below take 64's.
_TABLE: dict[tuple[str, int, str], Tile] = {}
_BY_ARCHITECTURE: dict[tuple[int, str, int, str], Tile] = {}


def _rows(kernel: str, kinds: str, *architectures: int, **tiles: Tile) -> None:
    for kind in kinds.split():
        for size, tile in tiles.items():
            if not architectures:
                _TABLE[kernel, int(size[1:]), kind] = tile
            for architecture in architectures:
                _BY_ARCHITECTURE[architecture, kernel, int(size[1:]), kind] = tile


_ALL = "half tf32 ieee"
for _kernel in ("hda_forward", "mlp_forward"):
    _rows(_kernel, "half tf32", d64=Tile(32, 64, 8), d128=Tile(32, 32, 8), d256=Tile(16, 32, 8))
    _rows(_kernel, "ieee", d64=Tile(32, 32, 8), d128=Tile(16, 32, 8), d256=Tile(16, 32, 8))
_rows("hda_forward", "tf32", d64=Tile(32, 64, 8, 2, 255))
_rows("hda_forward", "tf32", 90, d256=Tile(16, 16, 8))
_rows("hda_forward", "half", 86, 89, d32=Tile(32, 64, 8, 2, 255))
_rows("hda_forward", "ieee", d32=Tile(32, 32, 8, 2, 128))
_rows("hda_forward", "ieee", 86, 89, d64=Tile(32, 32, 8, 2, 255), d128=Tile(16, 32, 8, 2, 255),
      d256=Tile(16, 32, 8, 2, 255))
_rows("hda_forward", "ieee", 90, d64=Tile(32, 32, 8, 2, 168), d128=Tile(16, 32, 8, 2, 255))
_rows("mlp_forward", "ieee", 86, 89, d256=Tile(16, 16, 8, 2, 255))
_rows("mlp_forward", "ieee", d64=Tile(32, 32, 8, 2, 255), d128=Tile(16, 32, 8, 2, 255))
for _kernel in ("hda_backward", "mlp_backward"):
    _rows(_kernel, "half tf32", d32=Tile(32, 32, 8), d64=Tile(32, 64, 8), d128=Tile(32, 32, 8),
          d256=Tile(16, 16, 8))
    _rows(_kernel, "ieee", d64=Tile(32, 32, 8, 2, 255), d128=Tile(16, 32, 8, 2, 255))
    # Sixteen warps spill at D = 32, which would take 64's row.
    _rows(_kernel, "ieee", d32=Tile(32, 32, 8, 2, 255))
    _rows(_kernel, "ieee", 86, 89, 90, d64=Tile(32, 32, 16))
_rows("mlp_backward", "half", d256=Tile(8, 16, 8))
_rows("mlp_backward", "half", 94, d64=Tile(32, 32, 8))
_rows("mlp_backward", "half", 80, d128=Tile(16, 32, 8), d256=Tile(8, 16, 8, 2, 255))
_rows("mlp_backward", "tf32", d128=Tile(16, 32, 8))
_rows("mlp_backward", "half", 86, 89, d128=Tile(16, 32, 8))
_rows("mlp_backward", "tf32", 86, 89, d256=Tile(8, 16, 8, 2, 255))
_rows("mlp_backward", "ieee", 86, 89, d64=Tile(16, 32, 8, 2, 255), d128=Tile(16, 16, 8, 2, 255))
_rows("mlp_backward", "ieee", d256=Tile(8, 16, 8, 2, 255))
# A float32 product holds whole rows of its operands: of eight rows sixteen warps spill nothing.
_rows("hda_backward", "ieee", d256=Tile(8, 16, 16))
_rows("hda_backward", "ieee", 90, d256=Tile(8, 16, 8, 2, 255))
_rows("hda_backward", "tf32", d256=Tile(8, 16, 8, 2, 255))
_rows("hda_backward", "tf32", 90, d256=Tile(8, 16, 8))
_rows("hda_backward", "tf32", d128=Tile(16, 32, 8))
_rows("hda_backward", "half", 80, d256=Tile(8, 16, 8, 2, 255))
_rows("mlp_weights", "half", d32=Tile(32, 32, 8), d64=Tile(32, 32, 4), d128=Tile(16, 32, 8),
      d256=Tile(16, 16, 8))
_rows("mlp_weights", "tf32", d64=Tile(32, 32, 8), d128=Tile(32, 64, 8), d256=Tile(16, 32, 8))
_rows("mlp_weights", "ieee", d64=Tile(32, 32, 8), d128=Tile(16, 16, 8),
      d256=Tile(16, 16, 8, 2, 255))
_rows("mlp_weights", "ieee", 90, d128=Tile(16, 16, 8, 1, 255))
for _kernel in ("linear", "linear_backward", "linear_weights"):
    _rows(_kernel, _ALL, d64=Tile(64, 64, 8), d128=Tile(32, 64, 8), d256=Tile(32, 32, 8))
_rows("linear_backward", "ieee", d64=Tile(64, 32, 8))
_rows("linear_weights", "ieee", 86, 89, d128=Tile(32, 64, 8, 2, 255))
_rows("linear_weights", "ieee", 90, d64=Tile(64, 64, 8, 2, 96))
_rows("sublayers", "half", d64=Tile(32, 64, 8), d128=Tile(32, 16, 8, 1), d256=Tile(16, 16, 8, 1))
_rows("sublayers", "tf32", d64=Tile(32, 64, 8), d128=Tile(32, 32, 8), d256=Tile(16, 16, 8))
_rows("sublayers", "ieee", d64=Tile(32, 32, 8, 2, 168), d128=Tile(32, 32, 8, 2, 255),
      d256=Tile(16, 16, 8, 2, 255))
_rows("sublayers", "ieee", 90, d256=Tile(16, 16, 8, 3))
_rows("sublayers", "ieee", 86, 89, d256=Tile(16, 16, 8, 3, 255))
_rows("gru_gates", "half tf32", 80, d32=Tile(32, 32, 4))
_rows("sublayers_backward", "half", d64=Tile(32, 64, 8), d128=Tile(16, 32, 8, 1),
      d256=Tile(16, 16, 8, 1))
_rows("sublayers_backward", "tf32", d64=Tile(32, 32, 8), d128=Tile(16, 32, 8),
      d256=Tile(16, 16, 8))
_rows("sublayers_backward", "tf32", 86, 89, d64=Tile(32, 64, 8, 1))
_rows("sublayers_backward", "half", 90, d64=Tile(32, 64, 8, 1))
_rows("sublayers_backward", "tf32", 90, d64=Tile(32, 32, 8, 1))
_rows("sublayers_backward", "ieee", d64=Tile(16, 32, 8, 2, 255), d128=Tile(16, 32, 8),
      d256=Tile(8, 16, 8, 2, 255))
_rows("sublayers_backward", "ieee", 86, 89, d128=Tile(16, 16, 8, 2, 255))
_rows("sublayers_backward", "tf32", d256=Tile(8, 16, 8, 2, 255))
_rows("sublayers_backward", "half tf32", d32=Tile(16, 32, 8))
# A chunk is a block of keys, and of queries where rows are keys. Sixteen rows of short sequences
# need little more than their own tokens as keys: one block of 32. D is that of two heads.
for _kernel in ("attention", "attention_queries", "attention_keys"):
    _rows(_kernel, _ALL, d64=Tile(16, 32, 4), d128=Tile(16, 32, 4), d256=Tile(16, 32, 4),
          d512=Tile(16, 16, 8))
    _rows(_kernel, "ieee", d32=Tile(16, 32, 4, 2, 255))
_rows("attention", "tf32", d32=Tile(16, 32, 4, 2, 255), d64=Tile(16, 32, 4, 2, 168))
_rows("attention", "ieee", d128=Tile(16, 32, 4, 3), d256=Tile(16, 32, 8))
_rows("attention", "half", 90, d256=Tile(16, 32, 4, 2, 168))
_rows("attention", "tf32", 86, 89, 90, d128=Tile(16, 32, 4, 2, 255))
_rows("attention_keys", "half", 86, 89, 90, d256=Tile(16, 16, 4, 2, 168))
_rows("attention_keys", "tf32", 86, 89, d256=Tile(16, 16, 8))
_rows("attention_keys", "tf32", 90, d256=Tile(16, 32, 8))
_rows("attention_keys", "ieee", 86, 89, d256=Tile(16, 32, 4, 1))
_rows("attention_keys", "ieee", 90, d128=Tile(16, 32, 8), d256=Tile(16, 32, 8))
_rows("attention", "ieee", 86, 89, 90, d64=Tile(16, 32, 4, 2, 255))
_rows("attention_queries", "half", 90, d32=Tile(16, 32, 4, 2, 255))
_rows("attention_queries", "ieee", 86, 89, d64=Tile(16, 32, 4, 2, 255))
_rows("attention_queries", "tf32", 90, d128=Tile(16, 32, 4, 2, 255))
_rows("attention_queries", "tf32", d256=Tile(16, 16, 4, 2, 255))
_rows("attention_queries", "ieee", 80, d256=Tile(16, 16, 4, 2, 255))
_rows("attention_keys", "half", d128=Tile(16, 32, 4, 2, 255), d256=Tile(16, 16, 4))
_rows("attention_keys", "ieee", d32=Tile(16, 32, 8))
_rows("attention_keys", "ieee", 80, d256=Tile(16, 16, 4, 2, 255))
# A row is a (sequence, head) pair.
_rows("readout", "half", d32=Tile(16, 32, 2), d64=Tile(32, 64, 4), d128=Tile(32, 64, 8),
      d256=Tile(16, 32, 8))
_rows("readout", "tf32", d32=Tile(16, 32, 2), d64=Tile(32, 64, 4, 2, 255),
      d128=Tile(32, 64, 8, 2, 255), d256=Tile(16, 16, 8, 2, 255))
_rows("readout", "ieee", d32=Tile(16, 32, 2), d64=Tile(16, 32, 8, 2, 255),
      d128=Tile(16, 32, 8, 2, 255), d256=Tile(16, 32, 8))
_rows("readout", "half", 80, d64=Tile(32, 64, 4, 1))
_rows("readout", "ieee", 86, 89, d32=Tile(16, 32, 2, 2, 255))
_rows("readout", "ieee", 90, d32=Tile(32, 32, 4), d256=Tile(16, 16, 8, 2, 255))
_rows("readout_backward", "half", d32=Tile(16, 32, 2, 1), d64=Tile(32, 64, 4, 1),
      d128=Tile(16, 64, 4, 1, 255), d256=Tile(16, 64, 8, 1, 255))
_rows("readout_backward", "tf32", d32=Tile(16, 32, 4, 1), d64=Tile(32, 32, 8),
      d128=Tile(32, 32, 8, 1, 255), d256=Tile(16, 16, 8, 2, 255))
_rows("readout_backward", "ieee", d32=Tile(16, 32, 4, 1), d64=Tile(32, 32, 8),
      d128=Tile(16, 32, 8, 2, 255), d256=Tile(16, 32, 8, 2, 255))
_rows("readout_backward", "half", 86, 89, d64=Tile(32, 64, 8, 1))
_rows("readout_backward", "ieee", 86, 89, d64=Tile(16, 32, 8, 2, 255), d256=Tile(16, 32, 8))
_rows("readout_backward", "half", 80, d64=Tile(32, 32, 4, 1))
_rows("readout_backward", "half", 90, d64=Tile(32, 64, 8, 1, 255), d128=Tile(16, 64, 8, 1, 255))
_rows("readout_backward", "tf32", 80, d256=Tile(16, 64, 8, 1, 255))
_rows("readout_backward", "tf32", 80, 90, d32=Tile(16, 32, 2, 1))
_rows("readout_backward", "tf32", 90, d64=Tile(32, 32, 8, 1, 255))
for _kernel in ("moe", "moe_weights"):
    _rows(_kernel, "half", d64=Tile(16, 64, 4), d128=Tile(16, 32, 4), d256=Tile(16, 16, 8))
    _rows(_kernel, "tf32", d64=Tile(16, 64, 4), d128=Tile(16, 32, 4), d256=Tile(16, 32, 8))
    _rows(_kernel, "ieee", d64=Tile(16, 64, 4), d128=Tile(16, 16, 4), d256=Tile(16, 16, 8, 1, 255))
    _rows(_kernel, "half", 86, 89, d32=Tile(16, 64, 4, 2, 255), d64=Tile(16, 64, 4, 2, 255),
          d256=Tile(16, 16, 8, 1))
    _rows(_kernel, "tf32", 86, 89, d32=Tile(16, 64, 4, 2, 255), d64=Tile(16, 64, 8),
          d128=Tile(16, 32, 4, 2, 255))
    _rows(_kernel, "ieee", 86, 89, d32=Tile(16, 64, 4, 2, 168), d64=Tile(16, 64, 4, 2, 168),
          d128=Tile(16, 16, 8, 2, 255))
    _rows(_kernel, "half", 80, 90, d128=Tile(16, 32, 4, 2, 255))
    _rows(_kernel, "half", 90, d64=Tile(16, 64, 4, 2, 255))
    _rows(_kernel, "half", 80, 90, d256=Tile(16, 16, 8, 1, 255))
    _rows(_kernel, "ieee", 80, 90, d64=Tile(16, 64, 4, 2, 255))
    _rows(_kernel, "ieee", 90, d128=Tile(16, 16, 8, 2, 255), d256=Tile(16, 16, 8, 1))
_rows("moe_weights", "half", 86, 89, d256=Tile(16, 16, 8, 1, 255))
_rows("moe_weights", "tf32", 86, 89, d256=Tile(16, 16, 8, 2, 255))
# Where D is larger than the op's LARGEST, its other kernels run.
_rows("fused_trajectory", "half", d64=Tile(32, 32, 8))
_rows("fused_trajectory", "tf32", d64=Tile(32, 64, 8))
_rows("fused_trajectory", "tf32", 86, 89, d64=Tile(32, 16, 8))
_rows("fused_trajectory", "ieee", d64=Tile(16, 16, 8, 2, 255), d128=Tile(16, 16, 8, 2, 255))
_rows("fused_trajectory", "ieee", 90, d64=Tile(16, 16, 8, 1, 255))
# The chunk is a tile of the catalogue.
_rows("score_topk", _ALL, d64=Tile(16, 128, 4, 2, 168), d128=Tile(16, 128, 4, 2, 255),
      d256=Tile(16, 64, 4, 2, 255))
_rows("score_topk", "half", d256=Tile(16, 128, 4, 2, 255))
_rows("score_topk", "ieee", d128=Tile(16, 64, 8, 2, 168), d256=Tile(16, 64, 8))
_rows("score_topk", "ieee", 80, d64=Tile(16, 64, 4), d128=Tile(16, 64, 4), d256=Tile(16, 64, 4))
# The chunk is a tile of the catalogue; forward walks over chunks, backward over rows.
_rows("cross_entropy", "half", d64=Tile(64, 32, 4), d128=Tile(64, 32, 4, 2, 255),
      d256=Tile(32, 32, 8, 2, 255))
_rows("cross_entropy", "tf32", d64=Tile(64, 32, 4), d128=Tile(32, 32, 8),
      d256=Tile(32, 32, 8, 2, 255))
_rows("cross_entropy", "ieee", d64=Tile(32, 32, 8), d128=Tile(32, 32, 16), d256=Tile(16, 32, 16))
_rows("cross_entropy", "half", 90, d32=Tile(64, 64, 4), d64=Tile(64, 64, 4),
      d128=Tile(64, 64, 4, 2, 255))
_rows("cross_entropy", "tf32", 90, d32=Tile(64, 64, 4), d64=Tile(64, 64, 4),
      d128=Tile(64, 32, 4, 2, 255))
_rows("cross_entropy_weights", "half", d64=Tile(32, 64, 4), d128=Tile(32, 64, 4, 2, 255),
      d256=Tile(32, 32, 8, 2, 255))
_rows("cross_entropy_weights", "tf32", d64=Tile(32, 64, 4), d128=Tile(32, 32, 8),
      d256=Tile(16, 32, 8, 2, 255))
_rows("cross_entropy_weights", "tf32", 90, d128=Tile(32, 64, 4, 2, 255))
_rows("cross_entropy_weights", "ieee", d64=Tile(32, 32, 8), d128=Tile(32, 32, 16),
      d256=Tile(16, 32, 16))
# The chunk is a tile of candidates.
_rows("infonce_forward", "tf32 ieee", d64=Tile(32, 32, 4), d128=Tile(32, 32, 4),
      d256=Tile(32, 32, 4))
_rows("infonce_forward", "tf32", d256=Tile(32, 32, 4, 2, 168))
_rows("infonce_forward", "tf32", 90, d256=Tile(32, 32, 4))
_rows("infonce_forward", "ieee", 80, d64=Tile(32, 32, 4, 2, 255), d128=Tile(32, 32, 4, 2, 255),
      d256=Tile(32, 32, 4, 2, 255))
_rows("infonce_forward", "ieee", 90, d128=Tile(32, 32, 8), d256=Tile(32, 32, 8))
_rows("infonce_backward", "tf32", d64=Tile(32, 32, 4, 2, 255), d128=Tile(32, 32, 4, 2, 255),
      d256=Tile(32, 64, 8))
_rows("infonce_backward", "tf32", 90, d128=Tile(32, 32, 4))
_rows("infonce_backward", "ieee", d64=Tile(32, 32, 8, 2, 255), d128=Tile(16, 32, 8),
      d256=Tile(16, 16, 8))
_rows("infonce_backward", "ieee", 80, 90, d64=Tile(16, 32, 4, 2, 255))
_rows("infonce_backward", "ieee", 90, d128=Tile(16, 16, 8), d256=Tile(16, 16, 8, 2, 255))
# Of a scan, rows are users and the chunk is the part of the recurrent weights that a step holds, if
# not all of them stay on chip. Small tiles where each can have a multiprocessor, else many.
for _kernel in ("gru_scan", "gru_scan_backward"):
    _many = f"{_kernel}_many"
    _rows(_kernel, "half tf32", d32=Tile(8, 32, 2), d64=Tile(8, 64, 4))
    _rows(_many, "half tf32", d32=Tile(16, 32, 4), d64=Tile(16, 64, 8))
    _rows(_kernel, "ieee", d32=Tile(4, 32, 2, 2, 255), d64=Tile(4, 64, 4),
          d128=Tile(8, 32, 8, 2, 255))
    _rows(_many, "ieee", d32=Tile(16, 32, 4), d64=Tile(16, 64, 8), d128=Tile(16, 16, 8, 2, 255))
    for _name in (_kernel, _many):
        _rows(_name, _ALL, d256=Tile(8, 16, 8, 2, 255))
        # Three gates of half precision just fit beside the states of four users.
        _rows(_name, "half", d128=Tile(4, 128, 8, 2, 255))
        _rows(_name, "tf32", d128=Tile(16, 32, 8, 2, 255))
    _rows(_kernel, "half", 80, 90, d128=Tile(8, 128, 8, 2, 255))
    _rows(_many, "half", 80, 90, d128=Tile(16, 128, 8, 2, 255))
    _rows(_kernel, "tf32", 90, d128=Tile(8, 128, 8, 2, 255))
    _rows(_many, "tf32", 90, d128=Tile(16, 128, 8, 2, 255))
_rows("gru_gates", "half tf32", d64=Tile(32, 64, 4), d128=Tile(32, 32, 4), d256=Tile(32, 32, 4))
_rows("gru_gates", "ieee", d64=Tile(16, 32, 4), d128=Tile(32, 32, 4), d256=Tile(32, 32, 4))
_rows("gru_gates", "half", 80, d128=Tile(32, 32, 4, 2, 255), d256=Tile(32, 32, 4, 2, 255))
_rows("gru_gates", "tf32", 86, 89, d256=Tile(32, 32, 8))
_rows("gru_gates", "ieee", 90, d128=Tile(32, 32, 8))
_rows("gru_gates", "ieee", 80, d256=Tile(32, 32, 4, 2, 255))
_rows("gru_weights", "half tf32", d64=Tile(32, 32, 4), d128=Tile(32, 32, 4), d256=Tile(16, 32, 8))
_rows("gru_weights", "tf32", 86, 89, d32=Tile(32, 32, 4, 2, 128))
_rows("gru_weights", "ieee", d64=Tile(16, 32, 4), d128=Tile(16, 32, 4), d256=Tile(16, 16, 8))
_rows("gru_weights", "ieee", 90, d256=Tile(16, 16, 8, 2, 255))
_rows("length_bias", _ALL, d64=Tile(16, 32, 4), d128=Tile(16, 32, 8), d256=Tile(16, 16, 8, 2, 255))
_rows("length_bias_backward", _ALL, d64=Tile(16, 32, 4), d128=Tile(16, 32, 8),
      d256=Tile(16, 16, 8, 2, 255))


class Key(NamedTuple):
    """What a tile is chosen for; ``rows`` is a power of two, at least ``FEWEST``."""

    kernel: str
    architecture: int
    size: int
    precision: str
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.kernel}/sm_{self.architecture}/{self.size}/{self.precision}/{self.rows} rows"
        )


Choice = Callable[[Key, Tile], Tile]

FEWEST = 64  # fewer rows than that are one bucket
AMD = (94,)
_choice: ContextVar[Choice | None] = ContextVar("choice", default=None)


@contextmanager
def choosing(choice: Choice) -> Iterator[None]:
    """Let ``choice`` see what tiles are asked for in this thread, and change them."""
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


def _fixed(kernel: str, size: int, kind: str, architecture: int) -> Tile:
    special = _BY_ARCHITECTURE.get((architecture, kernel, size, kind))
    if special is not None:
        return special
    if size < 64 and (kernel, size, kind) not in _TABLE:
        return _fixed(kernel, 64, kind, architecture)
    return _TABLE[kernel, size, kind]


def tile(kernel: str, size: int, kind: str, architecture: int, rows: int = 0) -> Tile:
    """The tile of a kernel for a padded D (at most 256), a precision and an architecture.

    Args:
        kernel: a name of the table.
        size: the padded D.
        kind: ``"half"``, ``"tf32"`` or ``"ieee"``.
        architecture: as ``_launch.architecture`` gives it.
        rows: how many the kernel is launched on, for measured tiles; the fixed ones suit all.
    """
    fixed = _fixed(kernel, max(size, 32), kind, architecture)
    if architecture in AMD:
        # Twice the lanes a warp; and its compiler takes no limit of registers.
        fixed = fixed._replace(num_warps=max(1, fixed.num_warps // 2), max_registers=None)
    choice = _choice.get()
    if choice is None:
        return fixed
    power = max(FEWEST, 1 << (rows - 1).bit_length() if rows > 0 else 0)
    return choice(Key(kernel, architecture, size, kind, power), fixed)

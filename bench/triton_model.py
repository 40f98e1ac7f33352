"""A static model of the Triton kernels: operations, bytes, random numbers, and the floor of a time.

The floor is what the busiest unit alone would need at its peak: tensor cores, memory, or the
pipelines that make random numbers. A measured time is held against it; it is no prediction.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

# Dense peaks. RTX 3090: NVIDIA Ampere GA102 whitepaper, appendix A (boost clock, 82 SMs).
# H100, H200: NVIDIA's datasheets, SXM, dense (half of the figures with sparsity); their clock is
# the one those figures imply at 132 SMs and 4096 dense 16-bit operations a clock.
PEAKS: dict[str, dict[str, float]] = {
    "RTX 3090": {
        "half_tflops": 71.0, "tf32_tflops": 35.6, "ieee_tflops": 35.6, "gbytes_per_s": 936.0,
        "multiprocessors": 82, "ghz": 1.695,
    },
    "H100": {
        "half_tflops": 989.0, "tf32_tflops": 494.5, "ieee_tflops": 67.0, "gbytes_per_s": 3350.0,
        "multiprocessors": 132, "ghz": 1.83,
    },
    "H200": {
        "half_tflops": 989.0, "tf32_tflops": 494.5, "ieee_tflops": 67.0, "gbytes_per_s": 4800.0,
        "multiprocessors": 132, "ghz": 1.83,
    },
}
# Issue slots of one element's pair of levels: ten Philox rounds of four multiplications (two slots
# each) and four logic operations, then a logarithm, a root and two polynomials. 128 slots a clock.
PHILOX_SLOTS = 10 * (4 * 2 + 4)
BOX_MULLER_SLOTS = 60
SLOTS_PER_CLOCK = 128



class Load(NamedTuple):
    """What an op works on; every depth is equally likely.

    Attributes:
        sequences: users.
        tokens: of them all.
        mean_depth: levels above the first that a token has.
        levels: T + 1.
        ranked: users that ``score_topk`` ranks, those of "serve-1024".
        items: of the catalogue.
    """

    sequences: int
    tokens: int
    mean_depth: float = 4.0
    levels: int = 9
    ranked: int = 1024
    items: int = 12_101

    def fours(self) -> float:
        """Groups of four levels, which share a Philox call, that a token has on average."""
        return sum(-(-levels // 4) for levels in range(1, self.levels + 1)) / self.levels

    def backbone(self) -> Load:
        """The tokens themselves: no level but the first."""
        return self._replace(mean_depth=0.0, levels=1)


# The workloads of bench/workloads.py: 7 tokens a sequence on average, T = 8, Beauty's catalogue.
LOADS = {"train": Load(256, 1792), "large": Load(8192, 57344)}
# Computed in float32 also under autocast.
FLOAT32 = ("level_infonce",)


def _hda(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    pairs = load.tokens * load.mean_depth * size
    product = 2 * pairs * 2 * size
    plane = load.tokens * size * word
    if not backward:
        return {"flops": 2 * product, "bytes": plane * (2 + load.mean_depth), "normals": pairs}
    # Five products for dE, four for the weights; dx0 is read, E_k and d epsilon_theta go to memory
    # and come back once for each of the weights kernel's chunks (counted once: they stay in L2).
    return {
        "flops": 9 * product, "bytes": plane * (3 + load.mean_depth * 5), "normals": pairs,
    }


def _mlp(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    pairs = load.tokens * (load.mean_depth + 1) * size
    product = 2 * pairs * 2 * size
    planes = pairs * word
    words = pairs / 2
    if not backward:
        return {"flops": 2 * product, "bytes": 2 * planes, "words": words}
    return {"flops": 9 * product, "bytes": 6 * planes, "words": words}


def _biases(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    weights, levels = 3 * size * size, 4 * load.levels * size
    return {
        "flops": (2 if backward else 1) * 2 * load.levels * weights,
        "bytes": (2 if backward else 1) * (weights + levels) * 4,
    }


def _mlp_pooled(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    work = _mlp(load, size, word, backward)
    pairs, means = load.tokens * (load.mean_depth + 1), load.sequences * (load.mean_depth + 1)
    if not backward:
        # x and y again, for the means and last rows.
        return {**work, "bytes": work["bytes"] + (2 * pairs + 3 * means) * size * word}
    # The gradients that are read are of sequences and not of tokens.
    return {**work, "bytes": work["bytes"] + (3 * means - pairs) * size * word}


def _moe(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    pairs = load.sequences * (load.mean_depth + 1) * size
    product, gate = 2 * pairs * size, 2 * load.sequences * size * size
    planes = pairs * word
    if not backward:
        return {"flops": product + gate, "bytes": 3 * planes}
    return {"flops": 4 * product + 3 * gate, "bytes": 8 * planes}


def _pool(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    tokens = load.tokens * (load.mean_depth + 1) * size
    sequences = load.sequences * (load.mean_depth + 1) * size
    return {"flops": 0.0, "bytes": (tokens + sequences) * word}


def _controller(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    # The hidden size is D. A product with three gates' weights of one kind, and a plane of gates.
    product, plane = 2 * load.tokens * size * 3 * size, load.tokens * size * 4
    tokens = load.tokens * size * word
    if not backward:
        return {"flops": 2 * product, "bytes": 2 * tokens + 6 * plane}
    # Gates again, the scan's product, both weights, dE; four planes are made, replaced, and read
    # by the weights' and dE's kernels.
    return {"flops": 6 * product, "bytes": 6 * tokens + 19 * plane}


def _infonce(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    # Depths 0..8 equally likely: level k has (min(2k + 1, 8) - k) / 9 of the users as anchors and
    # (8 - k) / 9 as candidates.
    deepest = load.levels - 1
    pairs = sum((min(2 * k + 1, deepest) - k) * (deepest - k) for k in range(deepest))
    share = pairs / load.levels**2
    product = 2 * share * load.sequences**2 * size
    vectors = load.sequences * (load.mean_depth + 1) * size
    if not backward:
        return {"flops": product, "bytes": vectors * (word + 8)}
    # A pair's similarity and its gradient, once for the anchor and once for the candidate.
    return {"flops": 4 * product, "bytes": vectors * (2 * word + 8)}


def _cross_entropy(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    # A logit and its part of the gradient of hidden; again, and its part of the weight's. The table
    # and its gradient are float32 under autocast, too; two float32 numbers a row in between.
    product = 2 * load.sequences * load.items * size
    table, hidden = load.items * size * 4, load.sequences * size * word
    if not backward:
        return {"flops": 2 * product, "bytes": table + 2 * hidden + 8 * load.sequences}
    return {"flops": 2 * product, "bytes": 2 * table + 3 * hidden + 8 * load.sequences}


def _topk(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    if backward:
        return {}
    items = load.items
    return {"flops": 2 * load.ranked * items * size, "bytes": (load.ranked + items) * size * word}


def _memory(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    if backward:
        return {}
    # Histories of seven items with 60 neighbours; each is looked for, in six steps, in each row.
    found = load.ranked * 7 * 60
    ranked = _topk(load, size, 4, backward)
    return {
        "flops": ranked["flops"] + 2 * found * size,
        "bytes": ranked["bytes"] + found * (4 * size + 8 + 7 * 6 * 4),
    }


def _encoder(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    pairs = load.tokens * (load.mean_depth + 1)
    # Of D x D: 3 for queries, keys and values, 1 to project, 8 for the feed-forward.
    square = 2 * pairs * size * size
    # Sixteen queries see a block of 32 keys; four levels share a Philox call.
    scores = 2 * pairs * 32 * size
    plane = pairs * size * word
    groups = load.tokens * load.fours()
    hidden, probabilities = 2 * groups * size, 2 * groups * 32
    if not backward:
        return {
            "flops": 12 * square + 2 * scores, "bytes": 11 * plane,
            "words": hidden + probabilities,
        }
    # Again: 3 and 9, attention. Sublayers: 12 for the feed-forward, of which 4 again, and 1. Its
    # weights 16, of which 4 again; the projection's 1. Queries, keys and values: 3 and 3.
    return {
        "flops": 48 * square + 9 * scores, "bytes": 41 * plane,
        "words": hidden + 3 * probabilities,
    }


def _encoder_last(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    # Read out at the last position of two heads: sixteen sequences a tile, 32 query rows, of which
    # each sees all keys of the tile in blocks of 32. Of D x D, by read-out: 6 for queries, folded
    # queries and values, each head masked in all columns; 1 to project, 8 for the feed-forward.
    pairs, rows = load.tokens * (load.mean_depth + 1), load.sequences * (load.mean_depth + 1)
    square = 2 * rows * size * size
    keys = 32 * -(-16 * load.tokens // (32 * load.sequences))
    scores = 2 * rows / 16 * 32 * keys * size
    plane, read_out = pairs * size * word, rows * size * word
    groups = load.sequences * load.fours()
    if not backward:
        return {
            "flops": 15 * square + 2 * scores, "bytes": plane + 5 * read_out,
            "words": 2 * groups * size + 2 * pairs,
        }
    # Again: 6 and 9, attention. Sublayers 13, weights 17 as above; 6 and 3 for queries, folded
    # queries and values.
    return {
        "flops": 54 * square + 7 * scores, "bytes": 3 * plane + 34 * read_out,
        "words": 2 * groups * size + 4 * pairs,
    }


def _fused(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    if backward:
        return {}  # that of the separate kernels
    rows = load.sequences * (load.mean_depth + 1)
    # Of D x D, by token: 4 the denoiser; by read-out: 4 the attention, 4 and 8 the experts, 1 the
    # router; 1 the final gate. Sixteen queries of two heads see each other's keys.
    squares = 4 * load.tokens * load.mean_depth + 17 * rows + load.sequences
    scores = 2 * 2 * 2 * rows * 16 * load.tokens / load.sequences * size
    return {
        "flops": 2 * squares * size * size + scores,
        "bytes": load.tokens * (size * word + 4) + load.sequences * size * (word + 8),
    }


def _embedding(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    # A row of the table and one of x. Backward: rows again, x's gradient; the rows' is written and
    # read; half as many items as tokens, whose rows are read and written.
    rows = load.tokens * size
    if not backward:
        return {"flops": 0.0, "bytes": 2 * rows * word, "words": rows}
    return {"flops": 0.0, "bytes": rows * (3 * word + 8), "words": rows}


def _dropout(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    # As much both ways; a Philox call has words for four dimensions.
    rows = load.tokens * size
    return {"flops": 0.0, "bytes": 2 * rows * word, "words": rows / 4}


def _local_path(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    # x and y; backward x, y's gradient and x's. A Philox call has words for four dimensions.
    rows = load.tokens * size
    return {"flops": 0.0, "bytes": (3 if backward else 2) * rows * word, "words": rows / 4}


def _objective(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    # The error of each token; logits and, forward, gates of each user and level; float32.
    pairs = load.sequences * load.levels
    return {"flops": 0.0, "bytes": 4 * (load.tokens + 2 * pairs)}


def _length_bias(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    # Of D x D: 1 of the MLP and 3 of the gates; backward makes the first layer again.
    squares = 2 * 4 * load.sequences * size * size
    rows = load.sequences * size * word
    return {"flops": squares * (2 if backward else 1), "bytes": rows * (8 if backward else 4)}


def _choose(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    # A Philox call for each logit; the softmax is kept.
    logits = load.sequences * load.levels
    if backward:
        return {"flops": 0.0, "bytes": 12.0 * logits}
    return {"flops": 0.0, "bytes": 12.0 * logits + 24 * load.sequences, "words": logits}


def _statistics(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    if backward:
        return {}
    return {"flops": 0.0, "bytes": load.sequences * (4.0 * load.levels + 8)}


def parameters(load: Load, size: int) -> int:
    """Of the default model at T = 8: the catalogue, 129 vectors, 59 squares of D."""
    return (load.items + 130) * size + 59 * size * size


def _norm(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    if backward:
        return {}
    return {"flops": 0.0, "bytes": 4.0 * parameters(load, size)}


def _adam(load: Load, size: int, word: int, backward: bool) -> dict[str, float]:
    # The gradient is read, the weight and two moments are read and written.
    if backward:
        return {}
    return {"flops": 0.0, "bytes": 28.0 * parameters(load, size)}


OPS = {
    "hda_trajectory": _hda, "mlp_expert": _mlp,
    "level_biases": _biases, "mlp_expert_pooled": _mlp_pooled, "moe_aggregate": _moe,
    "level_pool": _pool,
    "depth_controller": _controller, "level_infonce": _infonce, "score_topk": _topk,
    "memory_topk": _memory,
    "embedding": _embedding, "dropout": _dropout, "local_path": _local_path,
    "objective": _objective, "length_bias": _length_bias, "choose_depth": _choose,
    "epoch_statistics": _statistics, "gradient_norm": _norm, "adam": _adam,
    "linear_cross_entropy": _cross_entropy,
    "encoder_layer": _encoder, "encoder_layer[last]": _encoder_last, "fused_trajectory": _fused,
}


def units(
    op: str, load: Load, size: int, precision: str, backward: bool
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Counts, and by GPU how long each unit would take at its peak, in us; none for no such pass.

    Args:
        op: a key of ``OPS``.
        load: what it works on.
        size: D.
        precision: ``"half"``, ``"tf32"`` or ``"ieee"``.
        backward: which pass.
    """
    work = OPS[op](load, size, 2 if precision == "half" else 4, backward)
    if not work:
        return {}, {}
    kind = "ieee" if precision == "half" and op in FLOAT32 else precision
    # Two levels a call, so half a Philox and half a Box-Muller a normal.
    slots = work.get("normals", 0.0) * (PHILOX_SLOTS + BOX_MULLER_SLOTS) / 2
    slots += work.get("words", 0.0) * PHILOX_SLOTS
    times = {}
    for gpu, peak in PEAKS.items():
        clocks = peak["multiprocessors"] * SLOTS_PER_CLOCK * peak["ghz"] * 1e9
        times[gpu] = {
            "products": 1e6 * work["flops"] / (peak[f"{kind}_tflops"] * 1e12),
            "memory": 1e6 * work["bytes"] / (peak["gbytes_per_s"] * 1e9),
            "random": 1e6 * slots / clocks,
        }
    return work, times


def floors() -> dict[str, dict[str, Any]]:
    """``op/direction/D/precision`` -> counts, and by GPU each unit's time and the floor, in us.

    Of the workload "large".
    """
    found: dict[str, dict[str, Any]] = {}
    for op, size, precision, direction in product(
        OPS, (64, 128), ("half", "tf32", "ieee"), ("forward", "backward")
    ):
        work, times = units(op, LOADS["large"], size, precision, direction == "backward")
        if not work:
            continue
        row: dict[str, Any] = {name: round(value) for name, value in work.items()}
        for gpu, by_unit in times.items():
            row[gpu] = {name: round(time, 1) for name, time in by_unit.items()}
            row[gpu]["floor"] = max(row[gpu].values())
        found[f"{op}/{direction}/{size}/{precision}"] = row
    return found

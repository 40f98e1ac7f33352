"""A static model of the Triton kernels: operations, bytes, random numbers, and the floor of a time.

The floor is what the busiest unit alone would need at its peak: tensor cores, memory, or the
pipelines that make random numbers. A measured time is held against it; it is no prediction.
"""

from __future__ import annotations

from typing import Any

# Dense peaks. RTX 3090: NVIDIA Ampere GA102 whitepaper, appendix A (boost clock, 82 SMs).
# H200: NVIDIA H200 Tensor Core GPU datasheet, SXM, dense (half of the figures with sparsity); its
# clock is the one those figures imply at 132 SMs and 4096 dense 16-bit operations a clock.
PEAKS: dict[str, dict[str, float]] = {
    "RTX 3090": {
        "half_tflops": 71.0, "tf32_tflops": 35.6, "ieee_tflops": 35.6, "gbytes_per_s": 936.0,
        "multiprocessors": 82, "ghz": 1.695,
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

# "large": 8192 sequences of 7 tokens on average, T = 8, every depth equally likely.
SEQUENCES, TOKENS, MEAN_DEPTH, LEVELS = 8192, 57344, 4.0, 9
# "serve-1024": users ranked at once over Beauty's catalogue.
RANKED, ITEMS = 1024, 12101
# Computed in float32 also under autocast.
FLOAT32 = ("level_infonce",)


def _hda(size: int, word: int, backward: bool) -> dict[str, float]:
    pairs = TOKENS * MEAN_DEPTH * size
    product = 2 * pairs * 2 * size
    plane = TOKENS * size * word
    if not backward:
        return {"flops": 2 * product, "bytes": plane * (2 + MEAN_DEPTH), "normals": pairs}
    # Five products for dE, four for the weights; dx0 is read, E_k and d epsilon_theta go to memory
    # and come back once for each of the weights kernel's chunks (counted once: they stay in L2).
    return {
        "flops": 9 * product, "bytes": plane * (3 + MEAN_DEPTH * 5), "normals": pairs,
    }


def _mlp(size: int, word: int, backward: bool) -> dict[str, float]:
    pairs = TOKENS * (MEAN_DEPTH + 1) * size
    product = 2 * pairs * 2 * size
    planes = pairs * word
    words = pairs / 2
    if not backward:
        return {"flops": 2 * product, "bytes": 2 * planes, "words": words}
    return {"flops": 9 * product, "bytes": 6 * planes, "words": words}


def _biases(size: int, word: int, backward: bool) -> dict[str, float]:
    weights, levels = 3 * size * size, 4 * LEVELS * size
    return {
        "flops": (2 if backward else 1) * 2 * LEVELS * weights,
        "bytes": (2 if backward else 1) * (weights + levels) * 4,
    }


def _mlp_pooled(size: int, word: int, backward: bool) -> dict[str, float]:
    work = _mlp(size, word, backward)
    pairs, means = TOKENS * (MEAN_DEPTH + 1), SEQUENCES * (MEAN_DEPTH + 1)
    if not backward:
        # x and y again, for the means and last rows.
        return {**work, "bytes": work["bytes"] + (2 * pairs + 3 * means) * size * word}
    # The gradients that are read are of sequences and not of tokens.
    return {**work, "bytes": work["bytes"] + (3 * means - pairs) * size * word}


def _moe(size: int, word: int, backward: bool) -> dict[str, float]:
    pairs = SEQUENCES * (MEAN_DEPTH + 1) * size
    product, gate = 2 * pairs * size, 2 * SEQUENCES * size * size
    planes = pairs * word
    if not backward:
        return {"flops": product + gate, "bytes": 3 * planes}
    return {"flops": 4 * product + 3 * gate, "bytes": 8 * planes}


def _pool(size: int, word: int, backward: bool) -> dict[str, float]:
    tokens = TOKENS * (MEAN_DEPTH + 1) * size
    sequences = SEQUENCES * (MEAN_DEPTH + 1) * size
    return {"flops": 0.0, "bytes": (tokens + sequences) * word}


def _controller(size: int, word: int, backward: bool) -> dict[str, float]:
    # The hidden size is D. A product with three gates' weights of one kind, and a plane of gates.
    product, plane = 2 * TOKENS * size * 3 * size, TOKENS * size * 4
    tokens = TOKENS * size * word
    if not backward:
        return {"flops": 2 * product, "bytes": 2 * tokens + 6 * plane}
    # Gates again, the scan's product, both weights, dE; four planes are made, replaced, and read
    # by the weights' and dE's kernels.
    return {"flops": 6 * product, "bytes": 6 * tokens + 19 * plane}


def _infonce(size: int, word: int, backward: bool) -> dict[str, float]:
    # Depths 0..8 equally likely: level k has (min(2k + 1, 8) - k) / 9 of the users as anchors and
    # (8 - k) / 9 as candidates.
    deepest = LEVELS - 1
    share = sum((min(2 * k + 1, deepest) - k) * (deepest - k) for k in range(deepest)) / LEVELS**2
    product = 2 * share * SEQUENCES**2 * size
    vectors = SEQUENCES * (MEAN_DEPTH + 1) * size
    if not backward:
        return {"flops": product, "bytes": vectors * (word + 8)}
    # A pair's similarity and its gradient, once for the anchor and once for the candidate.
    return {"flops": 4 * product, "bytes": vectors * (2 * word + 8)}


def _cross_entropy(size: int, word: int, backward: bool) -> dict[str, float]:
    # A logit and its part of the gradient of hidden; again, and its part of the weight's. The table
    # and its gradient are float32 under autocast, too; two float32 numbers a row in between.
    product = 2 * SEQUENCES * ITEMS * size
    table, hidden = ITEMS * size * 4, SEQUENCES * size * word
    if not backward:
        return {"flops": 2 * product, "bytes": table + 2 * hidden + 8 * SEQUENCES}
    return {"flops": 2 * product, "bytes": 2 * table + 3 * hidden + 8 * SEQUENCES}


def _topk(size: int, word: int, backward: bool) -> dict[str, float]:
    if backward:
        return {}
    return {"flops": 2 * RANKED * ITEMS * size, "bytes": (RANKED + ITEMS) * size * word}


def _encoder(size: int, word: int, backward: bool) -> dict[str, float]:
    pairs = TOKENS * (MEAN_DEPTH + 1)
    # Of D x D: 3 for queries, keys and values, 1 to project, 8 for the feed-forward.
    square = 2 * pairs * size * size
    # Sixteen queries see a block of 32 keys; four levels share a Philox call.
    scores = 2 * pairs * 32 * size
    plane = pairs * size * word
    groups = TOKENS * sum(-(-levels // 4) for levels in range(1, LEVELS + 1)) / LEVELS
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


def _encoder_last(size: int, word: int, backward: bool) -> dict[str, float]:
    # Read out at the last position of two heads: sixteen sequences a tile, 32 query rows, of which
    # each sees all keys of the tile in blocks of 32. Of D x D, by read-out: 6 for queries, folded
    # queries and values, each head masked in all columns; 1 to project, 8 for the feed-forward.
    pairs, rows = TOKENS * (MEAN_DEPTH + 1), SEQUENCES * (MEAN_DEPTH + 1)
    square = 2 * rows * size * size
    keys = 32 * -(-16 * TOKENS // (32 * SEQUENCES))
    scores = 2 * rows / 16 * 32 * keys * size
    plane, read_out = pairs * size * word, rows * size * word
    groups = SEQUENCES * sum(-(-levels // 4) for levels in range(1, LEVELS + 1)) / LEVELS
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


def _fused(size: int, word: int, backward: bool) -> dict[str, float]:
    if backward:
        return {}  # that of the separate kernels
    rows = SEQUENCES * (MEAN_DEPTH + 1)
    # Of D x D, by token: 4 the denoiser; by read-out: 4 the attention, 4 and 8 the experts, 1 the
    # router; 1 the final gate. Sixteen queries of two heads see each other's keys.
    squares = 4 * TOKENS * MEAN_DEPTH + 17 * rows + SEQUENCES
    scores = 2 * 2 * 2 * rows * 16 * TOKENS / SEQUENCES * size
    return {
        "flops": 2 * squares * size * size + scores,
        "bytes": TOKENS * (size * word + 4) + SEQUENCES * size * (word + 8),
    }


def _embedding(size: int, word: int, backward: bool) -> dict[str, float]:
    # A row of the table and one of x. Backward: rows again, x's gradient; the rows' is written and
    # read; half as many items as tokens, whose rows are read and written.
    rows = TOKENS * size
    if not backward:
        return {"flops": 0.0, "bytes": 2 * rows * word, "words": rows}
    return {"flops": 0.0, "bytes": rows * (3 * word + 8), "words": rows}


def _objective(size: int, word: int, backward: bool) -> dict[str, float]:
    # The error of each token; logits and, forward, gates of each user and level; float32.
    pairs = SEQUENCES * LEVELS
    return {"flops": 0.0, "bytes": 4 * (TOKENS + 2 * pairs)}


OPS = {
    "hda_trajectory": _hda, "mlp_expert": _mlp,
    "level_biases": _biases, "mlp_expert_pooled": _mlp_pooled, "moe_aggregate": _moe,
    "level_pool": _pool,
    "depth_controller": _controller, "level_infonce": _infonce, "score_topk": _topk,
    "embedding": _embedding, "objective": _objective,
    "linear_cross_entropy": _cross_entropy,
    "encoder_layer": _encoder, "encoder_layer[last]": _encoder_last, "fused_trajectory": _fused,
}


def floors() -> dict[str, dict[str, Any]]:
    """``op/direction/D/precision`` -> counts, and by GPU each unit's time and the floor, in us."""
    found: dict[str, dict[str, Any]] = {}
    for op, count in OPS.items():
        for size in (64, 128):
            for precision, word in (("half", 2), ("tf32", 4), ("ieee", 4)):
                for direction in ("forward", "backward"):
                    work = count(size, word, direction == "backward")
                    if not work:
                        continue
                    peak_kind = "ieee" if precision == "half" and op in FLOAT32 else precision
                    # Two levels a call, so half a Philox and half a Box-Muller a normal.
                    slots = work.get("normals", 0.0) * (PHILOX_SLOTS + BOX_MULLER_SLOTS) / 2
                    slots += work.get("words", 0.0) * PHILOX_SLOTS
                    row: dict[str, Any] = {name: round(value) for name, value in work.items()}
                    for gpu, peak in PEAKS.items():
                        clocks = peak["multiprocessors"] * SLOTS_PER_CLOCK * peak["ghz"] * 1e9
                        times = {
                            "products": work["flops"] / (peak[f"{peak_kind}_tflops"] * 1e12),
                            "memory": work["bytes"] / (peak["gbytes_per_s"] * 1e9),
                            "random": slots / clocks,
                        }
                        row[gpu] = {name: round(1e6 * t, 1) for name, t in times.items()}
                        row[gpu]["floor"] = max(row[gpu].values())
                    found[f"{op}/{direction}/{size}/{precision}"] = row
    return found

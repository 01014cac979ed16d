"""The fewest bytes that a decode step must move, by part: what rooflines and shares of the bandwidth are taken from.

Every weight is read once, whatever the batch; the keys and values that each item's position sees are read, and its own
written. Activations stay in the caches and are not counted.
"""

from __future__ import annotations

from ..engine.config import PriorConfig
from ..engine.kv_cache import num_slots
from ..engine.patterns import Pattern
from ..kernels.reference import cache_slot, cache_visible

PARTS = ("projections", "head", "vectors", "keys_values", "embedding")


def bytes_by_part(
    config: PriorConfig, batch: int, pos: int, conditioned: bool, weight_size: int, cached_size: int, other_size: int
) -> dict[str, int]:
    """Bytes of a step of `batch` items at position `pos`.

    weight_size: bytes of one stored weight of the projections and the head; with 1, int8, there is an FP32 scale per
        output. cached_size: of a number of the keys and values. other_size: of whatever else is stored: vectors,
        embeddings and conditions.

    projections: the four matrices of every layer. head: the token embedding as the last matrix. vectors: biases, scale
    and shift of the norms, scales of int8 weights. keys_values: those of all items and layers. embedding: per item a
    row of the token and of the position embedding, and its frame condition, at the input and before the head.
    """
    width, attn_width, hidden = config.width, config.attn_width, config.mlp_width
    # Of the first projection, all layers together.
    projected = sum(attn_width * (1 if pattern is Pattern.CROSS else 3) for pattern in config.layer_patterns)
    outputs = projected + config.depth * (2 * width + hidden)
    scales = 4 * (outputs + config.codebook_size) if weight_size == 1 else 0
    moved = 0
    for pattern in config.layer_patterns:
        place = (pos, pattern.value, config.row_len, num_slots(pattern, config))
        own = pattern is not Pattern.CROSS and cache_slot(*place) < place[-1]
        moved += cache_visible(*place)[1] + own
    return {
        "projections": (width * projected + config.depth * width * (attn_width + 2 * hidden)) * weight_size,
        "head": config.codebook_size * width * weight_size,
        "vectors": (outputs + config.depth * 4 * width) * other_size + scales,
        "keys_values": batch * 2 * moved * attn_width * cached_size,
        "embedding": batch * (4 if conditioned else 2) * width * other_size,
    }

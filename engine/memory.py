"""When memory runs out."""

from __future__ import annotations

# How PyTorch's allocator on CPUs says it, which has no kind of error for it, and others.
_WORDS = "not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory."""
    told = str(error).lower()
    # PyTorch's kind for GPUs, by its name: PyTorch is not imported for this.
    is_kind = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_kind or any(words in told for words in _WORDS)

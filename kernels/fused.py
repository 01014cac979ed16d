"""The operations in Triton, by the names and signatures of `reference`."""

from .attention_distance import attention_distance
from .cache_attention import cache_attention
from .check_drafts import begin_check, end_check
from .down_residual import down_residual
from .head_logits import head_logits
from .norm_qkv import norm_qkv
from .norm_up import norm_up
from .prefill_attention import prefill_attention
from .project_attention import project_attention
from .sample_step import sample_step

__all__ = [
    "attention_distance",
    "begin_check",
    "cache_attention",
    "down_residual",
    "end_check",
    "head_logits",
    "norm_qkv",
    "norm_up",
    "prefill_attention",
    "project_attention",
    "sample_step",
]

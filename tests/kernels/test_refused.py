"""Arguments that do not go together: a kernel would read or write beside them, so none is started."""

import pytest
import torch
from decode_case import draw
from fastjukebox.kernels import fused
from test_cache_attention import make as cache_attention
from test_cache_attention import window as few_rows
from test_check_drafts import make as check_drafts
from test_down_residual import make as down_residual
from test_head_logits import make as head_logits
from test_norm_qkv import make as norm_qkv
from test_norm_qkv import window
from test_norm_up import make as norm_up
from test_project_attention import make as project_attention
from test_sample_step import make as sample_step


def check(name):
    case = vars(check_drafts(8, 4, 4, 10, 32, [1, 2, 3, 4], [1, 2, 3, 4]))
    left_out = ("lanes", "width", "found", "counts") if name == "begin_check" else ("lanes", "width")
    lanes = case["lanes"] if name == "begin_check" else 1
    given = {"x": torch.zeros(lanes, case["width"]), "positions": torch.zeros(lanes, dtype=torch.int64)}
    return given | {key: value for key, value in case.items() if key not in left_out}


OPS = {
    "norm_qkv": (lambda: norm_qkv(window(positions=(7, 8))), [("q", 0), ("q", 1), ("weight", 0), ("weight", 1)]),
    "cache_attention": (lambda: cache_attention(few_rows("row", (3, 4, 5))), [("sums", 1), ("q", 1), ("kv", 1)]),
    "project_attention": (project_attention, [("out", 0), ("weight", 0), ("weight", 1)]),
    "norm_up": (norm_up, [("out", 1), ("weight", 0)]),
    "down_residual": (down_residual, [("out", 1), ("h", 0), ("weight", 0), ("weight", 1)]),
    "head_logits": (head_logits, [("logits", 1), ("weight", 0)]),
    "sample_step": (
        lambda: sample_step(draw(3, 37)),
        [("codes", 1), ("x", 1), ("token_embedding", 0), ("token_embedding", 1)],
    ),
    "begin_check": (lambda: check("begin_check"), [("positions", 0), ("codes", 1)]),
    "end_check": (lambda: check("end_check"), [("codes", 1), ("pos_embedding", 0)]),
}


@pytest.mark.parametrize(("name", "key", "axis"), [(name, *cut) for name, (_, cuts) in OPS.items() for cut in cuts])
def test_what_is_too_short_is_refused(name, key, axis):
    given = OPS[name][0]()
    short = given[key].narrow(axis, 0, given[key].shape[axis] - 1)
    # Stored as it was: weights output by output.
    given[key] = short.t().contiguous().t() if key == "weight" else short.contiguous()
    with pytest.raises(ValueError, match=r"\(\d+, |\d+ positions"):
        getattr(fused, name)(**given)


def test_int8_weights_have_scales_and_no_others():
    for given in (norm_up(int8=True) | {"scale": None}, norm_up() | {"scale": torch.ones(45)}):
        with pytest.raises(ValueError, match="scales"):
            fused.norm_up(**given)

"""Speculative decoding on a GPU: a draft of so many codes and its check, recorded as one CUDA graph.

A small prior's steps draft codes one by one; the prior itself then does a step of as many lanes for each item, which
are positions of the item and share its cache; a last kernel compares, corrects, and moves both on
(kernels/check_drafts.py). How far a cycle comes depends on the codes, and only the device knows: the host asks now and
then. An item's numbers do not depend on how many lanes there are (kernels/gemv.py), so the codes are to the bit those
without drafts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import graph_decoder
from .prior import Prior

if TYPE_CHECKING:
    from .graph_decoder import GraphDecoder


class DraftCycle:
    """`draft` guesses `length` codes of each of `target`'s items, in the same buffer, `target` checks them."""

    def __init__(self, target: GraphDecoder, draft: GraphDecoder, length: int) -> None:
        self.draft, self.length, self.check = draft, length, target.side_by_side(length)
        self.codes, self.graphs = target.codes, dict[bool, torch.cuda.CUDAGraph]()
        # Each item's next position, the one before which to stop; codes that were drafted right, checks, codes checked.
        self.reached, self.limit, self.counts = (
            torch.zeros(sizes, dtype=torch.int64, device=target.prior.device)
            for sizes in (target.lanes, 1, (target.lanes, 3))
        )

    def record(self) -> None:
        """Record the cycle, unless it is; `draft` and `check` have the conditions of a task."""
        if (key := self.check.cond is not None) not in self.graphs:
            self._place([1], 2)
            self.draft.positions.fill_(1)
            self.graphs[key] = graph_decoder.recorded(self._once)

    @torch.inference_mode()
    def run(self, positions: list[int], stop: int, checks: int) -> tuple[int, int, int]:
        """Codes of each item from its own of `positions`, 1 at the earliest; see GraphDecoder.speculate."""
        self._place(positions, stop)
        # One that is there already does the last again, as in a check too many.
        self.draft.go_to(*(min(pos, stop - 1) for pos in positions))
        self.counts.zero_()
        items, least = len(positions), min(positions)
        while checks and least < stop:
            # As many cycles as there must be, if all drafts are right.
            cycles = min(checks, -(-(stop - least) // self.length))
            for _ in range(cycles):
                self._replay()
            checks -= cycles
            # Waits for the device.
            positions[:] = self.reached[:items].tolist()
            least = min(positions)
        right, checked, drafted = self.counts[:items].sum(0).tolist()
        return right, checked, drafted

    def _place(self, positions: list[int], stop: int) -> None:
        self.reached.copy_(self.draft.of_lanes(positions))
        self.limit.fill_(stop)

    def _replay(self) -> None:
        if self.check.prior.device.type == "cuda":
            with torch.cuda.device(self.check.prior.device):
                self.graphs[self.check.cond is not None].replay()
        else:
            self._once()

    def _once(self) -> None:
        draft, check, row_len = self.draft, self.check, self.check.prior.config.row_len
        ops, ends = check.ops, (self.reached, self.limit)
        for _ in range(self.length):
            draft.step(row_len)
        ops.begin_check(check.x, check.positions, *ends, self.codes, *_embeddings(check.prior), check.cond, row_len)
        check.step()
        written = self.codes, draft.x, draft.positions, self.reached, self.counts
        ops.end_check(*written, self.limit, check.codes, *_embeddings(draft.prior), draft.cond, row_len)


def _embeddings(prior: Prior) -> tuple[Tensor, Tensor]:
    return prior.token_embedding, prior.pos_embedding

"""What steps need of a sequence that lives longer than they do: a row of tensors on the device."""

from __future__ import annotations

import torch

from cortex.neuron.engine.blocks import BLOCK_TOKENS
from cortex.neuron.engine.sequence import Sequence


class Rows:
    """
    A row a sequence; row 0 is padding's, its blocks are all block 0 and its length is 0.

    Attributes:
        last: The token that was picked last.  # [rows] int64
        lengths: Tokens whose keys are in the cache.  # [rows] int64
        table: Blocks.  # [rows, blocks] int32
        knobs: Temperature (0 is greedy), top-p and min-p.  # [rows, 3] float32
        top_k: 0 keeps all.  # [rows] int32
        seeds: # [rows] int64
        offsets: What is added to positions behind pictures.  # [rows] int64
    """

    def __init__(self, rows: int, blocks: int, device: torch.device) -> None:
        self._device = device
        self.last = torch.zeros(rows, dtype=torch.int64, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.table = torch.zeros(rows, blocks, dtype=torch.int32, device=device)
        self.knobs = torch.zeros(rows, 3, device=device)
        self.top_k = torch.zeros(rows, dtype=torch.int32, device=device)
        self.seeds = torch.zeros(rows, dtype=torch.int64, device=device)
        self.offsets = torch.zeros(rows, dtype=torch.int64, device=device)

    @property
    def most_tokens(self) -> int:
        """Tokens a row has room for."""
        return self.table.shape[1] * BLOCK_TOKENS

    def slots(self, owners: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return where in the cache tokens go, of rows at positions: [tokens] int64."""
        blocks = self.table[owners, positions // BLOCK_TOKENS].long()
        return blocks * BLOCK_TOKENS + positions % BLOCK_TOKENS

    def enter(self, entered: dict[int, Sequence]) -> None:
        """Take in sequences that came to rows; empties *entered*."""
        if not entered:
            return
        knobs = [(s.job.temperature, s.job.top_p, s.job.min_p) for s in entered.values()]
        whole = [
            (row, s.tokens[-1], s.planned, s.job.top_k, s.seed, s.offset)
            for row, s in entered.items()
        ]
        told = torch.tensor(whole, dtype=torch.int64).to(self._device, non_blocking=True)
        rows, self.last[rows], self.lengths[rows], top_k, *more = told.T
        self.seeds[rows], self.offsets[rows] = more
        self.knobs[rows] = torch.tensor(knobs).to(self._device, non_blocking=True)
        self.top_k[rows] = top_k.int()
        entered.clear()

    def move(self, moved: dict[tuple[int, int], int]) -> None:
        """Take in which blocks came into the rows' tables; empties *moved*."""
        if not moved:
            return
        whole = [(*where, block) for where, block in moved.items()]
        told = torch.tensor(whole, dtype=torch.int64).to(self._device, non_blocking=True)
        self.table[told[:, 0], told[:, 1]] = told[:, 2].int()
        moved.clear()

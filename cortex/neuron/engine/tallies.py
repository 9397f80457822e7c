"""
What was said by whom, on the device: how often each token is in an answer, whether in its prompt.

Kept where tokens are picked, so that a step need not wait until the host knows the last one's.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from cortex.neuron.engine.sequence import Sequence

IN_PROMPT, IN_ANSWER = 1, 2  # an entry is the bit of the prompt, and above it a count


class Tallies:
    """
    Of the sequences with penalties, a line for each row up to the highest that had one.

    A line is written when its sequence first gets a token in a row, and counts on from there.
    """

    def __init__(self, device: torch.device) -> None:
        self._lines = torch.zeros(0, 0, dtype=torch.int32, device=device)  # [rows, vocabulary]

    def of(self, sequences: Rows[Sequence], vocabulary: int) -> torch.Tensor | None:
        """Return the lines of those of *sequences* that have penalties, in order, if any has."""
        penalised = [s for s in sequences if s.job.penalises]
        if not penalised:
            return None
        rows = [s.row for s in penalised]
        self._grow(max(rows) + 1, vocabulary)
        for sequence in penalised:
            if sequence.tallied != sequence.epoch:  # the host knows all its tokens now
                self._write(sequence)
        return self._lines[torch.tensor(rows, device=self._lines.device)]

    def add(self, sequences: Rows[Sequence], picked: torch.Tensor) -> None:
        """
        Count the tokens that were picked.

        Args:
            sequences: All that got one.
            picked: # [sequences] int64
        """
        numbers = [n for n, s in enumerate(sequences) if s.job.penalises]
        if numbers:
            rows = [sequences[number].row for number in numbers]
            index = torch.tensor([numbers, rows], device=self._lines.device)
            self._lines[index[1], picked[index[0]]] += IN_ANSWER

    def _grow(self, rows: int, vocabulary: int) -> None:
        had = self._lines.shape[0]
        if rows > had:
            lines = self._lines.new_zeros(max(rows, 2 * had), vocabulary)
            lines[:had] = self._lines[:, :vocabulary] if had else 0
            self._lines = lines

    def _write(self, sequence: Sequence) -> None:
        line = self._lines[sequence.row].zero_()
        tokens = torch.tensor(sequence.tokens, device=line.device)
        line[tokens[: sequence.prompt_tokens]] = IN_PROMPT
        said = tokens[sequence.prompt_tokens :]
        line.index_add_(0, said, torch.full_like(said, IN_ANSWER, dtype=line.dtype))
        sequence.tallied = sequence.epoch

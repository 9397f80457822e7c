"""The harmony format: an answer is a sequence of messages, each with a channel and a recipient."""

from __future__ import annotations

import re

from cortex.neuron.text.reader import Pieces, Reading

NEXT = ("<|start|>", "<|channel|>")  # begins a message; the last one may lack its end
ENDS = ("<|end|>", "<|call|>", "<|return|>", *NEXT)
MARKS = (*ENDS, "<|constrain|>", "<|message|>")
LONGEST_HEAD = 300  # characters
CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
FUNCTION = re.compile(r"to=functions\.([^\s<]+)")


def written(thought: str, text: str) -> str:
    """Return an answer as it is written, open at its end."""
    said = []
    if thought:
        said.append(f"<|channel|>analysis<|message|>{thought}")
    if text:
        said.append(f"<|channel|>final<|message|>{text}")
    return "<|end|><|start|>assistant".join(said)


def head(pieces: Pieces) -> Reading[tuple[str, str]]:
    """
    Pass the head of a message.

    Returns:
        Its channel, and the function it calls or nothing; a message without a head is final.
    """
    if not (yield from pieces.mark((*NEXT, " to=", "to="))):
        return "final", ""
    while (at := pieces.text.find("<|message|>", pieces.at)) < 0:
        if len(pieces.text) - pieces.at > LONGEST_HEAD or not (yield from pieces.more()):
            pieces.at = len(pieces.text)
            return "final", ""
    said = pieces.text[pieces.at : at]
    pieces.at = at + len("<|message|>")
    channel, function = CHANNEL.search(said), FUNCTION.search(said)
    return channel[1] if channel else "final", function[1] if function else ""

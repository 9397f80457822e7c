"""Faults a request may ask for where the configuration lets it: drills of what breaks a device."""

from __future__ import annotations

from cortex.chat.request import ChatRequest
from cortex.errors import InvalidRequest
from cortex.neuron.engine.jobs import FAULTS

MARK = "!fault "


def fault_of(request: ChatRequest) -> str | None:
    """
    Return the fault a request asks for: its last message is ``!fault NAME``.

    Raises:
        InvalidRequest: There is no such fault.
    """
    text = request.messages[-1].text if request.messages else ""
    if not text.startswith(MARK):
        return None
    if (name := text.removeprefix(MARK).strip()) not in FAULTS:
        raise InvalidRequest(f"there is no fault {name!r}; there are {', '.join(FAULTS)}")
    return name

"""What the model says in the tests of clients: a word of the user's picks the row."""

from __future__ import annotations

import json

from cortex.errors import (
    InvalidRequest,
    LoadFailed,
    ModelLoading,
    NoNodeAvailable,
    QueueFull,
    UpstreamDied,
    UpstreamUnreachable,
)
from tests.clients.scripted import Once, Pause, Script, break_off, say

HELLO = ("Hello", ", ", "wörld", "!\n")
THOUGHTS = ("They ", "greet me.")
WEATHER = (
    ("call_paris", "get_weather", ('{"city": ', '"Paris"}')),
    ("call_oslo", "get_weather", ('{"city": ', '"Oslo"}')),
)
ANSWER = ("Paris is ", "warmer.")
RECIPE = ('{"name": "Bread", ', '"steps": 3}')
PATCH = "*** Begin\n+line\n"
CUT = ("This goes ", "on and on")
SCRIPT: Script = {
    "hello": [say(*HELLO, cached=1)],
    "ponder": [say(*HELLO, think=THOUGHTS)],
    "weather please": [
        say("Let me look.", think=THOUGHTS, calls=WEATHER),
        say(*ANSWER, think=["Now I know."]),
    ],
    "nothing-to-say": [say()],
    "call-only": [say(calls=[("call_now", "now", ())]), say("It is late.")],
    "custom-call": [
        say(calls=[("call_patch", "patch", (json.dumps({"input": PATCH}),))]),
        say("It is changed."),
    ],
    "recipe": [say(*RECIPE)],
    "recipe-tool": [say(calls=[("call_recipe", "json", RECIPE)])],
    "final-result": [say(calls=[("call_final", "final_result", RECIPE)])],
    "long": [say(*CUT, reason="length")],
    "halt": [say("up to", stop_string="END")],
    "filtered": [say("I ", reason="content_filter")],
    "hang": [(*say("One ", "two ")[:2], Pause())],
    "die": [break_off("Half an ", error=UpstreamDied("the worker died"))],
    "die-thinking": [(*say(think=THOUGHTS)[:2], *break_off(error=UpstreamDied("the worker died")))],
    "die-calling": [
        (*say(calls=WEATHER)[:2], *break_off(error=UpstreamDied("the worker died"))),
    ],
    "busy-once": [Once(QueueFull("too many wait", retry_after_s=1), say(*HELLO))],
    "busy": [QueueFull("too many wait", retry_after_s=7)],
    "loading": [ModelLoading("it is loading", retry_after_s=9)],
    "away": [NoNodeAvailable("no node has it")],
    "load-failed": [LoadFailed("out of memory")],
    "unreachable": [UpstreamUnreachable("nobody there")],
    "refused": [InvalidRequest("no such thing", param="messages[0]")],
    "(17, 4)": [say("Seventeen.")],
    "bug": [RuntimeError("a bug of the harness")],
}

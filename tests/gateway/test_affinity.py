"""Which requests belong together: what clients send, as tables."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

from cortex.gateway.affinity import affinity_of
from cortex.routing.prefix_affinity import PrefixAffinity
from cortex.testing import FakeNeuron
from tests.gateway.running import running

DEEP = b'{"messages": [{"content": ' + b"[" * 900 + b"]" * 900 + b"}]}"
HI = {"role": "user", "content": "hi"}
HO = {"role": "assistant", "content": "ho"}
MORE = {"role": "user", "content": "more"}
CLAUDE = json.dumps({"device_id": "d", "account_uuid": "", "session_id": "s1"})
CLAUDE_LATER = json.dumps({"session_id": "s1", "device_id": "e"})


def of(headers: dict[str, str] | None = None, **body) -> str:
    return affinity_of(headers or {}, json.dumps({"model": "m", **body}).encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            of({"x-claude-code-session-id": "s"}, messages=[HI]),
            of({"x-claude-code-session-id": "s"}, messages=[MORE]),
        ),
        (of({"session-id": "s"}, input="a"), of({"session-id": "s"}, input="b")),
        (of({"x-session-affinity": "s"}, input="a"), of({"x-session-affinity": "s"}, input="b")),
        (
            of(metadata={"user_id": CLAUDE}, messages=[HI]),
            of(metadata={"user_id": CLAUDE_LATER}, messages=[MORE]),
        ),
        (
            of(metadata={"user_id": "user_1_session_2"}, messages=[HI]),
            of(metadata={"user_id": "user_1_session_2"}, messages=[MORE]),
        ),
        (of(prompt_cache_key="k", input="a"), of(prompt_cache_key="k", input="b")),
        (of(user="u", messages=[HI]), of(user="u", messages=[MORE])),
        (of(messages=[HI]), of(messages=[HI, HO, MORE])),
        (of(system="be kind", messages=[HI]), of(system="be kind", messages=[HI, HO, MORE])),
        (of(instructions="be", input=[HI]), of(instructions="be", input=[HI, HO, MORE])),
    ],
)
def test_requests_of_one_conversation_have_the_same(one, other):
    assert one == other != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (of({"session-id": "s"}, messages=[HI]), of({"session-id": "t"}, messages=[HI])),
        (of(prompt_cache_key="k", messages=[HI]), of(prompt_cache_key="l", messages=[HI])),
        (
            of(metadata={"user_id": CLAUDE}, messages=[HI]),
            of(metadata={"user_id": CLAUDE.replace("s1", "s2")}, messages=[HI]),
        ),
        (of(prompt_cache_key=None, messages=[HI]), of(prompt_cache_key="", messages=[MORE])),
        (of(messages=[HI]), of(messages=[MORE])),
        (of(system="be kind", messages=[HI]), of(system="be brief", messages=[HI])),
        (of(prompt="once"), of(prompt="twice")),
    ],
)
def test_requests_of_two_conversations_differ(one, other):
    assert one != other


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"metadata": 3}', b'{"messages": null}', b'{"messages": [3]}', DEEP],
)
def test_a_body_of_any_shape_is_taken(body):
    assert isinstance(affinity_of({}, body), str)
    assert len(affinity_of({"session-id": "x" * 100_000}, body)) == 24


@pytest.mark.parametrize("reads", [True, False])
async def test_a_strategy_that_goes_by_it_is_told_it_and_no_other(reads):
    class Listening(PrefixAffinity):
        reads_affinity = reads
        told: ClassVar[list[str]] = []

        def choose(self, head, candidates):
            self.told.append(head.affinity)
            return super().choose(head, candidates)

    async with FakeNeuron(["m"]) as a, FakeNeuron(["m"]) as b, running(a, b) as gateway:
        gateway.gateway._router._strategy = Listening()
        for key in ("one", "two", "one"):
            await gateway.ask(prompt_cache_key=key)

    one, two, again = Listening.told
    assert one == again
    assert (one != two) == reads == (one != "")

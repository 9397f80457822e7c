"""What operators pin and drain outlives the gateway."""

from __future__ import annotations

import attrs
import pytest

from cortex.config.schema import Catalogue
from cortex.fleet.model import ModelSpec
from cortex.gateway.orders import SUFFIX
from cortex.testing import FakeNeuron
from tests.gateway.running import running

M = ModelSpec(id="m")


async def ordered(gateway) -> tuple[dict, list[str]]:
    """Return what is pinned, and which nodes are drained."""
    fleet = await gateway.get("/api/v1/fleet")
    return fleet["pins"], [node["name"] for node in fleet["nodes"] if node["drained"]]


async def test_pins_and_drains_are_in_force_again_before_a_restarted_gateway_listens(tmp_path):
    path = tmp_path / "state" / "state.json"
    async with FakeNeuron(["m"]) as a, FakeNeuron(["m"]) as b:
        async with running(a, b, state_path=path) as gateway:
            await gateway.post("/api/v1/models/m/pin", node="node0")
            await gateway.post("/api/v1/nodes/node1/drain")
            kept = path.with_suffix(SUFFIX).read_bytes()  # a gateway that is killed now has it
        async with running(a, b, state_path=path) as gateway:
            assert await ordered(gateway) == ({"m": ["node0"]}, ["node1"])
            answers = [await gateway.ask() for _ in range(3)]
            assert {answer["headers"]["x-cortex-node"] for answer in answers} == {"node0"}
            assert path.with_suffix(SUFFIX).read_bytes() == kept

            await gateway.post("/api/v1/models/m/unpin")
            await gateway.post("/api/v1/nodes/node1/resume")
        async with running(a, b, state_path=path) as gateway:
            assert await ordered(gateway) == ({}, [])


async def test_what_models_toml_pins_goes_when_it_says_so_and_a_pin_by_hand_stays(tmp_path):
    path, pinned = tmp_path / "state.json", attrs.evolve(M, pinned_on=("node0",))
    async with FakeNeuron() as a, FakeNeuron() as b:
        async with running(a, b, models=[pinned], state_path=path) as gateway:
            both = await gateway.post("/api/v1/models/m/pin", node="node1")
            assert both["pinned_on"] == ["node0", "node1"]
        async with running(a, b, state_path=path) as gateway:
            assert await ordered(gateway) == ({"m": ["node1"]}, [])


async def test_what_concerns_a_node_that_went_is_dropped_for_good(tmp_path):
    path = tmp_path / "state.json"
    async with FakeNeuron(["m"]) as a, FakeNeuron(["m"]) as b:
        async with running(a, b, state_path=path) as gateway:
            await gateway.post("/api/v1/models/m/pin")
            await gateway.post("/api/v1/nodes/node1/drain")
            config, _ = gateway.gateway.current()
            left = attrs.evolve(config, neurons=config.neurons[:1])
            await gateway.gateway.adopt(left, Catalogue(models=(M,)))
        async with running(a, b, state_path=path) as gateway:
            assert await ordered(gateway) == ({"m": ["node0"]}, [])
        async with running(b, state_path=path) as gateway:
            await gateway.post("/api/v1/nodes/node0/drain")
        async with running(b, state_path=path) as gateway:
            assert await ordered(gateway) == ({"m": ["node0"]}, ["node0"])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pins": {"m": 3}}', '{"drained": "node0"}'])
async def test_a_file_that_cannot_be_read_is_a_warning_and_is_written_anew(
    tmp_path, content, caplog
):
    path = tmp_path / "state.json"
    path.with_suffix(SUFFIX).write_text(content)
    async with FakeNeuron(["m"]) as node:
        async with running(node, state_path=path) as gateway:
            assert await ordered(gateway) == ({}, [])
            assert "state.orders.json: " in caplog.text
            assert "pins and drains by hand are forgotten" in caplog.text
            await gateway.post("/api/v1/models/m/pin")
        async with running(node, state_path=path) as gateway:
            assert await ordered(gateway) == ({"m": ["node0"]}, [])


async def test_an_order_that_cannot_be_kept_is_in_force_and_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    async with (
        FakeNeuron(["m"]) as node,
        running(node, state_path=tmp_path / "file" / "state.json") as gateway,
    ):
        await gateway.post("/api/v1/models/m/pin")
        assert await ordered(gateway) == ({"m": ["node0"]}, [])
    assert "a restart forgets pins and drains" in caplog.text

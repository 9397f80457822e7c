"""TLS on both sides: nobody gets in, and nothing is told, without the right certificate."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from pathlib import Path

import aiohttp
import attrs
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from cortex import tls
from cortex.config.load import load_gateway, load_neuron
from cortex.config.schema import (
    Catalogue,
    GatewayConfig,
    GatewaySection,
    NeuronEntry,
    TlsSection,
    UpstreamEntry,
)
from cortex.errors import ConfigError
from cortex.fleet.model import ModelSpec
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Running, Wire, chat, running
from tests.neuron.serving import REPOSITORY, program


class Party:
    """An authority, and a certificate it gave."""

    def __init__(self, folder: Path, name: str) -> None:
        authority = trustme.CA()
        given = authority.issue_cert("127.0.0.1", "localhost")
        self.ca, self.cert, self.key = (folder / f"{name}.{part}" for part in ("ca", "crt", "key"))
        authority.cert_pem.write_to_path(self.ca)
        given.private_key_pem.write_to_path(self.key)
        for pem in given.cert_chain_pems:
            pem.write_to_path(self.cert, append=True)

    def section(self, client_ca: Path | None = None) -> TlsSection:
        return TlsSection(cert=self.cert, key=self.key, client_ca=client_ca)

    def context(self, client_ca: Path | None = None) -> ssl.SSLContext:
        return tls.listener(self.section(client_ca), "")

    def trusting(self) -> ssl.SSLContext:
        """Return what a client needs that trusts this authority and has no certificate."""
        return ssl.create_default_context(cafile=self.ca)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Party:
    return Party(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Party:
    return Party(tmp_path_factory.mktemp("tls"), "theirs")


def entry(node: FakeNeuron, **files: Path | None) -> NeuronEntry:
    return NeuronEntry(name="node0", endpoint=node.endpoint, **files)


async def ask(url: str, context: ssl.SSLContext, **more: object) -> bytes:
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector) as client:
        body = chat("m", **more)
        async with client.post(f"{url}/v1/chat/completions", data=body) as response:
            assert response.status == 200, await response.read()
            return await response.read()


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_are_the_same_with_tls_on_both_sides(ours, theirs, stream):
    async with FakeNeuron(["m"], tls=theirs.context(ours.ca)) as node:
        node.answer = " ".join(f"word{number}" for number in range(5_000))
        known = entry(node, ca=theirs.ca, client_cert=ours.cert, client_key=ours.key)
        async with running(known, tls=ours.section()) as gateway:
            for _ in range(2):  # the second goes over a kept connection
                said = await ask(gateway.url, ours.trusting(), stream=stream)
                if stream:
                    events = said.decode().split("\n\n")
                    pieces = [json.loads(e.removeprefix("data: ")) for e in events[:-2]]
                    texts = [piece["choices"][0]["delta"].get("content") for piece in pieces]
                    assert "".join(text or "" for text in texts) == node.answer
                    assert events[-2:] == ["data: [DONE]", ""]
                else:
                    assert json.loads(said)["choices"][0]["message"]["content"] == node.answer
            await until(lambda: len(gateway.records) == 2)
            assert [record.completion_tokens for record in gateway.records] == [5_000] * 2


async def test_who_leaves_is_gone_from_a_node_behind_tls(ours):
    async with FakeNeuron(["m"], tls=ours.context()) as node:
        async with running(entry(node, ca=ours.ca), tls=ours.section()) as gateway:
            node.ending = "hang"
            async with await Wire.to(gateway.address, ssl=ours.trusting()) as client:
                client.post(chat("m"))
                await until(lambda: node.in_flight["m"] == 1)
            await until(lambda: node.counts["cancelled"] == 1)
            assert gateway.in_flight() == 0


async def test_a_gateway_knows_what_a_client_behind_tls_has_taken(ours):
    async with FakeNeuron(["m"]) as node, running(node, tls=ours.section()) as gateway:
        node.answer = " ".join(["x" * 16_000] * 1_000)
        trust = {"ssl": ours.trusting(), "server_hostname": "127.0.0.1"}
        async with await Wire.slow(gateway.address, **trust) as slow:
            slow.post(chat("m", stream=True))
            await slow.head()
            [held] = gateway.gateway.nodes
            [exchange] = held.exchanges
            await until(lambda: 0 < exchange.unread_s() < exchange.unread_s(), 20)

            exchange.abandon()
            await until(lambda: gateway.in_flight() == node.in_flight["m"] == 0)
            assert [record.outcome for record in gateway.records] == ["cancelled"]


async def test_a_client_has_to_trust_the_listener_and_to_speak_tls(ours, theirs):
    async with FakeNeuron(["m"]) as node, running(node, tls=ours.section()) as gateway:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await ask(gateway.url, theirs.trusting())
        with pytest.raises(aiohttp.ClientConnectionError):
            await ask(gateway.url.replace("https", "http"), ours.trusting())
        assert await ask(gateway.url, ours.trusting())


async def test_a_listener_that_wants_certificates_takes_only_those_of_its_authority(ours, theirs):
    async with FakeNeuron(["m"]) as node, running(node, tls=ours.section(theirs.ca)) as gateway:
        for shown in (None, ours):
            context = ours.trusting()
            if shown is not None:
                context.load_cert_chain(shown.cert, shown.key)
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await ask(gateway.url, context)
        context.load_cert_chain(theirs.cert, theirs.key)
        assert await ask(gateway.url, context)
        assert node.counts["chat"] == 1


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        ({}, "certificate verify failed"),
        ({"ca": "ours"}, "certificate verify failed"),
        ({"ca": "theirs"}, ""),
        ({"ca": "theirs", "client_cert": "theirs"}, ""),
    ],
)
async def test_a_node_that_is_not_to_be_trusted_or_does_not_trust_us_is_out_of_service(
    ours, theirs, files, cause
):
    parties = {"ours": ours, "theirs": theirs}
    given = {name: parties[who].ca for name, who in files.items() if name == "ca"}
    if "client_cert" in files:
        given |= {"client_cert": theirs.cert, "client_key": theirs.key}
    async with FakeNeuron(["m"], tls=theirs.context(ours.ca)) as node:
        async with running(entry(node, **given), max_wait_s=0.1) as gateway:
            [known] = (await gateway.get("/api/v1/fleet"))["nodes"]
            assert not known["healthy"]
            assert "does not answer" in known["error"]
            assert cause in known["error"]
            await gateway.refused(503, "no_node_available")
            assert node.counts["chat"] == 0


async def test_a_node_of_another_name_is_not_the_one_that_was_meant(ours, tmp_path):
    authority = trustme.CA()
    elsewhere = authority.issue_cert("elsewhere.example")
    authority.cert_pem.write_to_path(tmp_path / "ca")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    elsewhere.configure_cert(context)
    async with FakeNeuron(["m"], tls=context) as node:
        async with running(entry(node, ca=tmp_path / "ca")) as gateway:
            [known] = (await gateway.get("/api/v1/fleet"))["nodes"]
            assert "IP address mismatch" in known["error"]


async def test_the_programs_speak_tls_as_their_files_say(ours, theirs, tmp_path):
    neuron_toml = f'[tls]\ncert = "{theirs.cert}"\nkey = "{theirs.key}"\nclient_ca = "{ours.ca}"\n'
    neuron_toml += '[[default_models]]\nmodel_id = "m"\nharness = "echo"\n'
    (tmp_path / "models.toml").write_text('[[models]]\nid = "m"\nharness = "echo"\n')
    (tmp_path / "ours.key").write_bytes(ours.key.read_bytes())
    async with program(tmp_path, neuron_toml) as neuron:
        cortex_toml = (
            f'[gateway]\nmetrics_listen = "127.0.0.1:0"\n'
            f'[gateway.tls]\ncert = "{ours.cert}"\nkey = "ours.key"\n'
            f'[[neurons]]\nname = "n"\nendpoint = "{neuron.url}"\nca = "{theirs.ca}"\n'
            f'client_cert = "{ours.cert}"\nclient_key = "ours.key"\n'
        )
        assert neuron.scheme == "https"
        async with program(tmp_path, cortex_toml, "serve") as gateway:
            assert gateway.scheme == "https"
            said = json.loads(await ask(gateway.url, ours.trusting()))
            assert said["choices"][0]["message"]["content"] == "hi"
            for ca, code in ((ours.ca, 0), (theirs.ca, 1)):
                command = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "cortex", "status", "--gateway", gateway.url),
                    env={**os.environ, "PYTHONPATH": str(REPOSITORY), "SSL_CERT_FILE": str(ca)},
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                )
                async with asyncio.timeout(20):
                    out, err = await command.communicate()
                assert command.returncode == code, (out, err)


async def test_renewed_certificates_are_shown_and_trusted_after_a_reload(tmp_path):
    old, new, node_now = (Party(tmp_path, name) for name in ("old", "new", "node"))
    for part in ("crt", "key", "ca"):
        (tmp_path / f"now.{part}").write_bytes((tmp_path / f"old.{part}").read_bytes())
    now = TlsSection(cert=tmp_path / "now.crt", key=tmp_path / "now.key")

    def renew(party: Party) -> None:
        now.cert.write_bytes(party.cert.read_bytes())
        now.key.write_bytes(party.key.read_bytes())

    async with FakeNeuron(["m"], tls=node_now.context()) as node:
        known = entry(node, ca=tmp_path / "now.ca", token="t")
        later = attrs.evolve(known, token="another")
        config = GatewayConfig(gateway=GatewaySection(tls=now), neurons=(later,))
        catalogue = Catalogue(models=(ModelSpec(id="m"),))
        async with running(known, tls=now, read=lambda: (config, catalogue)) as gateway:
            assert await status(gateway, old, "/health") == 200
            (tmp_path / "now.ca").write_bytes(node_now.ca.read_bytes())
            renew(new)
            assert await status(gateway, old, "/api/v1/reload", "POST") == 200
            assert await status(gateway, new, "/health") == 200
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await status(gateway, old, "/health")
            await until(lambda: gateway.gateway.nodes.get("node0").healthy)
            assert await ask(gateway.url, new.trusting())
            assert node.headers[-1]["authorization"] == "Bearer another"

            now.cert.write_text("half a certificate")
            assert await status(gateway, new, "/api/v1/reload", "POST") == 422
            assert await status(gateway, new, "/health") == 200


async def status(gateway: Running, trusted: Party, path: str, method: str = "GET") -> int:
    """Ask over a connection of its own."""
    connector = aiohttp.TCPConnector(ssl=trusted.trusting())
    async with aiohttp.ClientSession(connector=connector) as client:
        async with client.request(method, gateway.url + path) as response:
            return response.status


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "models.toml").write_text("")
    path = tmp_path / "cortex.toml"
    path.write_text(
        '[gateway.tls]\ncert = "a"\nkey = "/b"\nclient_ca = "c"\n'
        '[[upstreams]]\nname = "n"\nendpoint = "https://h"\nca = "d"\nclient_cert = "e"\n'
    )
    config = load_gateway(path)[0]
    assert config.gateway.tls == TlsSection(
        cert=tmp_path / "a", key=Path("/b"), client_ca=tmp_path / "c"
    )
    [node] = config.upstreams
    assert (node.ca, node.client_cert, node.client_key) == (tmp_path / "d", tmp_path / "e", None)
    path.write_text('[tls]\ncert = "a"\nkey = "b"\n')
    assert load_neuron(path).tls == TlsSection(cert=tmp_path / "a", key=tmp_path / "b")


def refusal(**files: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        tls.listener(TlsSection(**files), "x: gateway.tls.")
    return str(caught.value)


def test_what_cannot_be_used_is_said_with_its_key(ours, theirs, tmp_path):
    missing, text = tmp_path / "none", tmp_path / "text"
    text.write_text("no PEM at all")
    locked = tmp_path / "locked"
    locked.write_bytes(
        load_pem_private_key(ours.key.read_bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a password")
        )
    )
    given = {"cert": ours.cert, "key": ours.key}
    expected = "expected a certificate and its private key, both PEM"
    assert refusal(**given | {"cert": missing}) == (
        f"x: gateway.tls.cert: {missing}: No such file or directory"
    )
    assert refusal(**given | {"key": missing}).startswith(f"x: gateway.tls.key: {missing}: No such")
    assert refusal(**given | {"cert": text}).startswith(f"x: gateway.tls.cert: {expected}")
    assert refusal(**given | {"key": theirs.key}).startswith(f"x: gateway.tls.cert: {expected}")
    assert "has a password" in refusal(**given | {"key": locked})
    assert refusal(**given, client_ca=text).startswith("x: gateway.tls.client_ca: expected cert")


@pytest.mark.parametrize(
    ("endpoint", "files", "message"),
    [
        ("http://h", {"ca": "ca"}, "node n: ca: http://h is not https"),
        ("https://h", {"client_key": "key"}, "node n: client_key: it is of no use without"),
        ("https://h", {"ca": "nothing"}, "node n: ca: nothing: No such file or directory"),
    ],
)
def test_what_makes_no_sense_for_a_node_is_said(ours, endpoint, files, message):
    known = {"ca": ours.ca, "key": ours.key}
    given = {name: known.get(file, Path(file)) for name, file in files.items()}
    with pytest.raises(ConfigError) as caught:
        tls.toward(UpstreamEntry(name="n", endpoint=endpoint, **given))
    assert str(caught.value).startswith(message)

"""The client of the commands, on what can go wrong between it and a gateway."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from cortex.cli.client import Gateway, GatewayUnreachable, remote_error
from cortex.errors import CortexError, RemoteError


def test_an_error_envelope_becomes_message_code_status_and_details(gateway):
    envelope = {
        "error": {
            "message": "no model 'x'",
            "code": "model_not_found",
            "hint": "did you mean 'y'?",
            "status": "free",
            "free_mb": 3,
        }
    }
    gateway.json("GET", "/v1/models", envelope, 404)

    with pytest.raises(RemoteError) as caught:
        Gateway(gateway.url).get("/v1/models")

    assert str(caught.value) == "no model 'x' (did you mean 'y'?)"
    assert (caught.value.code, caught.value.status) == ("model_not_found", 404)
    assert caught.value.details == {"free_mb": 3}


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"detail": "no"}'])
def test_an_answer_that_is_not_ours_names_address_and_status(gateway, body):
    gateway.on("GET", "/v1/models", lambda _: (502, {}, [body]))

    with pytest.raises(RemoteError) as caught:
        Gateway(gateway.url).get("/v1/models")

    assert f"GET {gateway.url}/v1/models answered 502" in str(caught.value)
    assert "is a cortex gateway at this address?" in str(caught.value)


@pytest.mark.parametrize("error", ["so", None, 7, {}, {"message": None, "code": 5}])
def test_an_odd_error_object_is_still_an_error_with_a_sentence(error):
    assert str(remote_error(error, 500))


def test_a_missing_key_says_how_to_give_one(gateway):
    gateway.error("GET", "/v1/models", 401, "invalid_api_key", "no key")

    with pytest.raises(RemoteError, match="--key or CORTEX_KEY"):
        Gateway(gateway.url).get("/v1/models")


def test_a_redirect_is_not_followed_so_that_no_key_leaks(gateway):
    gateway.on("GET", "/v1/models", lambda _: (302, {"location": "http://evil/"}, []))

    with pytest.raises(RemoteError, match="look at http://evil/"):
        Gateway(gateway.url, "secret").get("/v1/models")


def test_the_key_is_sent_as_a_bearer(gateway):
    gateway.json("GET", "/v1/models", {})

    Gateway(gateway.url + "/", "secret").get("/v1/models")

    assert gateway.calls[0].headers["authorization"] == "Bearer secret"


def test_an_answer_of_another_shape_says_where_it_came_from(gateway):
    gateway.on("GET", "/v1/models", lambda _: (200, {}, [b"<html>"]))

    with pytest.raises(CortexError, match="answered something else than expected"):
        Gateway(gateway.url).get_as(dict, "/v1/models")


def test_nobody_listening_names_the_address_and_what_to_do(nowhere):
    with pytest.raises(GatewayUnreachable) as caught:
        Gateway(nowhere).get("/v1/models")

    assert nowhere in str(caught.value)
    assert "start it with: cortex serve" in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:1", "ftp://host", "http://", "file:///etc/passwd"])
def test_an_address_that_is_none_is_refused_with_what_was_given(url):
    with pytest.raises(CortexError, match="expected http://host:port"):
        Gateway(url)


def test_a_proxy_is_for_other_hosts_only(monkeypatch, gateway):
    gateway.json("GET", "/v1/models", {"through": "proxy"})
    monkeypatch.setenv("http_proxy", gateway.url)

    Gateway("http://somewhere.invalid").get("/v1/models")  # the fake plays the proxy
    assert gateway.calls[0].headers["host"] == "somewhere.invalid"

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    Gateway(gateway.url.replace("127.0.0.1", "localhost")).get("/v1/models")


@pytest.fixture
def silent():
    """Return the address of a server that accepts, reads, and acts: nothing, or hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    hang_up = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                hang_up.wait(10)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", hang_up
    hang_up.set()
    listener.close()
    thread.join()


def test_silence_ends_after_the_time_given(silent):
    url, _ = silent

    with pytest.raises(GatewayUnreachable, match=r"was silent for 0\.05 s"):
        Gateway(url).get("/v1/models", timeout_s=0.05)


def test_a_connection_that_breaks_says_so(silent):
    url, hang_up = silent
    hang_up.set()

    with pytest.raises(GatewayUnreachable, match="broke the connection"):
        Gateway(url).get("/v1/models")


def test_a_body_that_is_cut_off_is_an_error(gateway):
    gateway.on("GET", "/v1/models", lambda _: (200, {"content-length": "99"}, [b"{}"]))

    with pytest.raises(GatewayUnreachable):
        Gateway(gateway.url).get("/v1/models")


def test_a_stream_yields_data_joins_lines_and_skips_the_rest(gateway):
    body = b": hi\n\nevent: x\ndata: one\r\n\r\ndata:two\ndata: \xc3\xa9\n\nid: 7\n\ndata: cut off"
    gateway.on("POST", "/v1/x", lambda _: (200, {}, [body]))

    assert list(Gateway(gateway.url).stream("/v1/x", {"a": 1})) == ["one", "two\né"]
    assert gateway.calls[0].body == {"a": 1}

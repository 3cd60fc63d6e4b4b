"""Who may see a VM by HTTP: tokens, names, addresses."""

from __future__ import annotations

import socket

import pytest

from minivmm.errors import UsageError
from minivmm.ui.guard import Guard, Listen, new_token, parse_listen


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("", "127.0.0.1", 0),
        ("8000", "127.0.0.1", 8000),
        ("127.0.0.1:8000", "127.0.0.1", 8000),
        ("localhost:1", "localhost", 1),
        ("192.0.2.1", "192.0.2.1", 0),
        ("[::1]:8000", "::1", 8000),
        ("[::1]", "::1", 0),
    ],
)
def test_listen_addresses(text: str, host: str, port: int) -> None:
    assert parse_listen(text) == Listen(host, port)


@pytest.mark.parametrize("text", ["host:", "host:x", "1:2:3", "65536", "a:99999", "[::1", "[::1]8"])
def test_what_is_no_listen_address(text: str) -> None:
    with pytest.raises(UsageError, match="is not understood"):
        parse_listen(text)


def test_urls() -> None:
    assert Listen().url(80, "t") == "http://127.0.0.1:80/t/"
    assert Listen("::1").url(80, "t") == "http://[::1]:80/t/"
    assert Listen("0.0.0.0").url(80, "t") == f"http://{socket.gethostname()}:80/t/"


def test_what_is_loopback() -> None:
    assert Listen().loopback and Listen("::1").loopback and Listen("localhost").loopback
    assert not Listen("0.0.0.0").loopback and not Listen("host.example").loopback


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(100)}

    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 32


@pytest.mark.parametrize("token", ["", "secre", "secret2", "SECRET", "sécret", "\udcff"])
def test_other_tokens_are_not_known(token: str) -> None:
    assert not Guard(Listen(), "secret").knows(token)
    assert Guard(Listen(), "secret").knows("secret")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "localhost:9", "LOCALHOST", "[::1]:8000", "10.0.0.1:80", "box.example:80"],
)
def test_own_names_and_any_address_are_fine(host: str) -> None:
    guard = Guard(Listen("box.example"), "t")

    assert guard.refusal({"Host": host}) is None
    assert guard.refusal({"Host": host, "Origin": f"http://{host}"}) is None


@pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1.evil.example:80", "[evil]", "."])
def test_other_names_may_be_rebound_ones(host: str) -> None:
    assert Guard(Listen(), "t").refusal({"Host": host}) is not None


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://127.0.0.1:80", "http://127.0.0.1:81"]
)
def test_pages_of_others_have_no_business_here(origin: str) -> None:
    headers = {"Host": "127.0.0.1:80", "Origin": origin}

    assert Guard(Listen(), "t").refusal(headers) is not None

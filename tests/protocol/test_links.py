"""How two members prove to one another who they are."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from broker.errors import InvalidValue
from broker.protocol import links
from broker.protocol.links import Greeting

SECRET = bytes(range(32))
GREETING = Greeting(group=7, generation=3, source=1, target=2, lane=0)


def test_the_bytes_of_a_greeting_are_these() -> None:
    words = bytes.fromhex("93 54424c494e4b 0a 0100 0000 07000000 0300000000000000 01000000 02000000")
    seal = hmac.new(SECRET, b"tensorbus link from" + words, hashlib.sha256).digest()
    assert links.greet(GREETING, SECRET) == words + seal
    assert len(words + seal) == links.HELLO_BYTES == 64
    assert links.answer(GREETING, SECRET) == hmac.new(SECRET, b"tensorbus link to" + words, hashlib.sha256).digest()


def test_a_greeting_is_read_and_proved() -> None:
    data = links.greet(GREETING, SECRET)
    assert links.read_greeting(data) == GREETING
    assert links.is_greeting(data, GREETING, SECRET)
    assert links.is_answer(links.answer(GREETING, SECRET), GREETING, SECRET)


@pytest.mark.parametrize("position", range(64))
def test_a_greeting_with_one_other_bit_proves_nothing(position: int) -> None:
    data = bytearray(links.greet(GREETING, SECRET))
    data[position] ^= 1
    greeting = links.read_greeting(bytes(data))
    assert greeting is None or not links.is_greeting(bytes(data), greeting, SECRET)


def test_nobody_proves_anything_without_the_secret_or_by_what_was_said_to_him() -> None:
    other = bytes(32)
    assert not links.is_greeting(links.greet(GREETING, other), GREETING, SECRET)
    assert not links.is_answer(links.answer(GREETING, other), GREETING, SECRET)
    assert not links.is_answer(links.greet(GREETING, SECRET)[-32:], GREETING, SECRET)


def test_the_secret_of_a_generation_needs_those_of_all_its_members() -> None:
    parts = [bytes([rank]) * 32 for rank in range(3)]
    secrets = {
        links.generation_secret(parts, 7, 3), links.generation_secret(parts, 7, 4),
        links.generation_secret(parts, 8, 3), links.generation_secret([*parts[:2], bytes(32)], 7, 3),
    }  # fmt: skip
    assert len(secrets) == 4
    assert links.generation_secret(iter(parts), 7, 3) in secrets


@pytest.mark.parametrize("text", ["10.0.0.1:5000", "[fe80::1]:1", "127.0.0.1:65535"])
def test_addresses_go_there_and_back(text: str) -> None:
    assert links.address_text(*links.address_of(text)) == text


@pytest.mark.parametrize("text", ["", "host:5000", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:x", "1.2.3:4"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        links.address_of(text)

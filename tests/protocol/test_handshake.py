"""The first bytes of a session against literals and any damage."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from broker.protocol.bodies import Hello, Refusal, Welcome
from broker.protocol.codes import Code
from broker.protocol.handshake import MAGIC, answer_to_stranger, decode_greeting, encode_greeting

HELLO = Hello("trainer-0", token="t", tenant="", client="x 1", process=77, host="node3")


def test_a_hello_is_these_bytes() -> None:
    data = encode_greeting(Hello("ab"))
    assert data[:8] == b"\x93TBUS\r\n\x1a"
    assert data[8:16] == b"\x01\x00\x01\x00" + len(data[16:]).to_bytes(4, "little")
    assert msgpack.unpackb(data[16:]) == {"type": "hello", "name": "ab"}


@pytest.mark.parametrize(
    "body", [HELLO, Welcome(1, "b", 2, 3, 4, 5, 6), Refusal(3, "no")], ids=lambda body: type(body).__name__
)
def test_a_greeting_comes_back(body: Hello | Welcome | Refusal) -> None:
    data = encode_greeting(body, 1, 4)
    assert decode_greeting(memoryview(data + b"more")) == (body, 1, 4, len(data))


def test_an_unfinished_greeting_is_waited_for() -> None:
    data = encode_greeting(HELLO)
    for length in range(len(data)):
        assert decode_greeting(memoryview(data[:length])) is None


def test_the_magic_is_told_apart_at_its_first_wrong_byte() -> None:
    for length in range(1, 9):
        damaged = MAGIC[: length - 1] + b"?"
        with pytest.raises(ProtocolError, match="does not speak") as caught:
            decode_greeting(memoryview(damaged))
        assert caught.value.code == Code.NOT_OURS


def test_a_hello_can_be_logged_without_its_token() -> None:
    told = repr(Hello("trainer-0", token="tb_01_secret", tenant="team-a"))
    assert "secret" not in told
    assert "trainer-0" in told
    assert "token=None" in repr(Hello("trainer-0"))


def test_a_link_that_converts_line_ends_is_noticed() -> None:
    data = encode_greeting(HELLO).replace(b"\r\n", b"\n")
    with pytest.raises(ProtocolError):
        decode_greeting(memoryview(data))


@pytest.mark.parametrize(("lowest", "highest", "fits"), [(0, 0, False), (0, 1, True), (1, 9, True), (2, 9, False)])
def test_ranges_of_versions_have_to_overlap(lowest: int, highest: int, *, fits: bool) -> None:
    data = memoryview(encode_greeting(HELLO, lowest, highest))
    if fits:
        assert decode_greeting(data) is not None
        return
    with pytest.raises(ProtocolError, match=f"{lowest} to {highest}, this side 1 to 1") as caught:
        decode_greeting(data)
    assert caught.value.code == Code.VERSION


def test_strangers_are_answered_in_their_own_words() -> None:
    assert answer_to_stranger(b"GET / HTTP/1.1\r\n").startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer_to_stranger(b"GETTING").startswith(b"This is")
    assert answer_to_stranger(b"").isascii()


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_a_greeting_or_unfinished_or_refused(data: bytes, genuine: bool) -> None:
    start = MAGIC + b"\x01\x00\x01\x00" if genuine else b""
    with suppress(ProtocolError):
        found = decode_greeting(memoryview(start + data))
        assert found is None or isinstance(found[0], Hello | Welcome | Refusal)


@given(st.integers(0, 200), st.integers(0, 7))
def test_a_flipped_bit_is_no_crash(position: int, bit: int) -> None:
    data = bytearray(encode_greeting(HELLO))
    data[position % len(data)] ^= 1 << bit
    with suppress(ProtocolError):
        found = decode_greeting(memoryview(data))
        assert found is None or found[3] <= len(data)

"""The texts that name a broker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidValue
from broker.transport import Address, parse, parse_list


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://127.0.0.1:4870", Address("tcp", host="127.0.0.1", port=4870)),
        ("tcp://broker-0.cluster_a.local:0", Address("tcp", host="broker-0.cluster_a.local")),
        ("tcp://[::1]:65535", Address("tcp", host="::1", port=65_535)),
        ("tcp://[fe80::1%eth0]:1", Address("tcp", host="fe80::1%eth0", port=1)),
        ("zmq+tcp://host:5000", Address("zmq+tcp", host="host", port=5000)),
        ("ucx://host:5000", Address("ucx", host="host", port=5000)),
        ("unix:///run/tensorbus.sock", Address("unix", path="/run/tensorbus.sock")),
        ("unix:///tmp/with space/ä.sock", Address("unix", path="/tmp/with space/ä.sock")),
        ("zmq+ipc:///run/z", Address("zmq+ipc", path="/run/z")),
        (
            "zmq+tcp://[::1]:5000?curve=/etc/keys:1/b.key&key=/c.key_secret",
            Address("zmq+tcp", "::1", 5000, options=(("curve", "/etc/keys:1/b.key"), ("key", "/c.key_secret"))),
        ),
        ("zmq+ipc:///run/z?curve=/b.key", Address("zmq+ipc", path="/run/z", options=(("curve", "/b.key"),))),
        ("inproc://job/1", Address("inproc", name="job/1")),
    ],
)
def test_an_address_is_read_and_written_back(text: str, address: Address) -> None:
    assert parse(text) == address
    assert str(address) == text


def test_a_scheme_may_be_written_in_capitals_and_an_ipv6_address_in_full() -> None:
    assert str(parse("TCP://[0:0:0:0:0:0:0:1]:4870")) == "tcp://[::1]:4870"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no scheme"),
        ("zmq+tcp://host:1?", "unknown option ''"),
        ("zmq+tcp://host:1?curve", "absolute path"),
        ("zmq+tcp://host:1?curve=b.key", "absolute path"),
        ("zmq+tcp://host:1?curve=/a&curve=/b", "stands there twice"),
        ("zmq+tcp://host:1?secret=/a", "unknown option 'secret'"),
        ("tcp://host:1?curve=/a", "port"),
        ("127.0.0.1:4870", "no scheme"),
        ("http://host:1", "known ones are tcp, tls, unix, inproc"),
        ("tcp://", "no port"),
        ("tcp://host", "no port"),
        ("tcp://[::1]", "no port"),
        ("tcp://host:", "port must be a number"),
        ("tcp://host:http", "port must be a number"),
        ("tcp://host:-1", "port must be a number"),
        ("tcp://host:65536", "from 0 to 65535"),
        ("tcp://host:٤٨", "port must be a number"),
        ("tcp://host:4870/", "'4870/'"),
        ("tcp://:4870", "0.0.0.0"),
        ("tcp://*:4870", "not a host name"),
        ("tcp://user@host:4870", "not a host name"),
        ("tcp://a b:4870", "not a host name"),
        ("tcp://::1:4870", "brackets"),
        ("tcp://[host]:4870", "not an IPv6 address"),
        ("unix://", "no path"),
        ("unix://run/x", "unix:///run/x"),
        ("unix:///a\0b", "NUL"),
        ("unix:///" + "x" * 107, "108 bytes, a socket's may have 107"),
        ("unix:///" + "ä" * 54, "109 bytes"),
        ("inproc://", "inproc://name"),
        ("inproc://two words", "without spaces"),
        ("inproc://" + "x" * 129, "129 bytes, the limit is 128"),
    ],
)
def test_a_malformed_address_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse(text)
    assert problem in str(caught.value)
    assert caught.value.value == text
    assert caught.value.what == "address"


def test_the_longest_path_of_a_socket_is_allowed() -> None:
    path = "/" + "x" * 106
    assert parse(f"unix://{path}").path == path


def test_a_list_is_split_at_commas() -> None:
    assert parse_list("tcp://a:1, unix:///b") == (parse("tcp://a:1"), parse("unix:///b"))
    assert parse_list("tcp://a:1") == (parse("tcp://a:1"),)


@pytest.mark.parametrize("text", ["", "tcp://a:1,", "tcp://a:1,,tcp://b:1", "tcp://a:1,b:1"])
def test_a_list_with_a_malformed_member_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="no scheme"):
        parse_list(text)


@given(st.sampled_from(["tcp", "unix", "inproc", "zmq+tcp", "x"]), st.text(max_size=120))
def test_any_text_is_read_or_refused_and_what_is_read_is_written_back_the_same(scheme: str, rest: str) -> None:
    try:
        address = parse(f"{scheme}://{rest}")
    except InvalidValue:
        return
    assert parse(str(address)) == address

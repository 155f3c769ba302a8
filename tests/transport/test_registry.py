"""Which transport serves which scheme."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from broker.errors import ConnectError, InvalidValue
from broker.transport import (
    Address,
    Connection,
    Listener,
    Transport,
    connect,
    listen,
    register,
    registry,
    transport_for,
)


class Unreachable(Transport):
    """A transport of another scheme; it reaches nobody."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme

    @property
    def scheme(self) -> str:
        return self._scheme

    def connect(self, address: Address, timeout_s: float) -> Connection:
        raise ConnectError(str(address), f"gave up after {timeout_s:g} s")

    def listen(self, address: Address) -> Listener:
        raise InvalidValue("address", str(address), "nobody can listen here")


@pytest.fixture(autouse=True)
def _registrations_end_with_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_transports", dict(registry._transports))
        yield


@pytest.mark.parametrize("scheme", ["tcp", "unix", "inproc"])
def test_a_built_in_transport_serves_its_scheme(scheme: str) -> None:
    assert transport_for(scheme).scheme == scheme
    assert transport_for(scheme) is transport_for(scheme)


def test_an_unknown_scheme_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidValue, match="tcp, tls, unix, inproc, zmq\\+tcp, zmq\\+ipc, ucx"):
        transport_for("carrier-pigeon")


def test_a_registered_transport_serves_its_scheme_and_is_known() -> None:
    transport = Unreachable("pigeon")
    register(transport)
    assert transport_for("pigeon") is transport
    with pytest.raises(InvalidValue, match="ucx, pigeon"):
        transport_for("carrier-pigeon")


def test_a_registered_transport_replaces_the_one_before() -> None:
    register(Unreachable("tcp"))
    with pytest.raises(ConnectError, match="gave up after 0.5 s"):
        connect("tcp://127.0.0.1:1", 0.5)
    with pytest.raises(InvalidValue, match="nobody can listen here"):
        listen(Address("tcp", host="127.0.0.1"))


def test_a_transport_whose_library_is_missing_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BUILT_IN", {"smoke": "library_that_is_not_installed.smoke"})
    with pytest.raises(InvalidValue, match="No module named 'library_that_is_not_installed'"):
        transport_for("smoke")


def test_a_malformed_address_is_refused_before_any_transport_is_asked() -> None:
    with pytest.raises(InvalidValue, match="no scheme"):
        connect("nowhere", 1.0)


def test_an_optional_transport_is_not_imported_for_another() -> None:
    program = (
        "import sys\n"
        "from broker.transport import registry\n"
        "for scheme in ('tcp', 'unix', 'inproc'):\n"
        "    registry.transport_for(scheme)\n"
        "print(sorted(set(registry.BUILT_IN.values()) & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "['broker.transport.inproc', 'broker.transport.tcp', 'broker.transport.unix']"

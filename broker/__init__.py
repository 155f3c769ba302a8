"""The tensorbus broker."""

import sys

from broker.transport.embedding import set_broker_factory


def _start_embedded(name: str) -> None:
    # Imported when it is needed, so that a client of another process's broker does not load a broker of its own.
    from broker import embedded

    embedded.start(name)


def _check_machine(byte_order: str = sys.byteorder) -> None:
    """Refuses to run where numbers in shared memory and in arrays would be taken for other ones.

    Raises:
        ImportError: the machine has the byte order that nothing here was written for.
    """
    if byte_order != "little":
        raise ImportError(f"this machine is {byte_order}-endian, and tensorbus takes a little-endian one")


_check_machine()
set_broker_factory(_start_embedded)

"""The tensorbus broker."""

from broker.transport.embedding import set_broker_factory


def _start_embedded(name: str) -> None:
    # Imported when it is needed, so that a client of another process's broker does not load a broker of its own.
    from broker import embedded

    embedded.start(name)


set_broker_factory(_start_embedded)

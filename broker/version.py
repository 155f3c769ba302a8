"""Which tensorbus this is."""

from __future__ import annotations


def version() -> str:
    """The installed version of tensorbus; `unknown` when it runs from a tree that was never installed."""
    # Not for every command: it takes a while to import.
    from importlib import metadata

    try:
        return metadata.version("tensorbus")
    except metadata.PackageNotFoundError:
        return "unknown"

"""The type of everything that is sent: flat bytes in memory."""

from __future__ import annotations

Buffer = bytes | bytearray | memoryview
"""Flat bytes (format `B`, one dimension, contiguous). Python 3.12 has a wider `collections.abc.Buffer`."""

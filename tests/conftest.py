"""Settings shared by all tests."""

from __future__ import annotations

from hypothesis import settings

# The same examples on every run and no time limit per example: a busy machine must not make a test fail.
settings.register_profile("tensorbus", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("tensorbus")

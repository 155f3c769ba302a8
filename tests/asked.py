"""Runs its argument: the process of the tests of tests/forks.py."""

from __future__ import annotations

import sys

exec(sys.argv[1])

"""Whether UCXX is here, for the tests that need it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

WITHOUT_UCXX = find_spec("ucxx") is None
MISSING = "UCXX is not installed: pip install 'tensorbus[ucx]'"
NEEDS_UCXX = pytest.mark.skipif(WITHOUT_UCXX, reason=MISSING)


def need_ucxx() -> None:
    """Skips the test where there is none."""
    if WITHOUT_UCXX:
        pytest.skip(MISSING)

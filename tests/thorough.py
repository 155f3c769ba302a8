"""Whether this run is one of all that there is: `make test-thorough`, which sets HYPOTHESIS_PROFILE=thorough.

Any other run leaves out what would go through the same code once more (tests/clients/conftest.py) and tries fewer
examples (tests/conftest.py); no assertion is left out.
"""

from __future__ import annotations

import os

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def rounds(all_of_them: int) -> int:
    """How often what is random is tried, examples or killed clients: so often in a thorough run, else a third."""
    return all_of_them if THOROUGH else -(-all_of_them // 3)

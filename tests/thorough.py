"""Whether this run is one of all that there is: `make test-thorough`, which sets HYPOTHESIS_PROFILE=thorough.

Any other run leaves out what would go through the same code once more (tests/clients/conftest.py) and tries fewer
examples (tests/conftest.py); no assertion is left out.
"""

from __future__ import annotations

import os

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"

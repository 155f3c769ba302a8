"""Tokens of tensorbus in texts: whatever a text is made of, none that it holds is readable.

A token is `tb_`, its number, `_` and its secret (broker/security/tokens.py). The number may be shown; it is what one
looks for in a list of tokens.
"""

from __future__ import annotations

import re
from typing import Final

_TOKEN: Final = re.compile(r"\btb_([0-9a-f]{1,32})_[A-Za-z0-9_-]+")


def masked(text: str) -> str:
    """The text without the secrets of the tokens in it."""
    return _TOKEN.sub(r"tb_\1_***", text) if "tb_" in text else text

"""Files in TOML, which people write: read whole, within bounds, or refused in plain words."""

from __future__ import annotations

import re
import tomllib
from typing import Final

from broker.limits import TOML_BYTES_MAX, TOML_LEVELS_MAX

_PART: Final = r"""[\w"'-]++"""
_DEEP: Final = re.compile(rf"""(?<![\w"'-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{TOML_LEVELS_MAX}}}""")
"""A key of too many levels; the parser takes kilobytes for each."""


def read_toml(text: str) -> dict[str, object]:
    """What a file says.

    Raises:
        ValueError: why it cannot be read.
    """
    if len(text) > TOML_BYTES_MAX:
        raise ValueError(f"it has {len(text)} characters, and {TOML_BYTES_MAX} are the most")
    if _DEEP.search(text) is not None:
        raise ValueError(f"a word in it has more than {TOML_LEVELS_MAX} dots; as a key it would be nested too deeply")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error

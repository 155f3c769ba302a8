"""The dashboard's files: a page, its style and its scripts, which ask nobody for anything but the broker itself.

They are served as they are, from this table and from nowhere else. What one of them may do is said once, in HEADERS.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = "/dashboard/"
HEADERS: Final = {
    # Scripts and styles come from files alone, so that no name that a client gives itself can become one; and what
    # would turn text into markup throws (Trusted Types).
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # After an update of the broker, an old script would not understand what it is told.
    "Cache-Control": "no-store",
}
_SCRIPT: Final = "text/javascript"
_FILES: Final = {
    "page.html": "text/html",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
    "main.js": _SCRIPT,
    "elements.js": _SCRIPT,
    "words.js": _SCRIPT,
    "glance.js": _SCRIPT,
    "trouble.js": _SCRIPT,
    "groups.js": _SCRIPT,
    "timeline.js": _SCRIPT,
    "tables.js": _SCRIPT,
    "tap.js": _SCRIPT,
}


@dataclass(frozen=True, slots=True)
class File:
    """One file as it is served.

    Attributes:
        text: all of it.
        content_type: without the character set, which is UTF-8.
    """

    text: str
    content_type: str


def read_files() -> dict[str, File]:
    """The files by the paths at which they are served; the page is at `/`.

    Raises:
        OSError: the installation lacks one.
    """
    folder = Path(__file__).parent
    files = {name: File((folder / name).read_text(encoding="utf-8"), kind) for name, kind in _FILES.items()}
    return {"/" if name == "page.html" else f"{FOLDER}{name}": file for name, file in files.items()}

"""docs/security.md: each test, command and page that it names as shown is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fuzz.parsers import PARSERS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/security.md").read_text(encoding="utf-8")
TABLES = ("Identities", "Permissions", "Limits", "Known attacks on systems of this kind")
"""Whose last column is what shows it."""


def rows(text: str, section: str) -> list[list[str]]:
    """The rows of a section's tables, without their heads."""
    found = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in found.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def missing(text: str) -> list[str]:
    """What a text refers to that is not there."""
    files = set(re.findall(r"\b(?:tests|broker|clients|docs|examples)/[\w./-]*\w", text))
    modules = set(re.findall(r"`python -m ([\w.]+)", text))
    pages = set(re.findall(r"\]\(([\w./-]+\.md)\)", text))
    gone = [name for name in files if not (ROOT / name).exists()]
    gone += [name for name in pages if not (ROOT / "docs" / name).exists()]
    for name in modules:
        path = ROOT / name.replace(".", "/")
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
            gone.append(name)
    # A folder of tests shows something only if there are tests in it.
    return gone + [name for name in files if (ROOT / name).is_dir() and not list((ROOT / name).rglob("test_*.py"))]


def test_what_the_document_names_is_there() -> None:
    assert missing(TEXT) == []


@pytest.mark.parametrize("section", TABLES)
def test_each_line_of_its_tables_names_what_shows_it(section: str) -> None:
    found = rows(TEXT, section)
    assert len(found) > 4
    without = [row[0] for row in found if not re.search(r"tests/\w+|`python -m", row[-1])]
    assert without == []


def test_each_parser_that_is_fuzzed_is_one_of_those_whose_inputs_are_recorded() -> None:
    section = TEXT.split("\n## Fuzzing\n")[1]
    assert [name for name in PARSERS if not re.search(rf"\b{name}\b", section)] == []


@pytest.mark.parametrize(
    "text",
    ["see tests/test_nothing_at_all.py", "`python -m tests.nothing`", "[page](nothing.md)", "broker/nothing.py"],
)
def test_what_is_not_there_is_found(text: str) -> None:
    assert len(missing(text)) == 1

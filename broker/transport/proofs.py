"""What a connection proves by itself of who is at its other end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Certificate:
    """Of the certificate that the peer has shown, and of which it has the key: whom it names.

    Attributes:
        name: the subject's common name.
        units: the subject's organizational units.
        organization: the subject's organization.
        serial: in hexadecimal digits.
    """

    name: str
    units: tuple[str, ...]
    organization: str
    serial: str

    @classmethod
    def of(cls, parsed: Mapping[str, object]) -> Certificate:
        """As the ssl module tells it: `SSLObject.getpeercert()`."""
        subject: list[tuple[str, str]] = [pair for group in parsed.get("subject", ()) for pair in group]  # type: ignore[attr-defined]

        def values(wanted: str) -> tuple[str, ...]:
            return tuple(value for name, value in subject if name == wanted)

        first = next(iter(values("commonName")), "")
        organization = next(iter(values("organizationName")), "")
        return cls(first, values("organizationalUnitName"), organization, str(parsed.get("serialNumber", "")))

"""What a peer sends over TLS without saying anything, as changes of keys: so much at once, and then so much a second.

Of what arrives, data is what it says, and each record of data has some bytes around it. All the rest costs time and
tells nothing: a change of keys has 27 bytes and takes some 20 us. A record that is not whole yet counts as silence
until the rest of it comes; the allowance is more than one record. Padding (RFC 8446, section 5.4) counts as silence.
"""

from __future__ import annotations

from typing import Final

from broker.limits import TLS_SILENT_BYTES_MAX, TLS_SILENT_BYTES_PER_S

RECORD_EXTRA_BYTES: Final = 5 + 1 + 16
"""Around the data of each record: header, kind and tag (RFC 8446, section 5.2)."""


class Silence:
    """How much of one peer's allowance is used up.

    Attributes:
        bytes: of silence that count at the moment.
    """

    __slots__ = ("_looked_s", "bytes")

    def __init__(self) -> None:
        self.bytes = 0.0
        self._looked_s = 0.0

    def came(self, taken_bytes: int) -> None:
        """So much has arrived that may be silence."""
        self.bytes += taken_bytes

    def said(self, data_bytes: int, records: int) -> None:
        """So much of it was data, in so many records."""
        self.bytes = max(0.0, self.bytes - data_bytes - records * RECORD_EXTRA_BYTES)

    def is_over(self, now_s: float, unread_bytes: int = 0) -> bool:
        """Whether it is too much by now; time that has passed since the last look has taken some of it away.

        Args:
            now_s: monotonic time.
            unread_bytes: of what came, what nobody has looked at yet, for want of room.
        """
        self.bytes = max(0.0, self.bytes - (now_s - self._looked_s) * TLS_SILENT_BYTES_PER_S)
        self._looked_s = now_s
        return self.bytes - unread_bytes > TLS_SILENT_BYTES_MAX

    def __repr__(self) -> str:
        return f"<Silence bytes={self.bytes:.0f}>"

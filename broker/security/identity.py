"""Who a session is, as far as it has been proven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Proof = Literal["none", "unix", "token", "certificate"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a session has proven of itself. What a client merely says, its name in the hello, is not part of it.

    Attributes:
        name: whom the certificate, the token or the kernel names; empty if nothing was proven.
        roles: names of the roles that go with it.
        tenant: whose topics and groups it sees; empty is the tenant of those that have none.
        proof: what has proven it.
        credential: which certificate or token it was, by the number that is no secret; empty for the other proofs.
    """

    name: str
    roles: tuple[str, ...] = ()
    tenant: str = ""
    proof: Proof = "none"
    credential: str = ""


ANYBODY: Final = Identity("")
"""Who has proven nothing."""

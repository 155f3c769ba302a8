"""Who a session is, as far as it has been proven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

ADMIN: Final = "admin"
"""The role that may do everything, unless another role denies something."""
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

    def called(self, name: str) -> str:
        """What others are told that a session is called: no client can pass for somebody that it has not proven to be.

        Whoever has proven a name is called by it, or by it, a slash and what the client calls itself: `trainer-3` that
        calls itself `loader` is `trainer-3/loader`. Who proves nothing is called as it likes, and so is an admin, who
        may do everything.

        Args:
            name: what the client calls itself; may be empty.

        Returns:
            The name; empty if nothing was proven nor said.
        """
        if not self.name or ADMIN in self.roles or name.startswith(f"{self.name}/"):
            return name
        return self.name if name in ("", self.name) else f"{self.name}/{name}"


ANYBODY: Final = Identity("")
"""Who has proven nothing."""

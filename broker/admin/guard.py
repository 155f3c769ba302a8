"""Who may look at the HTTP interface, by what they show.

On loopback everybody may. Beyond it a request needs an identity: a certificate at the TLS handshake, or a token, as
`Authorization: Bearer TOKEN`, or as the password of Basic, which is what a browser can ask for. `/healthz` and
`/readyz` tell nobody anything and are for everybody.

What was published is for those who may subscribe to it, also on loopback: the tap, and the last messages of members of
groups. Streams ask again with each event, so that what is revoked ends them.
"""

from __future__ import annotations

import base64
import binascii
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from broker.errors import ListenError, PermissionDenied
from broker.security.audit import AuditEvent, AuditKind
from broker.security.identity import ANYBODY, Identity
from broker.security.permissions import Rights
from broker.security.roles import Verb
from broker.server import Server
from broker.transport.addresses import Address
from broker.transport.proofs import Certificate
from broker.transport.tcp import is_loopback
from broker.transport.tls.contexts import check_successor, listener_context

log = logging.getLogger(__name__)

OPEN_PATHS: Final = ("/healthz", "/readyz")
_CHALLENGE: Final = 'Basic realm="tensorbus: any name, and a token as the password", Bearer'
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """Looks at every request to the HTTP interface of one server.

    Attributes:
        context: for TLS; None where it is spoken in the clear.
    """

    def __init__(self, server: Server, address: Address) -> None:
        """Args:
        server: whose interface it is.
        address: where it listens.

        Raises:
            ListenError: strangers could look at it there.
            InvalidValue: the certificates cannot be used.
        """
        config = server.config
        self._server = server
        local = is_loopback(address)
        self.context = None if local or not config.certificates else listener_context(config.certificates)
        self._current = self.context
        if self.context is not None:
            self.context.sni_callback = self._take_current
        self._asks = not local and not config.insecure
        server.admission.also(f"certificates of {self.scheme}://{address.host}:{address.port}", self.reload)
        if self._asks and self.context is None and not config.tokens:
            raise ListenError(
                f"http://{address.host}:{address.port}", "strangers could look at it there: it is not on loopback. "
                "Name certificates (--certificates DIR) or tokens (--tokens FILE); where you trust the whole network, "
                "say --insecure; --admin off does without",
            )  # fmt: skip
        if not local and self.context is None and config.tokens:
            log.warning(
                "http.in_the_clear host=%s port=%d advice=%r", address.host, address.port,
                "whoever reads along learns the tokens; name certificates (--certificates DIR), and it is https",
            )  # fmt: skip

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "http" if self.context is None else "https"

    def reload(self) -> None:
        """Takes over certificates that have been replaced, for connections from here on.

        Raises:
            InvalidValue: they cannot be used, and all stays as it was.
        """
        if self.context is None or self._current is None:
            return
        folder = self._server.config.certificates
        context = listener_context(folder)
        check_successor(self._current, context, folder)
        self._current = context
        # The one thing that is taken from the context before it is asked for.
        self.context.verify_flags |= context.verify_flags

    def _take_current(self, handshake: ssl.SSLObject, host: str | None, context: ssl.SSLContext) -> None:
        """OpenSSL asks at each handshake which host it is for. The listener keeps its first context; what counts for
        this connection, whom it trusts too, comes from the one that was read last."""
        assert self._current is not None
        handshake.context = self._current

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers, or lets the request through."""
        if request.path in OPEN_PATHS:
            return await handler(request)
        try:
            identity = self._identity(request)
        except PermissionDenied as error:
            self._record(request, str(error))
            return _refusal(401, str(error), {"WWW-Authenticate": _CHALLENGE})
        problem = self._problem(identity, request.path)
        if problem:
            return self.refuse(request, problem)
        return await handler(request)

    def rights(self, identity: Identity) -> Rights:
        """What somebody may do at the moment."""
        return self._server.state.authority.permissions.of(identity)

    def visit(self, request: web.Request) -> tuple[Identity, str]:
        """Who asks, and why they may not see any more what they ask for, in words."""
        try:
            identity = self._identity(request)
        except PermissionDenied as error:
            return ANYBODY, str(error)
        return identity, self._problem(identity, request.path)

    def _problem(self, identity: Identity, path: str) -> str:
        """Why somebody may not see what is at a path, in words. It is about all tenants, so it is for those of none."""
        if not self._asks:
            # On this host's own address everybody may look.
            return ""
        rights = self.rights(identity)
        if identity.tenant:
            return f"{path}: it shows all tenants, and {rights.who} belongs to {identity.tenant!r}; ask as a client"
        views = _VIEWS.get(path, ("sessions",))
        return next((rights.refusal(Verb.ADMIN, view) for view in views if not rights.may(Verb.ADMIN, view)), "")

    def _identity(self, request: web.Request) -> Identity:
        """Who asks.

        Raises:
            PermissionDenied: somebody who has to say it, and does not.
        """
        parsed = request.transport.get_extra_info("peercert") if request.transport is not None else None
        certificate = Certificate.of(parsed) if parsed else None
        return self._server.admission.visitor(certificate, _token_of(request), strangers=not self._asks)

    def refuse(self, request: web.Request, problem: str) -> web.Response:
        """The answer to somebody who may not, which is recorded."""
        self._record(request, problem)
        return _refusal(403, problem, {})

    def _record(self, request: web.Request, cause: str) -> None:
        peer, path = f"{self.scheme}://{request.remote}", request.path
        log.warning("http.refused peer=%s path=%r cause=%s", peer, path, cause)
        self._server.admission.audit(
            AuditEvent(AuditKind.REFUSED, peer=peer, action=request.method, target=path, detail=cause)
        )


class Visitor:
    """Whoever has sent a request, for as long as its answer goes on."""

    def __init__(self, guard: Guard, request: web.Request) -> None:
        self._guard = guard
        self._request = request

    @property
    def problem(self) -> str:
        """Why they may not see any more what they have asked for, in words."""
        return self._guard.visit(self._request)[1]

    @property
    def reads_everything(self) -> bool:
        """Whether there is nothing that they may not read."""
        identity, problem = self._guard.visit(self._request)
        return not (problem or identity.tenant or self._guard.rights(identity).limited)

    def may_read(self, tenant: str, topic: str) -> bool:
        """Whether they may subscribe to a topic of a tenant."""
        return not self.unreadable(tenant, topic)

    def unreadable(self, tenant: str, topic: str) -> str:
        """Why they may not read a topic of a tenant, in words."""
        identity, problem = self._guard.visit(self._request)
        if problem:
            return problem
        rights = self._guard.rights(identity)
        if identity.tenant and identity.tenant != tenant:
            return f"tenant {tenant!r}: {rights.who} belongs to tenant {identity.tenant!r}"
        verb, target = Verb.SUBSCRIBE, topic
        if tenant and not identity.tenant and not rights.may(Verb.ADMIN, f"tenants/{tenant}"):
            verb, target = Verb.ADMIN, f"tenants/{tenant}"
        elif rights.may(Verb.SUBSCRIBE, topic):
            return ""
        words = rights.refusal(verb, target)
        return words if identity.name else f"{words}; show a token that may (Authorization: Bearer TOKEN)"

    def refuse(self, problem: str) -> web.Response:
        """The answer that they may not, which is recorded."""
        return self._guard.refuse(self._request, problem)


GUARD: Final = web.AppKey("guard", Guard)
"""Where the application has it."""
_VIEWS: Final = {
    "/metrics": ("server",), "/api/v1/server": ("server",), "/api/v1/topics": ("topics",),
    "/api/v1/groups": ("groups",), "/api/v1/events": ("server", "sessions", "topics", "groups"),
}  # fmt: skip
"""What one has to be allowed to see; elsewhere it is the sessions, with all else."""


def visitor(request: web.Request) -> Visitor:
    """Who has sent a request that was let through."""
    return Visitor(request.app[GUARD], request)


def _token_of(request: web.Request) -> str:
    """The token that a request shows; empty when it shows none."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _refusal(status: int, problem: str, headers: dict[str, str]) -> web.Response:
    body = msgspec.json.encode({"error": problem})
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)

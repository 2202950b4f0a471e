"""Who asks, for systems that can sign nothing: client id and secret, by HTTP Basic (RFC 7617) or a WS-Security UsernameToken.

Only at the doors for messages (``/messages``, ``/soap``), only over TLS or from this machine, and only for clients registered with the
digest of a random secret (fhir_server.smart_clients). A bearer token is taken as everywhere.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final

from fastapi import Depends, Request

from fhir_server.access import Principal
from fhir_server.api.security import address_of, principal, refused
from fhir_server.authorization import Clients
from fhir_server.errors import Category, Fault
from fhir_server.settings import OWN_MACHINE

_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="tongjian", Basic realm="tongjian", charset="UTF-8"'}


async def asker_of(request: Request) -> Principal:
    """The principal of a bearer token, or of Basic credentials. Raises Fault UNAUTHENTICATED, after an audit entry."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return await principal(request)
    try:
        name, colon, secret = base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, ValueError):
        name = colon = secret = ""
    return await by_password(request, name if colon else "", secret)


async def by_password(request: Request, name: str, secret: str) -> Principal:
    """The system client of this id and secret. Raises Fault UNAUTHENTICATED, after an audit entry, without saying which is wrong."""
    if request.url.scheme != "https" and address_of(request) not in OWN_MACHINE:
        await refused(request, None, "authenticate", ())
        text = "An id with a secret is taken over HTTPS only: it could be read on the way. Use https, and another secret from now on."
        raise Fault(Category.FORBIDDEN, text)
    clients: Clients = request.app.state.clients
    found = clients.by_secret(name, secret)
    if found is None:
        await refused(request, None, "authenticate", ())
        text = "The id or the secret of the client is not right, or it has none."
        raise Fault(Category.UNAUTHENTICATED, text, headers=_CHALLENGE)
    return found


MessageAsker = Annotated[Principal, Depends(asker_of)]
"""Parameter type of a route that takes a token or an id with a secret."""

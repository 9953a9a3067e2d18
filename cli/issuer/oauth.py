"""What the development issuer grants, and to whom: clients, authorization requests, codes, tokens.

Called by `cli.issuer.app`; free of HTTP but for the fields of a form. What stays true: a code works
once, for a minute, for the client, address and PKCE challenge it was made for; nobody gets a scope
that is not the client's; no more than CODES_MAX codes are held.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Literal
from urllib.parse import unquote_plus

from msgspec import Struct

from scoreboard.security.tokens import READ, UPDATE, UPDATE_ANY, LocalIssuer

CODE_LIFE_S: Final = 60.0
CODES_MAX: Final = 1000
"""Codes held at once; beyond it the oldest goes, and its player signs in again."""

STATE_LENGTH_MAX: Final = 512
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")

Fields = Sequence[tuple[str, str]]
"""A query or form as it came: names may repeat, which only a reader of the fields can refuse."""


class Client(Struct, frozen=True):
    """Who may ask for tokens, how, and for what at most."""

    id: str
    grant: Literal["authorization_code", "client_credentials"]
    scopes: tuple[str, ...]
    token_life_s: int


PAGE: Final = Client("scoreboard-page", "authorization_code", (UPDATE, READ), 3600)
"""The live page: keeps no secret, so PKCE. An hour, as there is nothing to refresh with."""

GAME_SERVER: Final = Client("game-server", "client_credentials", (UPDATE_ANY, READ), 600)
"""A game server: has a secret, and a new token whenever it asks."""

CLIENTS: Final = {client.id: client for client in (PAGE, GAME_SERVER)}


class OAuthError(Exception):
    """A refusal in the words of RFC 6749: ``error`` is a code of its lists."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error
        self.description = description


class RedirectableError(OAuthError):
    """A refusal the browser takes back to the page: the address is known to be the page's."""

    def __init__(self, error: str, description: str, redirect_uri: str, state: str) -> None:
        super().__init__(error, description)
        self.redirect_uri = redirect_uri
        self.state = state


class AuthorizationRequest(Struct, frozen=True):
    """A checked authorization request: what the form asks a player to agree to."""

    client_id: str
    redirect_uri: str
    state: str
    challenge: str
    scopes: tuple[str, ...]


class TokenResponse(Struct, frozen=True, kw_only=True):
    """The token endpoint's answer (RFC 6749, 5.1)."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 (a word of the protocol)
    expires_in: int
    scope: str


def parse_authorization_request(
    fields: Fields, redirect_uris: Collection[str]
) -> AuthorizationRequest:
    """Check an authorization request.

    Raises OAuthError where the browser must not be sent anywhere, RedirectableError where it may.
    """
    values = _once(fields)
    client = CLIENTS.get(values.get("client_id", ""))
    if client is None:
        raise OAuthError("invalid_request", "The client_id is of no client of this issuer.")
    redirect_uri = values.get("redirect_uri", "")
    if redirect_uri not in redirect_uris:
        raise OAuthError("invalid_request", "The redirect_uri is not the scoreboard page's.")
    state = values.get("state", "")
    try:
        _check_sign_in(values, client)
        scopes = _scopes(values, client)
    except OAuthError as refused:
        shown = state if len(state) <= STATE_LENGTH_MAX else ""
        raise RedirectableError(refused.error, refused.description, redirect_uri, shown) from None
    return AuthorizationRequest(client.id, redirect_uri, state, values["code_challenge"], scopes)


class AuthorizationServer:
    """Hands out codes and tokens of one local issuer."""

    def __init__(
        self,
        issuer: LocalIssuer,
        audience: str,
        game_server_secret: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` gives seconds that only grow."""
        self._issuer = issuer
        self._audience = audience
        self._secret = game_server_secret
        self._clock = clock
        self._codes: dict[str, _Grant] = {}
        """Code → what it stands for; all live equally long, so the first is the oldest."""

    def create_code(self, request: AuthorizationRequest, subject: str) -> str:
        """Make the code that stands for ``subject`` having agreed to ``request``."""
        now_s = self._clock()
        while self._codes:
            oldest = next(iter(self._codes))
            if len(self._codes) < CODES_MAX and self._codes[oldest].until_s > now_s:
                break
            del self._codes[oldest]
        code = secrets.token_urlsafe(32)
        self._codes[code] = _Grant(request, subject, now_s + CODE_LIFE_S)
        return code

    def issue(self, fields: Fields, authorization: str = "") -> TokenResponse:
        """Answer a token request; ``authorization`` is the header of that name.

        Raises OAuthError.
        """
        values = _once(fields)
        grant = values.get("grant_type", "")
        if not grant:
            raise OAuthError("invalid_request", "grant_type is missing.")
        if grant not in {client.grant for client in CLIENTS.values()}:
            raise OAuthError("unsupported_grant_type", "This issuer knows no such grant_type.")
        client = self._authenticate(values, authorization)
        if client.grant != grant:
            raise OAuthError("unauthorized_client", f"{client.id} may not use this grant_type.")
        if grant == "client_credentials":
            return self._sign(client, client.id, _scopes(values, client))
        redeemed = self._redeem(values, client)
        return self._sign(client, redeemed.subject, redeemed.request.scopes)

    def _authenticate(self, values: Mapping[str, str], authorization: str) -> Client:
        client_id, secret = values.get("client_id", ""), values.get("client_secret", "")
        if authorization:
            if secret:
                raise OAuthError("invalid_request", "Send the secret in one way, not in two.")
            named, secret = _basic(authorization)
            if client_id not in {"", named}:
                raise OAuthError("invalid_request", "Two different client_ids were sent.")
            client_id = named
        client = CLIENTS.get(client_id)
        expected = self._secret if client is GAME_SERVER else ""
        is_right = hmac.compare_digest(secret.encode(), expected.encode())
        if client is None or not is_right:
            raise OAuthError("invalid_client", "No such client, or not with this secret.")
        return client

    def _redeem(self, values: Mapping[str, str], client: Client) -> "_Grant":
        # Taken out whatever follows: a code that came with anything wrong has leaked.
        grant = self._codes.pop(values.get("code", ""), None)
        verifier = values.get("code_verifier", "")
        if not verifier or "code" not in values or "redirect_uri" not in values:
            raise OAuthError("invalid_request", "Send code, redirect_uri and code_verifier.")
        if (
            grant is None
            or grant.until_s <= self._clock()
            or grant.request.client_id != client.id
            or grant.request.redirect_uri != values["redirect_uri"]
            or not _fits(verifier, grant.request.challenge)
        ):
            # Which of these it was is nobody's business who holds another's code.
            raise OAuthError(
                "invalid_grant", "The code is unknown, used, expired, or for another request."
            )
        return grant

    def _sign(self, client: Client, subject: str, scopes: Sequence[str]) -> TokenResponse:
        return TokenResponse(
            access_token=self._issuer.issue(
                subject, scopes, client.token_life_s, audience=self._audience
            ),
            expires_in=client.token_life_s,
            scope=" ".join(scopes),
        )


class _Grant(Struct, frozen=True):
    request: AuthorizationRequest
    subject: str
    until_s: float


def _once(fields: Fields) -> dict[str, str]:
    """Give the fields by name; an empty one counts as absent, a repeated one is refused."""
    values = {name: value for name, value in fields if value}
    if len({name for name, _ in fields}) < len(fields):
        raise OAuthError("invalid_request", "A parameter was sent twice.")
    return values


def _check_sign_in(values: Mapping[str, str], client: Client) -> None:
    if "response_type" not in values:
        raise OAuthError("invalid_request", "response_type is missing.")
    if values["response_type"] != "code":
        raise OAuthError("unsupported_response_type", "The response_type must be code.")
    if client.grant != "authorization_code":
        raise OAuthError("unauthorized_client", f"{client.id} signs nobody in.")
    if len(values.get("state", "")) > STATE_LENGTH_MAX:
        raise OAuthError("invalid_request", f"state has at most {STATE_LENGTH_MAX} characters.")
    if values.get("code_challenge_method") != "S256":
        raise OAuthError("invalid_request", "PKCE with code_challenge_method S256 is required.")
    if not _CHALLENGE.fullmatch(values.get("code_challenge", "")):
        raise OAuthError("invalid_request", "code_challenge must be base64url of a SHA-256.")


def _scopes(values: Mapping[str, str], client: Client) -> tuple[str, ...]:
    """Give the scopes asked for, the client's where none were; in the client's order."""
    wanted = frozenset(values.get("scope", "").split()) or frozenset(client.scopes)
    if not wanted <= frozenset(client.scopes):
        raise OAuthError("invalid_scope", f"{client.id} may have: {' '.join(client.scopes)}.")
    return tuple(scope for scope in client.scopes if scope in wanted)


def _fits(verifier: str, challenge: str) -> bool:
    if not _VERIFIER.fullmatch(verifier):
        return False
    digest = hashlib.sha256(verifier.encode()).digest()
    made = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return hmac.compare_digest(made, challenge)


def _basic(authorization: str) -> tuple[str, str]:
    """Read id and secret of a Basic header; both are form-encoded inside (RFC 6749, 2.3.1)."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise OAuthError("invalid_client", "The only scheme here is Basic.")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        raise OAuthError("invalid_client", "The Authorization header cannot be read.") from None
    client_id, _, secret = text.partition(":")
    return unquote_plus(client_id), unquote_plus(secret)

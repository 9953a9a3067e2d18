"""OAuth 2.0 of the development issuer: clients, authorization requests, codes and tokens. No I/O.

Invariants: a code is valid once, for a minute, and for its client, redirect URI and PKCE challenge
only; a client gets its own scopes only; at most CODES_MAX codes are stored.
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

from scoreboard.runtime.settings import Secret
from scoreboard.security.tokens import ADMIN, READ, UPDATE, UPDATE_ANY, LocalIssuer

CODE_LIFE_S: Final = 60.0
CODES_MAX: Final = 1000
"""Maximum codes stored; beyond it the oldest is removed, and its player must sign in again."""

STATE_LENGTH_MAX: Final = 512
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")

Fields = Sequence[tuple[str, str]]
"""The fields of a query or form, in which names can be repeated."""


class Client(Struct, frozen=True):
    """A registered client: its grant type, its scopes and the lifetime of its tokens.

    ``admin_scopes`` must be requested by name, and only the administrator can consent to them.
    """

    id: str
    grant: Literal["authorization_code", "client_credentials"]
    scopes: tuple[str, ...]
    token_life_s: int
    admin_scopes: tuple[str, ...] = ()


ADMINISTRATOR: Final = "admin"
"""The account that can consent to the scopes of administrators, with its password."""

PAGE: Final = Client("scoreboard-page", "authorization_code", (UPDATE, READ), 3600, (ADMIN,))
"""The pages: a public client with PKCE. Tokens last an hour, as it has no refresh token."""

GAME_SERVER: Final = Client("game-server", "client_credentials", (UPDATE_ANY, READ), 600)
"""A game server: a confidential client, which can request a new token at any time."""

CLIENTS: Final = {client.id: client for client in (PAGE, GAME_SERVER)}


class OAuthError(Exception):
    """An error of RFC 6749; ``error`` is one of its error codes."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error
        self.description = description


class RedirectableError(OAuthError):
    """An error that is reported by a redirect to the page, whose address is known to be valid."""

    def __init__(self, error: str, description: str, redirect_uri: str, state: str) -> None:
        super().__init__(error, description)
        self.redirect_uri = redirect_uri
        self.state = state


class AuthorizationRequest(Struct, frozen=True):
    """A valid authorization request."""

    client_id: str
    redirect_uri: str
    state: str
    challenge: str
    scopes: tuple[str, ...]

    @property
    def needs_administrator(self) -> bool:
        """Whether only the administrator can consent."""
        return ADMIN in self.scopes


class TokenResponse(Struct, frozen=True, kw_only=True):
    """The response of the token endpoint (RFC 6749, 5.1)."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 (a word of the protocol)
    expires_in: int
    scope: str


def parse_authorization_request(
    fields: Fields, redirect_uris: Collection[str]
) -> AuthorizationRequest:
    """Parse and check an authorization request.

    Raises OAuthError if the browser must not be redirected, RedirectableError if it may be.
    """
    values = _single_values(fields)
    client = CLIENTS.get(values.get("client_id", ""))
    if client is None:
        raise OAuthError("invalid_request", "The client_id is unknown.")
    redirect_uri = values.get("redirect_uri", "")
    if redirect_uri not in redirect_uris:
        raise OAuthError(
            "invalid_request", "The redirect_uri is not the address of the scoreboard page."
        )
    state = values.get("state", "")
    try:
        _check_parameters(values, client)
        scopes = _parse_scopes(values, client)
    except OAuthError as error:
        returned_state = state if len(state) <= STATE_LENGTH_MAX else ""
        raise RedirectableError(
            error.error, error.description, redirect_uri, returned_state
        ) from None
    return AuthorizationRequest(client.id, redirect_uri, state, values["code_challenge"], scopes)


class AuthorizationServer:
    """Issues the codes and tokens of one local issuer."""

    def __init__(
        self,
        issuer: LocalIssuer,
        audience: str,
        game_server_secrets: Callable[[], Sequence[Secret]],
        admin_passwords: Callable[[], Sequence[Secret]] = tuple,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Each callable returns the secrets that are valid at the moment of its call.

        ``clock`` must be monotonic, in seconds.
        """
        self._issuer = issuer
        self._audience = audience
        self._secrets = game_server_secrets
        self._admin_passwords = admin_passwords
        self._clock = clock
        self._codes: dict[str, _Grant] = {}
        """Grants by code; all codes have the same lifetime, so the first is the oldest."""

    def is_administrator(self, name: str, password: str) -> bool:
        """Return whether these are the name and a valid password of the administrator."""
        return _is_one_of(password, self._admin_passwords()) and name == ADMINISTRATOR

    def create_code(self, request: AuthorizationRequest, subject: str) -> str:
        """Create a code for the consent of ``subject`` to ``request``."""
        now_s = self._clock()
        while self._codes:
            oldest = next(iter(self._codes))
            if len(self._codes) < CODES_MAX and self._codes[oldest].expires_at_s > now_s:
                break
            del self._codes[oldest]
        code = secrets.token_urlsafe(32)
        self._codes[code] = _Grant(request, subject, now_s + CODE_LIFE_S)
        return code

    def issue(self, fields: Fields, authorization: str = "") -> TokenResponse:
        """Answer a token request; ``authorization`` is the Authorization header.

        Raises OAuthError.
        """
        values = _single_values(fields)
        grant = values.get("grant_type", "")
        if not grant:
            raise OAuthError("invalid_request", "grant_type is missing.")
        if grant not in {client.grant for client in CLIENTS.values()}:
            raise OAuthError("unsupported_grant_type", "The grant_type is not supported.")
        client = self._authenticate(values, authorization)
        if client.grant != grant:
            raise OAuthError("unauthorized_client", f"{client.id} may not use this grant_type.")
        if grant == "client_credentials":
            return self._issue_token(client, client.id, _parse_scopes(values, client))
        redeemed = self._redeem(values, client)
        return self._issue_token(client, redeemed.subject, redeemed.request.scopes)

    def _authenticate(self, values: Mapping[str, str], authorization: str) -> Client:
        client_id, secret = values.get("client_id", ""), values.get("client_secret", "")
        if authorization:
            if secret:
                raise OAuthError("invalid_request", "Send the client secret in one way only.")
            named, secret = _parse_basic(authorization)
            if client_id not in {"", named}:
                raise OAuthError(
                    "invalid_request", "The request contains two different client_ids."
                )
            client_id = named
        client = CLIENTS.get(client_id)
        expected = self._secrets() if client is GAME_SERVER else (Secret(""),)
        if client is None or not _is_one_of(secret, expected):
            raise OAuthError("invalid_client", "The client or its secret is invalid.")
        return client

    def _redeem(self, values: Mapping[str, str], client: Client) -> "_Grant":
        # The code is removed in any case: a code in an invalid request may have leaked.
        grant = self._codes.pop(values.get("code", ""), None)
        verifier = values.get("code_verifier", "")
        if not verifier or "code" not in values or "redirect_uri" not in values:
            raise OAuthError("invalid_request", "Send code, redirect_uri and code_verifier.")
        if (
            grant is None
            or grant.expires_at_s <= self._clock()
            or grant.request.client_id != client.id
            or grant.request.redirect_uri != values["redirect_uri"]
            or not _matches_challenge(verifier, grant.request.challenge)
        ):
            # The reason is not told, because the code may have been stolen.
            raise OAuthError(
                "invalid_grant", "The code is unknown, used, expired, or of another request."
            )
        return grant

    def _issue_token(self, client: Client, subject: str, scopes: Sequence[str]) -> TokenResponse:
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
    expires_at_s: float


def _single_values(fields: Fields) -> dict[str, str]:
    """Return the fields by name without empty ones.

    Raises OAuthError if a name is repeated.
    """
    values = {name: value for name, value in fields if value}
    if len({name for name, _ in fields}) < len(fields):
        raise OAuthError("invalid_request", "A parameter appears twice.")
    return values


def _check_parameters(values: Mapping[str, str], client: Client) -> None:
    if "response_type" not in values:
        raise OAuthError("invalid_request", "response_type is missing.")
    if values["response_type"] != "code":
        raise OAuthError("unsupported_response_type", "The response_type must be code.")
    if client.grant != "authorization_code":
        raise OAuthError("unauthorized_client", f"{client.id} may not use this response_type.")
    if len(values.get("state", "")) > STATE_LENGTH_MAX:
        raise OAuthError(
            "invalid_request", f"state may have at most {STATE_LENGTH_MAX} characters."
        )
    if values.get("code_challenge_method") != "S256":
        raise OAuthError("invalid_request", "PKCE with code_challenge_method S256 is required.")
    if not _CHALLENGE.fullmatch(values.get("code_challenge", "")):
        raise OAuthError("invalid_request", "code_challenge must be the base64url of a SHA-256.")


def _is_one_of(secret: str, expected: Sequence[Secret]) -> bool:
    # All are compared, so that the time does not tell which one is similar.
    matches = [hmac.compare_digest(secret.encode(), one.reveal().encode()) for one in expected]
    return any(matches)


def _parse_scopes(values: Mapping[str, str], client: Client) -> tuple[str, ...]:
    """Return the requested scopes; if none is requested, those that everyone can consent to."""
    known = (*client.scopes, *client.admin_scopes)
    wanted = frozenset(values.get("scope", "").split()) or frozenset(client.scopes)
    if not wanted <= frozenset(known):
        raise OAuthError("invalid_scope", f"The scopes of {client.id} are: {' '.join(known)}.")
    return tuple(scope for scope in known if scope in wanted)


def _matches_challenge(verifier: str, challenge: str) -> bool:
    if not _VERIFIER.fullmatch(verifier):
        return False
    digest = hashlib.sha256(verifier.encode()).digest()
    made = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return hmac.compare_digest(made, challenge)


def _parse_basic(authorization: str) -> tuple[str, str]:
    """Parse the id and the secret of a Basic header; both are form-encoded (RFC 6749, 2.3.1)."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise OAuthError("invalid_client", "The Authorization scheme must be Basic.")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        raise OAuthError("invalid_client", "The Authorization header is invalid.") from None
    client_id, _, secret = text.partition(":")
    return unquote_plus(client_id), unquote_plus(secret)

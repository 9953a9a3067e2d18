"""The pages of the development issuer: the sign-in form and errors. Players give a name only.

Invariants: all input is escaped; the pages load no resource, run no script and cannot be framed; a
form is accepted only with this process's signature and for a limited time.
"""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from html import escape
from typing import Final

import msgspec
from msgspec import Struct

from cli.issuer.config import ADMIN_PASSWORD_FILE
from cli.issuer.oauth import ADMINISTRATOR, AuthorizationRequest, OAuthError
from scoreboard.security.tokens import ADMIN, READ, UPDATE, UPDATE_ANY

FORM_LIFE_S: Final = 600.0

_SCOPE_TEXTS: Final = {
    UPDATE: "raise your score",
    UPDATE_ANY: "raise anyone's score",
    READ: "read the leaderboard",
    ADMIN: "administer boards and scores",
}

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #191b1f; --quiet: #5c6068; --paper: #f5f4f0;
  --card: #fff; --line: #85888f; --accent: #7d5600; --on-accent: #fff; --wrong: #a02f1b; }
@media (prefers-color-scheme: dark) { :root { --ink: #f1f0ec; --quiet: #a5aab4; --paper: #0e1013;
  --card: #16191d; --line: #7a808a; --accent: #f2bd4a; --on-accent: #191b1f; --wrong: #ef8d78; } }
* { box-sizing: border-box; margin: 0; }
body { display: grid; min-height: 100vh; place-items: center; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 400 1rem/1.5 Inter, ui-sans-serif, system-ui, sans-serif; }
main { width: 100%; max-width: 26rem; padding: 2rem; border-radius: 1rem; background: var(--card); }
h1 { margin-bottom: .75rem; font-size: 1.5rem; line-height: 1.2; }
form { display: grid; gap: .5rem; margin: 1.25rem 0; }
label { font-weight: 600; }
input { width: 100%; padding: .6rem .75rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--paper); color: inherit; font: inherit; }
.buttons { display: flex; gap: .75rem; margin-top: .75rem; }
button { padding: .6rem 1.1rem; border: 1px solid var(--line); border-radius: .5rem;
  background: none; color: inherit; font: inherit; font-weight: 600; cursor: pointer; }
button[value=agree] { border-color: var(--accent); background: var(--accent);
  color: var(--on-accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.hint, .only { color: var(--quiet); font-size: .875rem; }
.only { padding-top: 1rem; border-top: 1px solid var(--line); }
.wrong { color: var(--wrong); font-weight: 600; }
"""

STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
"""The hash of the style in the content security policy."""


class _Payload(Struct, frozen=True):
    request: AuthorizationRequest
    expires_at_s: float


class FormSigner:
    """Signs the request in a form, so that a forged or expired form is detected."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a random key; ``clock`` must be monotonic, in seconds."""
        self._key = secrets.token_bytes(32)
        self._clock = clock

    def sign(self, request: AuthorizationRequest) -> str:
        """Return the signed text of a request, which is valid for FORM_LIFE_S seconds."""
        body = msgspec.json.encode(_Payload(request, self._clock() + FORM_LIFE_S))
        return base64.urlsafe_b64encode(self._signature(body) + body).decode()

    def verify(self, text: str) -> AuthorizationRequest:
        """Return the request of a signed text.

        Raises OAuthError if its signature is wrong or it has expired.
        """
        try:
            raw = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        except ValueError:
            raw = b""
        signature, body = raw[:32], raw[32:]
        if not hmac.compare_digest(signature, self._signature(body)):
            raise OAuthError("invalid_request", "The form is not from this issuer.")
        payload = msgspec.json.decode(body, type=_Payload)
        if payload.expires_at_s <= self._clock():
            raise OAuthError("invalid_request", "The form has expired; go back and sign in again.")
        return payload.request

    def _signature(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")


def render_form(
    request: AuthorizationRequest, signed: str, *, name: str = "", problem: str = ""
) -> str:
    """Return the page of the form; ``problem`` describes what is wrong with the input."""
    allowed = " and ".join(_SCOPE_TEXTS[scope] for scope in request.scopes)
    error = f'<p class="wrong" id="wrong" role="alert">{escape(problem)}</p>' if problem else ""
    marks = 'aria-invalid="true" aria-describedby="wrong hint"' if problem else _PLAIN
    is_admin = request.needs_administrator
    label = "Administrator" if is_admin else "Player name"
    hint = _ADMIN_HINT if is_admin else _PLAYER_HINT
    return _page(
        "Sign in to Scoreboard",
        f"""<p>The page at <b>{escape(request.redirect_uri)}</b> will be able to {allowed}.</p>
<form method="post" action="/authorize">
<input type="hidden" name="form" value="{escape(signed)}">
<label for="name">{label}</label>
{error}
<input id="name" name="name" value="{escape(name)}" required maxlength="128" autofocus
 autocomplete="username" autocapitalize="none" spellcheck="false" {marks}>
{_ADMIN_FIELDS if is_admin else ""}
<p class="hint" id="hint">{hint}</p>
<div class="buttons"><button name="answer" value="agree">Sign in</button>
<button name="answer" value="cancel" formnovalidate>Cancel</button></div>
</form>""",
    )


def render_error(error: OAuthError) -> str:
    """Return the page of a request that cannot be answered."""
    return _page(
        "Sign-in failed",
        f'<p>{escape(error.description)}</p><p class="hint">{escape(error.error)}</p>',
    )


_PLAIN: Final = 'aria-describedby="hint"'
_PLAYER_HINT: Final = "Letters, digits and . _ | : @ - without spaces, for example alice"
_ADMIN_HINT: Final = (
    f"The name is {ADMINISTRATOR}; the password is in the file {ADMIN_PASSWORD_FILE} beside the "
    "issuer's key, which only its owner can read"
)
_ADMIN_FIELDS: Final = """<label for="password">Password</label>
<input id="password" name="password" type="password" required maxlength="128"
 autocomplete="current-password">"""


def _page(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><style>{_STYLE}</style></head>
<body><main><h1>{title}</h1>
{body}
<p class="only">For development only, never for production: players have no password, so anyone who
can open this page can sign in as any player.</p></main></body></html>
"""

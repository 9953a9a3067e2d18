"""The development issuer's one form: "sign in as", without a password, and its refusals.

Called by `cli.issuer.app`. What stays true: everything that came from outside is escaped; nothing
is loaded, framed or run; a form comes back only as it was given out by this process, and for a
while only.
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

from cli.issuer.oauth import AuthorizationRequest, OAuthError
from scoreboard.security.tokens import READ, UPDATE, UPDATE_ANY

FORM_LIFE_S: Final = 600.0

_MEANINGS: Final = {
    UPDATE: "raise your score",
    UPDATE_ANY: "raise anyone's score",
    READ: "read the leaderboard",
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
"""What the content security policy allows of styles."""


class _SignedForm(Struct, frozen=True):
    request: AuthorizationRequest
    until_s: float


class FormSigner:
    """Signs what a form carries round, so that a form that was not given out is noticed."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Make a key for this process; ``clock`` gives seconds that only grow."""
        self._key = secrets.token_bytes(32)
        self._clock = clock

    def close(self, request: AuthorizationRequest) -> str:
        """Give the text that stands for ``request`` for FORM_LIFE_S seconds."""
        body = msgspec.json.encode(_SignedForm(request, self._clock() + FORM_LIFE_S))
        return base64.urlsafe_b64encode(self._sign(body) + body).decode()

    def open(self, text: str) -> AuthorizationRequest:
        """Give the request of a text.

        Raises OAuthError where this process did not make it, or made it too long ago.
        """
        try:
            raw = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        except ValueError:
            raw = b""
        signature, body = raw[:32], raw[32:]
        if not hmac.compare_digest(signature, self._sign(body)):
            raise OAuthError("invalid_request", "This form was not given out here.")
        sealed = msgspec.json.decode(body, type=_SignedForm)
        if sealed.until_s <= self._clock():
            raise OAuthError("invalid_request", "This form has lain too long; go back.")
        return sealed.request

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")


def render_form(
    request: AuthorizationRequest, sealed: str, *, name: str = "", wrong: str = ""
) -> str:
    """Draw the form; ``wrong`` says what to change about ``name``."""
    allowed = " and ".join(_MEANINGS[scope] for scope in request.scopes)
    error = f'<p class="wrong" id="wrong" role="alert">{escape(wrong)}</p>' if wrong else ""
    marks = 'aria-invalid="true" aria-describedby="wrong hint"' if wrong else _PLAIN
    return _page(
        "Sign in to Scoreboard",
        f"""<p>The page at <b>{escape(request.redirect_uri)}</b> will be able to {allowed}.</p>
<form method="post" action="/authorize">
<input type="hidden" name="form" value="{escape(sealed)}">
<label for="name">Player name</label>
{error}
<input id="name" name="name" value="{escape(name)}" required maxlength="128" autofocus
 autocomplete="username" autocapitalize="none" spellcheck="false" {marks}>
<p class="hint" id="hint">Letters, digits and . _ | : @ - without spaces, for example alice</p>
<div class="buttons"><button name="answer" value="agree">Sign in</button>
<button name="answer" value="cancel" formnovalidate>Cancel</button></div>
</form>""",
    )


def render_error(refused: OAuthError) -> str:
    """Draw why nobody can be signed in by this request."""
    return _page(
        "This sign-in cannot go on",
        f'<p>{escape(refused.description)}</p><p class="hint">{escape(refused.error)}</p>',
    )


_PLAIN: Final = 'aria-describedby="hint"'


def _page(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><style>{_STYLE}</style></head>
<body><main><h1>{title}</h1>
{body}
<p class="only">For development only, never for production: there is no password, so whoever can
open this page can be any player.</p></main></body></html>
"""

"""The HTTP application of the development issuer: metadata, key set, sign-in form, token endpoint.

Invariants: only requests with the issuer's own Host are accepted, so that no page can reach it by
another name; a form is accepted from the issuer's own page only; only the origins of the scoreboard
page can read responses; no response may be stored or framed.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.exceptions import HTTPException

from cli.issuer.form import STYLE_HASH, FormSigner, render_error, render_form
from cli.issuer.oauth import (
    CLIENTS,
    AuthorizationRequest,
    AuthorizationServer,
    Fields,
    OAuthError,
    RedirectableError,
    parse_authorization_request,
)
from scoreboard.errors import ScoreboardError
from scoreboard.http.asgi import build_scope, call_app
from scoreboard.http.problems import status_of
from scoreboard.http.request import Request as Http1Request
from scoreboard.http.response import HttpResponse
from scoreboard.model import ID_FORM, is_identifier
from scoreboard.runtime.audit import write_audit
from scoreboard.runtime.telemetry import get_logger
from scoreboard.security.tokens import LocalIssuer

BODY_BYTES_MAX: Final = 16_384
BODY_TIMEOUT_S: Final = 5.0
FIELDS_MAX: Final = 32

_FORM: Final = "application/x-www-form-urlencoded"
_JSON: Final = "application/json"

_log = get_logger(__name__)

HttpRequest = Request[Any, Any, Any]


class IssuerApp:
    """The routes of the issuer; the request handler of a `scoreboard.http` server."""

    def __init__(
        self,
        issuer: LocalIssuer,
        grants: AuthorizationServer,
        signer: FormSigner,
        redirect_uris: Sequence[str],
    ) -> None:
        """Serve the address ``issuer.issuer`` for the page at ``redirect_uris``."""
        self._url: Final = issuer.issuer
        self._host: Final = urlsplit(issuer.issuer).netloc
        self._issuer = issuer
        self._metadata = msgspec.json.encode(_metadata(self._url))
        self._grants = grants
        self._signer = signer
        self._redirect_uris = frozenset(redirect_uris)
        self._page_origins = frozenset(_origin_of(uri) for uri in redirect_uris)
        self._security_headers = _security_headers(self._page_origins)
        self.app: Final = Litestar(
            route_handlers=self._handlers(),
            before_request=self._refuse_other_hosts,
            after_request=self._add_security_headers,
            exception_handlers={
                HTTPException: self._report_status,
                Exception: self._report_failure,
            },
            request_max_body_size=BODY_BYTES_MAX,
            logging_config=None,
            openapi_config=None,
        )
        """The ASGI application."""

    async def __call__(self, request: Http1Request) -> HttpResponse:
        """Answer one request."""
        try:
            return await call_app(self.app, build_scope(request), request)
        except ScoreboardError as error:
            return self.refuse(error, request.peer[0])

    def refuse(self, error: ScoreboardError, peer: str) -> HttpResponse:
        """Return the response to a request that was invalid or exceeded a limit."""
        _log.info("request_refused", code=error.code, client=peer)
        answer = {"error": "invalid_request", "error_description": error.detail}
        fields = [(name.encode(), value.encode()) for name, value in self._security_headers.items()]
        return HttpResponse(
            status_of(type(error)),
            [(b"Content-Type", _JSON.encode()), *fields],
            msgspec.json.encode(answer),
        )

    def _handlers(self) -> list[Any]:
        @get(
            ["/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"],
            name="metadata",
        )
        async def metadata(request: HttpRequest) -> Response[bytes]:
            return self._respond(request, self._metadata)

        @get("/jwks.json", name="jwks")
        async def jwks(request: HttpRequest) -> Response[bytes]:
            return self._respond(request, self._issuer.key_set)

        @get("/authorize", name="authorize")
        async def authorize(request: HttpRequest) -> Response[str]:
            return self._authorize(_pairs(request.scope["query_string"]))

        @post("/authorize", name="submit")
        async def submit(request: HttpRequest) -> Response[str]:
            return self._submit(request, await _form(request))

        @post("/token", name="token")
        async def token(request: HttpRequest) -> Response[bytes]:
            return await self._token(request)

        return [metadata, jwks, authorize, submit, token]

    def _authorize(self, fields: Fields) -> Response[str]:
        try:
            request = parse_authorization_request(fields, self._redirect_uris)
        except RedirectableError as refused:
            _log.info("sign_in_refused", code=refused.error)
            answer = {"error": refused.error, "error_description": refused.description}
            return self._redirect(refused.redirect_uri, refused.state, answer)
        except OAuthError as refused:
            _log.info("sign_in_refused", code=refused.error)
            return _html(render_error(refused), HTTPStatus.BAD_REQUEST)
        return _html(render_form(request, self._signer.sign(request)))

    def _submit(self, http: HttpRequest, fields: Fields) -> Response[str]:
        # The signature covers the request; only Origin shows which page sent the form.
        if http.headers.get("origin") != self._url:
            refused = OAuthError("invalid_request", "The form was sent from another page.")
            return _html(render_error(refused), HTTPStatus.FORBIDDEN)
        values = dict(fields)
        try:
            request = self._signer.verify(values.get("form", ""))
        except OAuthError as refused:
            return _html(render_error(refused), HTTPStatus.BAD_REQUEST)
        if values.get("answer") == "cancel":
            return self._redirect(request.redirect_uri, request.state, {"error": "access_denied"})
        return self._sign_in(request, values.get("name", "").strip(), values.get("password", ""))

    def _sign_in(self, request: AuthorizationRequest, name: str, password: str) -> Response[str]:
        problem = ""
        if not is_identifier(name):
            problem = f"Use {ID_FORM}."
        elif request.needs_administrator and not self._grants.is_administrator(name, password):
            write_audit("authenticate", "failure", user_id=name)
            problem = "The name or the password is wrong."
        if problem:
            form = render_form(
                request, self._signer.sign(request), name=name[:128], problem=problem
            )
            return _html(form, HTTPStatus.UNPROCESSABLE_ENTITY)
        code = self._grants.create_code(request, name)
        _log.info("player_signed_in", user_id=name)
        write_audit("authenticate", user_id=name)
        return self._redirect(request.redirect_uri, request.state, {"code": code})

    async def _token(self, request: HttpRequest) -> Response[bytes]:
        authorization = request.headers.get("authorization", "")
        try:
            issued = self._grants.issue(await _form(request), authorization)
        except OAuthError as refused:
            _log.info("grant_refused", code=refused.error)
            write_audit("token issue", "failure", code=refused.error)
            is_unknown = refused.error == "invalid_client"
            status = HTTPStatus.UNAUTHORIZED if is_unknown else HTTPStatus.BAD_REQUEST
            answer = {"error": refused.error, "error_description": refused.description}
            response = self._respond(request, msgspec.json.encode(answer), status)
            if is_unknown and authorization:
                response.headers["WWW-Authenticate"] = 'Basic realm="scoreboard"'
            return response
        write_audit("token issue")
        return self._respond(request, msgspec.json.encode(issued))

    def _redirect(self, redirect_uri: str, state: str, answer: dict[str, str]) -> Response[str]:
        """Redirect the browser to the page, with `iss` against mix-up attacks (RFC 9207)."""
        query = answer | ({"state": state} if state else {}) | {"iss": self._url}
        headers = {"Location": f"{redirect_uri}?{urlencode(query)}"}
        return Response("", status_code=HTTPStatus.SEE_OTHER, headers=headers)

    def _respond(
        self, request: HttpRequest, body: bytes, status: HTTPStatus = HTTPStatus.OK
    ) -> Response[bytes]:
        """Return a response that only the scripts of the scoreboard page can read."""
        headers = {"Vary": "Origin"}
        origin = request.headers.get("origin")
        if origin in self._page_origins:
            headers["Access-Control-Allow-Origin"] = origin
        return Response(body, status_code=status, headers=headers, media_type=_JSON)

    def _refuse_other_hosts(self, request: HttpRequest) -> Response[str] | None:
        if request.headers.get("host") == self._host:
            return None
        refused = OAuthError("invalid_request", f"The address of this issuer is {self._url}.")
        return _html(render_error(refused), HTTPStatus.MISDIRECTED_REQUEST)

    def _add_security_headers(self, response: Response[Any]) -> Response[Any]:
        response.headers |= self._security_headers
        return response

    def _report_status(self, _request: HttpRequest, error: HTTPException) -> Response[bytes]:
        answer = {"error": "invalid_request", "error_description": error.detail}
        body, status = msgspec.json.encode(answer), error.status_code
        return self._add_security_headers(Response(body, status_code=status, media_type=_JSON))

    def _report_failure(self, _request: HttpRequest, error: Exception) -> Response[bytes]:
        _log.error("request_failed", exc_info=error)
        body, status = b'{"error":"server_error"}', HTTPStatus.INTERNAL_SERVER_ERROR
        return self._add_security_headers(Response(body, status_code=status, media_type=_JSON))


def _security_headers(page_origins: frozenset[str]) -> dict[str, str]:
    """Return headers that prevent responses from being stored, framed or read by other pages."""
    # Chromium also applies form-action to the redirect after the form, so it includes the page.
    allowed = " ".join(("'self'", *sorted(page_origins)))
    return {
        "Cache-Control": "no-store",
        "Pragma": "no-cache",
        "Content-Security-Policy": (
            f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; img-src data:; "
            f"form-action {allowed}; base-uri 'none'; frame-ancestors 'none'"
        ),
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        # With no-referrer, browsers would send the form with the origin "null".
        "Referrer-Policy": "same-origin",
    }


def _metadata(url: str) -> dict[str, Any]:
    """Return the authorization server metadata (RFC 8414), also served at OpenID's address."""
    return {
        "issuer": url,
        "authorization_endpoint": f"{url}/authorize",
        "token_endpoint": f"{url}/token",
        "jwks_uri": f"{url}/jwks.json",
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": sorted({client.grant for client in CLIENTS.values()}),
        "scopes_supported": sorted(
            {scope for c in CLIENTS.values() for scope in (*c.scopes, *c.admin_scopes)}
        ),
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": [
            "client_secret_basic",
            "client_secret_post",
            "none",
        ],
        "authorization_response_iss_parameter_supported": True,
        "subject_types_supported": ["public"],
        "service_documentation": "docs/reference/sign-in.md: for development only",
    }


async def _form(request: HttpRequest) -> Fields:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != _FORM:
        raise HTTPException(
            f"The Content-Type must be {_FORM}", status_code=HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        )
    try:
        return _pairs(await request.body())
    except ScoreboardError as error:
        raise HTTPException(error.detail, status_code=status_of(type(error))) from None


def _pairs(text: bytes) -> Fields:
    try:
        return parse_qsl(
            text.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX
        )
    except ValueError:
        raise HTTPException(
            "The fields are not form-encoded", status_code=HTTPStatus.BAD_REQUEST
        ) from None


def _html(text: str, status: HTTPStatus = HTTPStatus.OK) -> Response[str]:
    return Response(text, status_code=status, media_type="text/html")


def _origin_of(uri: str) -> str:
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"

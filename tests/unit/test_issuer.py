"""What the development issuer grants and what it refuses, without HTTP."""

import base64
import errno
from pathlib import Path

import jwt
import pytest

from cli.issuer.config import check_redirect_uri, issuer_url, load_client_secrets
from cli.issuer.form import FORM_LIFE_S, FormSigner, render_error, render_form
from cli.issuer.oauth import (
    ADMINISTRATOR,
    CODE_LIFE_S,
    CODES_MAX,
    GAME_SERVER,
    PAGE,
    AuthorizationRequest,
    AuthorizationServer,
    OAuthError,
    RedirectableError,
    parse_authorization_request,
)
from scoreboard.errors import OperatorMistake
from scoreboard.runtime.settings import Secret
from scoreboard.security.tokens import ADMIN, LOCAL_ISSUER, READ, UPDATE, UPDATE_ANY, LocalIssuer
from tests.support.clients.issuer import challenge_of

PAGE_URI = "http://127.0.0.1:8000/"
SECRET = "s" * 43
PASSWORD = "p" * 43
VERIFIER = "v" * 43
URL = "http://127.0.0.1:8002"


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def grants(tmp_path: Path, clock: Clock) -> AuthorizationServer:
    issuer = LocalIssuer.create(tmp_path, issuer=URL)
    return AuthorizationServer(
        issuer, "scoreboard", lambda: [Secret(SECRET)], lambda: [Secret(PASSWORD)], clock=clock
    )


def authorization_query(**changes: str | None) -> list[tuple[str, str]]:
    fields = {
        "response_type": "code",
        "client_id": "scoreboard-page",
        "redirect_uri": PAGE_URI,
        "state": "xyz",
        "code_challenge": challenge_of(VERIFIER),
        "code_challenge_method": "S256",
    } | changes
    return [(name, value) for name, value in fields.items() if value is not None]


def request(**changes: object) -> AuthorizationRequest:
    values = {
        "client_id": PAGE.id,
        "redirect_uri": PAGE_URI,
        "state": "xyz",
        "challenge": challenge_of(VERIFIER),
        "scopes": (UPDATE, READ),
    } | changes
    return AuthorizationRequest(**values)


def redemption(made: str, **changes: str | None) -> list[tuple[str, str]]:
    fields = {
        "grant_type": "authorization_code",
        "client_id": "scoreboard-page",
        "code": made,
        "redirect_uri": PAGE_URI,
        "code_verifier": VERIFIER,
    } | changes
    return [(name, value) for name, value in fields.items() if value is not None]


def basic(client_id: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()


def claims_of(token: str) -> dict:
    return jwt.decode(token, options={"verify_signature": False})


def error_of(
    grants: AuthorizationServer, fields: list[tuple[str, str]], authorization: str = ""
) -> str:
    with pytest.raises(OAuthError) as caught:
        grants.issue(fields, authorization)
    return caught.value.error


# --- the authorization request ---


def test_a_request_without_scopes_requests_all_scopes_of_the_page() -> None:
    assert parse_authorization_request(authorization_query(), [PAGE_URI]) == request()


def test_a_request_can_name_fewer_scopes() -> None:
    assert parse_authorization_request(authorization_query(scope=READ), [PAGE_URI]).scopes == (
        READ,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": None},
        {"client_id": "someone"},
        {"redirect_uri": None},
        {"redirect_uri": "https://evil.test/"},
        {"redirect_uri": PAGE_URI + "x"},
        {"redirect_uri": PAGE_URI.rstrip("/")},
        {"redirect_uri": PAGE_URI + "?next=1"},
        {"redirect_uri": "http://127.0.0.1:8000@evil.test/"},
    ],
)
def test_an_unknown_client_or_redirect_uri_is_not_redirected(
    changes: dict[str, str | None],
) -> None:
    with pytest.raises(OAuthError) as caught:
        parse_authorization_request(authorization_query(**changes), [PAGE_URI])
    assert not isinstance(caught.value, RedirectableError)


def test_a_parameter_sent_twice_is_refused() -> None:
    with pytest.raises(OAuthError, match="twice"):
        parse_authorization_request(
            [*authorization_query(), ("redirect_uri", PAGE_URI)], [PAGE_URI]
        )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": None}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"client_id": "game-server"}, "unauthorized_client"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"code_challenge": challenge_of(VERIFIER) + "="}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"scope": UPDATE_ANY}, "invalid_scope"),
        ({"scope": f"{UPDATE} {UPDATE_ANY}"}, "invalid_scope"),
        ({"scope": "openid"}, "invalid_scope"),
        ({"state": "x" * 513}, "invalid_request"),
    ],
)
def test_other_errors_are_redirected_to_the_page(
    changes: dict[str, str | None], error: str
) -> None:
    with pytest.raises(RedirectableError) as caught:
        parse_authorization_request(authorization_query(**changes), [PAGE_URI])
    assert (caught.value.error, caught.value.redirect_uri) == (error, PAGE_URI)


def test_the_scope_of_administrators_is_asked_for_by_name() -> None:
    found = parse_authorization_request(authorization_query(scope=ADMIN), [PAGE_URI])
    assert found.scopes == (ADMIN,)
    assert found.needs_administrator
    assert not request().needs_administrator


@pytest.mark.parametrize(
    ("name", "password", "is_valid"),
    [
        (ADMINISTRATOR, PASSWORD, True),
        (ADMINISTRATOR, "", False),
        (ADMINISTRATOR, SECRET, False),
        ("alice", PASSWORD, False),
    ],
)
def test_the_administrator_has_a_name_and_a_password(
    grants: AuthorizationServer, name: str, password: str, is_valid: bool
) -> None:
    assert grants.is_administrator(name, password) is is_valid


def test_without_a_password_nobody_is_the_administrator(tmp_path: Path) -> None:
    issuer = LocalIssuer.create(tmp_path, issuer=URL)
    grants = AuthorizationServer(issuer, "scoreboard", lambda: [Secret(SECRET)])
    assert not grants.is_administrator(ADMINISTRATOR, "")


# --- codes ---


def test_a_code_is_exchanged_for_a_token_of_its_player(grants: AuthorizationServer) -> None:
    issued = grants.issue(redemption(grants.create_code(request(), "auth0|42")))
    claims = claims_of(issued.access_token)
    assert (claims["iss"], claims["aud"], claims["sub"]) == (URL, "scoreboard", "auth0|42")
    assert claims["scope"] == issued.scope == f"{UPDATE} {READ}"
    assert claims["exp"] - claims["iat"] == issued.expires_in == PAGE.token_life_s


def test_a_code_works_once(grants: AuthorizationServer) -> None:
    code = grants.create_code(request(), "alice")
    grants.issue(redemption(code))
    assert error_of(grants, redemption(code)) == "invalid_grant"


@pytest.mark.parametrize("late_s", [0.0, 3600.0])
def test_a_code_expires_after_a_minute(
    grants: AuthorizationServer, clock: Clock, late_s: float
) -> None:
    code = grants.create_code(request(), "alice")
    clock.now_s += CODE_LIFE_S + late_s
    assert error_of(grants, redemption(code)) == "invalid_grant"


def test_a_code_is_valid_for_a_minute(grants: AuthorizationServer, clock: Clock) -> None:
    code = grants.create_code(request(), "alice")
    clock.now_s += CODE_LIFE_S - 0.01
    assert grants.issue(redemption(code)).access_token


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code": "another"}, "invalid_grant"),
        ({"code_verifier": "w" * 43}, "invalid_grant"),
        ({"code_verifier": challenge_of(VERIFIER)}, "invalid_grant"),
        ({"code_verifier": "v" * 42}, "invalid_grant"),
        ({"redirect_uri": "http://localhost:8000/"}, "invalid_grant"),
        ({"code": None}, "invalid_request"),
        ({"code_verifier": None}, "invalid_request"),
        ({"redirect_uri": None}, "invalid_request"),
        ({"client_id": None}, "invalid_client"),
        ({"client_id": "someone"}, "invalid_client"),
        ({"client_id": "game-server", "client_secret": SECRET}, "unauthorized_client"),
        ({"client_secret": SECRET}, "invalid_client"),
        ({"grant_type": None}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": "refresh_token"}, "unsupported_grant_type"),
    ],
)
def test_a_code_is_refused_if_another_parameter_is_wrong(
    grants: AuthorizationServer, changes: dict[str, str | None], error: str
) -> None:
    code = grants.create_code(request(), "alice")
    assert error_of(grants, redemption(code, **changes)) == error


def test_a_code_sent_with_a_wrong_verifier_cannot_be_used_again(
    grants: AuthorizationServer,
) -> None:
    code = grants.create_code(request(), "alice")
    error_of(grants, redemption(code, code_verifier="w" * 43))
    assert error_of(grants, redemption(code)) == "invalid_grant"


def test_the_oldest_code_is_dropped_beyond_the_limit(grants: AuthorizationServer) -> None:
    codes = [grants.create_code(request(), "alice") for _ in range(CODES_MAX + 1)]
    assert error_of(grants, redemption(codes[0])) == "invalid_grant"
    assert grants.issue(redemption(codes[1])).access_token
    assert len(grants._codes) == CODES_MAX - 1


def test_expired_codes_are_removed(grants: AuthorizationServer, clock: Clock) -> None:
    for _ in range(5):
        grants.create_code(request(), "alice")
    clock.now_s += CODE_LIFE_S
    grants.create_code(request(), "alice")
    assert len(grants._codes) == 1


# --- client credentials ---


@pytest.mark.parametrize("is_header", [True, False])
def test_a_game_server_gets_a_token_with_its_secret(
    grants: AuthorizationServer, is_header: bool
) -> None:
    fields = [("grant_type", "client_credentials")]
    if is_header:
        issued = grants.issue(fields, basic("game-server", SECRET))
    else:
        sent = [("client_id", "game-server"), ("client_secret", SECRET)]
        issued = grants.issue([*fields, *sent])
    claims = claims_of(issued.access_token)
    assert (claims["sub"], claims["scope"]) == ("game-server", f"{UPDATE_ANY} {READ}")
    assert issued.expires_in == GAME_SERVER.token_life_s


@pytest.mark.parametrize(
    ("more", "authorization", "error"),
    [
        ([], basic("game-server", "wrong"), "invalid_client"),
        ([], basic("game-server", ""), "invalid_client"),
        ([], basic("nobody", SECRET), "invalid_client"),
        ([], "Basic !!!", "invalid_client"),
        ([], f"Bearer {SECRET}", "invalid_client"),
        ([], "", "invalid_client"),
        ([("client_id", "game-server")], "", "invalid_client"),
        ([("client_id", "scoreboard-page")], "", "unauthorized_client"),
        ([("client_id", "other")], basic("game-server", SECRET), "invalid_request"),
        ([("client_secret", SECRET)], basic("game-server", SECRET), "invalid_request"),
        ([("scope", UPDATE)], basic("game-server", SECRET), "invalid_scope"),
        ([("scope", f"{READ} admin")], basic("game-server", SECRET), "invalid_scope"),
        ([("scope", READ), ("scope", READ)], basic("game-server", SECRET), "invalid_request"),
    ],
)
def test_a_game_server_with_a_wrong_parameter_is_refused(
    grants: AuthorizationServer, more: list[tuple[str, str]], authorization: str, error: str
) -> None:
    fields = [("grant_type", "client_credentials"), *more]
    assert error_of(grants, fields, authorization) == error


# --- the form ---


def test_a_signed_form_returns_its_request() -> None:
    signer = FormSigner()
    assert signer.verify(signer.sign(request())) == request()


@pytest.mark.parametrize("alter", [lambda text: "", lambda text: text[4:], lambda text: "ü"])
def test_a_form_with_an_invalid_signature_is_refused(alter) -> None:
    signer = FormSigner()
    with pytest.raises(OAuthError, match="not from this issuer"):
        signer.verify(alter(signer.sign(request())))


def test_a_form_of_another_process_is_refused() -> None:
    with pytest.raises(OAuthError, match="not from this issuer"):
        FormSigner().verify(FormSigner().sign(request()))


def test_an_expired_form_is_refused(clock: Clock) -> None:
    signer = FormSigner(clock=clock)
    signed = signer.sign(request())
    clock.now_s += FORM_LIFE_S
    with pytest.raises(OAuthError, match="expired"):
        signer.verify(signed)


def test_input_is_escaped_in_html() -> None:
    hostile = "\"'><script>alert(1)</script>"
    drawn = render_form(request(redirect_uri=hostile), hostile, name=hostile, problem=hostile)
    drawn += render_error(OAuthError(hostile, hostile))
    assert "<script" not in drawn
    assert "\"'>" not in drawn


# --- allowed addresses ---


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
def test_a_loopback_address_is_accepted(host: str) -> None:
    assert host in issuer_url(host, 8002)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "localhost", "192.168.1.5", "::ffff:10.0.0.1", "example.test"]
)
def test_an_address_that_others_could_reach_is_refused(host: str) -> None:
    with pytest.raises(OperatorMistake, match="no password"):
        issuer_url(host, 8002)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:8000/", "http://localhost:8000/"])
def test_a_redirect_uri_on_this_machine_is_accepted(uri: str) -> None:
    check_redirect_uri(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "https://scores.test/",
        "http://127.0.0.1.evil.test/",
        "http://127.0.0.1:8000/?next=1",
        "http://127.0.0.1:8000/#there",
        "http://me@127.0.0.1:8000/",
        "javascript://localhost/",
        "",
    ],
)
def test_any_other_redirect_uri_is_refused(uri: str) -> None:
    with pytest.raises(OperatorMistake, match="this machine only"):
        check_redirect_uri(uri)


def test_the_client_secret_is_created_once_and_its_file_is_private(tmp_path: Path) -> None:
    secret = load_client_secrets(tmp_path).read().current
    path = tmp_path / "game-server-secret"
    assert len(secret.reveal()) >= 32
    assert load_client_secrets(tmp_path).read().current == secret
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(OperatorMistake, match="chmod 600"):
        load_client_secrets(tmp_path)


def test_an_empty_client_secret_is_refused(tmp_path: Path) -> None:
    load_client_secrets(tmp_path)
    (tmp_path / "game-server-secret").write_text("\n")
    with pytest.raises(OperatorMistake, match="no valid secret"):
        load_client_secrets(tmp_path)


# --- the issuer in tokens ---


def test_an_issuer_keeps_the_url_it_was_created_with(tmp_path: Path) -> None:
    assert LocalIssuer.create(tmp_path).issuer == LOCAL_ISSUER
    assert LocalIssuer.create(tmp_path, issuer=URL).issuer == URL
    assert LocalIssuer.create(tmp_path).issuer == URL
    token = LocalIssuer.load(tmp_path).issue("alice", [READ])
    assert claims_of(token)["iss"] == URL


# --- files of the issuer that cannot be used or written ---


def test_unusable_versions_are_reported_once_not_at_each_use(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As `chmod -R a+r` leaves the folder during a rotation: two files have the same fault."""
    issuer = LocalIssuer.create(tmp_path)
    before = issuer.keys.current
    for name in ("issuer-key.pem", "issuer-key.pem.pending"):
        (tmp_path / name).write_text("not a key")
        (tmp_path / name).chmod(0o644)

    for _ in range(5):
        assert issuer.keys.current == before

    assert "".join(capfd.readouterr()).count("secret_file_unusable") == 2


def test_a_full_disk_leaves_no_part_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = LocalIssuer.create(tmp_path)
    issuer.jwks_file.unlink()
    before = sorted(tmp_path.iterdir())

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            issuer.publish()

    assert sorted(tmp_path.iterdir()) == before

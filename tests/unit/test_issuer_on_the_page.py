"""The page's configuration of the issuer, and the addresses it may connect to."""

from api.documents.schemas import PageConfig, SignInConfig
from api.endpoints.static_files import content_security_policy, sign_in_config
from scoreboard.runtime.settings import Settings, load

ISSUER = {
    "SCOREBOARD_SIGN_IN_ISSUER": "https://id.example.com/realms/games",
    "SCOREBOARD_SIGN_IN_CLIENT_ID": "scoreboard-page",
}


def settings(**more: str) -> Settings:
    return load({"REDIS_URL": "redis://nowhere"} | more)


def sources(settings: Settings, directive: str) -> list[str]:
    parts = (part.split() for part in content_security_policy(settings, "/").split(";"))
    return next(words for name, *words in parts if name == directive)


def test_without_an_issuer_the_page_has_no_sign_in() -> None:
    assert sign_in_config(settings(), "scoreboard-page") is None
    assert sign_in_config(settings(**ISSUER), "") is None
    assert sources(settings(), "connect-src") == ["'self'"]


def test_the_page_config_contains_issuer_client_and_audience() -> None:
    found = sign_in_config(settings(**ISSUER, SCOREBOARD_AUDIENCE="scores"), "scoreboard-page")
    assert found == SignInConfig("https://id.example.com/realms/games", "scoreboard-page", "scores")
    assert PageConfig("", found).oauth is found


def test_the_page_may_connect_only_to_api_streamer_and_issuer() -> None:
    both = settings(**ISSUER, SCOREBOARD_WS_PUBLIC_URL="wss://live.example.com/ws/scoreboard")
    assert sources(both, "connect-src") == [
        "'self'",
        "wss://live.example.com",
        "https://id.example.com",
    ]
    assert sources(both, "script-src") == ["'self'"]

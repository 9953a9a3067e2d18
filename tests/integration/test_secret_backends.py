"""What AWS Secrets Manager and files can answer, and what each backend makes of it.

AWS is imitated by moto; answers that moto does not give come from a server of the test's own.
"""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from traceback import TracebackException
from typing import Any

import pytest
from botocore.session import Session as BotocoreSession

from scoreboard.errors import SecretInvalid, SecretsUnavailable
from scoreboard.security.secret_backends import AwsBackend, FileBackend
from tests.support.fakes.aws import SecretsManager

pytestmark = pytest.mark.slow

PLANTED = "hunter2-planted"


def full_text(error: BaseException) -> str:
    """Return the traceback of an error below the test, with the variables of each frame."""
    assert error.__traceback__ is not None
    below = error.with_traceback(error.__traceback__.tb_next)
    return "".join(TracebackException.from_exception(below, capture_locals=True).format())


def test_the_version_awscurrent_is_read_while_a_newer_one_is_pending(
    secrets_manager: SecretsManager,
) -> None:
    name = secrets_manager.create("app", "current")
    secrets_manager.client.put_secret_value(
        SecretId=name,
        SecretString='{"username": "app", "password": "pending"}',
        VersionStages=["AWSPENDING"],
    )

    assert AwsBackend(name, 120.0).read().password.reveal() == "current"


def test_the_stage_is_asked_for_by_name(canned: "Canned") -> None:
    canned.answer(200, {"SecretString": '{"password": "x"}', "VersionId": "v1"})

    AwsBackend("sb/redis", 120.0).read()

    assert canned.asked[-1] == {"SecretId": "sb/redis", "VersionStage": "AWSCURRENT"}


def test_a_binary_secret_is_refused(secrets_manager: SecretsManager) -> None:
    document = b'{"username": "app", "password": "%s"}' % PLANTED.encode()
    secrets_manager.client.create_secret(Name="sb/binary", SecretBinary=document)

    with pytest.raises(SecretInvalid, match="sb/binary: the secret is binary") as caught:
        AwsBackend("sb/binary", 120.0).read()
    assert PLANTED not in full_text(caught.value)


def test_a_secret_without_a_value_is_named(secrets_manager: SecretsManager) -> None:
    secrets_manager.client.create_secret(Name="sb/empty")

    with pytest.raises(SecretsUnavailable, match=r"sb/empty: .*ResourceNotFoundException"):
        AwsBackend("sb/empty", 120.0).read()


def test_a_secret_that_will_be_deleted_is_named(secrets_manager: SecretsManager) -> None:
    name = secrets_manager.create("app", PLANTED)
    secrets_manager.client.delete_secret(SecretId=name)

    with pytest.raises(SecretsUnavailable, match=r"InvalidRequestException.*deletion"):
        AwsBackend(name, 120.0).read()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("AccessDeniedException", r"AccessDeniedException \(.*GetSecretValue"),
        ("ThrottlingException", "ThrottlingException"),
        ("DecryptionFailure", r"DecryptionFailure \(.*kms:Decrypt"),
        ("InternalServiceError", "InternalServiceError"),
    ],
)
def test_an_error_of_aws_is_named_by_its_code(canned: "Canned", code: str, reason: str) -> None:
    canned.answer(400, {"__type": code, "Message": f"arn:aws:… {PLANTED}"})

    with pytest.raises(SecretsUnavailable, match=f"^sb/redis: AWS returned {reason}") as caught:
        AwsBackend("sb/redis", 120.0).read()
    assert PLANTED not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"VersionId": "v1"}, "has no text value"),
        ({"SecretString": "", "VersionId": "v1"}, "has no text value"),
        ({"SecretString": json.dumps({"password": PLANTED})}, "no version"),
        ({"SecretString": 5, "VersionId": "v1"}, "has no text value"),
        ("<html>", "has no text value"),
        ([], "the call to AWS failed with"),
    ],
)
def test_an_answer_of_another_shape_is_an_error(
    canned: "Canned", answer: object, reason: str
) -> None:
    canned.answer(200, answer)

    with pytest.raises(SecretsUnavailable, match=rf"^sb/redis[: ].*{reason}") as caught:
        AwsBackend("sb/redis", 120.0).read()
    assert PLANTED not in full_text(caught.value)


@pytest.mark.parametrize(
    ("variable", "text", "reason"),
    [
        ("AWS_DEFAULT_REGION", "not a region", "InvalidRegionError"),
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", "not a url", "ValueError"),
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://127.0.0.1:1", "EndpointConnectionError"),
    ],
)
def test_a_wrong_environment_of_aws_is_an_error(
    aws_environment: pytest.MonkeyPatch, variable: str, text: str, reason: str
) -> None:
    aws_environment.setenv(variable, text)

    with pytest.raises(SecretsUnavailable, match=f"^sb/redis: .*{reason}"):
        AwsBackend("sb/redis", 120.0).read()


DOCUMENTS = {
    "empty": (b"", "not JSON"),
    "text": (PLANTED.encode(), "not JSON"),
    "string": (json.dumps(PLANTED).encode(), "not a JSON object"),
    "array": (json.dumps([PLANTED]).encode(), "not a JSON object"),
    "number": (b"5", "not a JSON object"),
    "no password": (b'{"username": "hunter2-planted"}', "password"),
    "empty password": (b'{"username": "hunter2-planted", "password": ""}', "password"),
    "password of another type": (b'{"password": ["hunter2-planted"]}', "password"),
    "username of another type": (b'{"username": 5, "password": "hunter2-planted"}', "username"),
    "NUL in the password": (b'{"password": "hunter2-planted\\u0000"}', "password"),
    "Latin-1": ('{"password": "hunter2-planted é"}'.encode("latin-1"), "UTF-8"),
    "UTF-16": ('{"password": "hunter2-planted"}'.encode("utf-16"), "JSON"),
    "half a character": (b'{"password": "hunter2-planted\\ud800"}', "JSON"),
    "huge": (b'{"password": "hunter2-planted%s"}' % (b"x" * 70_000), "65536 bytes"),
    "huge but valid": (b'{"password": "hunter2-planted"}' + b" " * 70_000, "65536 bytes"),
}


@pytest.mark.parametrize(("document", "reason"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_wrong_document_is_named_without_its_content(
    tmp_path: Path, document: bytes, reason: str
) -> None:
    path = tmp_path / "redis.json"
    path.write_bytes(document)

    with pytest.raises(SecretInvalid, match=rf"redis\.json .*{reason}") as caught:
        FileBackend(path, 5.0).read()
    assert PLANTED not in full_text(caught.value)


def test_a_folder_or_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(SecretsUnavailable, match=str(path)):
            FileBackend(path, 5.0).read()


class Canned:
    """A server that gives one answer to every call."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self._answer: tuple[int, bytes] = (200, b"{}")
        canned = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                canned.asked.append(json.loads(body))
                status, answer = canned._answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, status: int, answer: object) -> None:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        self._answer = (status, text.encode())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def canned(aws_environment: pytest.MonkeyPatch) -> Iterator[Canned]:
    made = Canned()
    aws_environment.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", made.url)
    yield made
    made.close()


def test_all_secrets_of_a_process_share_one_client(
    secrets_manager: SecretsManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [secrets_manager.create("api", f"password-{number}") for number in range(3)]
    made = []
    create_client = BotocoreSession.create_client

    def counted(self: BotocoreSession, *arguments: Any, **options: Any) -> Any:
        made.append(self)
        return create_client(self, *arguments, **options)

    monkeypatch.setattr(BotocoreSession, "create_client", counted)

    for number, name in enumerate(names):
        assert AwsBackend(name, 1.0).read().password.reveal() == f"password-{number}"

    assert len(made) == 1

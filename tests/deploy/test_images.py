"""The Dockerfiles: lint, versions, and the files they copy. tests/proofs/compose builds them."""

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cli.embedded import binaries
from tests.deploy.compose import ROOT, SERVICES, dockerfile
from tests.kong.runtime import luajit21, our_plugins

DOCKERFILES = [
    "Dockerfile",
    *sorted(f"deploy/docker/{path.name}" for path in (ROOT / "deploy/docker").glob("*.Dockerfile")),
]
every_dockerfile = pytest.mark.parametrize("name", DOCKERFILES)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@every_dockerfile
def test_dockerfiles_pass_hadolint(name: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def images() -> list[str]:
    found = [
        image
        for name in DOCKERFILES
        for image in re.findall(r"^FROM (\S+)", dockerfile(name), re.MULTILINE)
    ]
    return found + [s["image"] for s in SERVICES.values() if not s["image"].endswith(":local")]


@pytest.mark.parametrize("image", sorted(set(images())))
def test_images_are_pinned_to_a_version(image: str) -> None:
    name, _, tag = image.partition(":")
    assert re.match(r"v?\d+\.\d+(\.\d+)?(-[a-z0-9-]+)?(@sha256:[0-9a-f]{64})?$", tag), image
    assert "latest" not in tag
    assert name


def tag_of(image: str) -> str:
    return next(i for i in images() if i.startswith(f"{image}:")).partition(":")[2]


def test_images_have_the_versions_that_the_tests_run() -> None:
    def version(program: Path) -> str:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    valkey = version(binaries.find_valkey())
    assert f"v={tag_of('valkey/valkey').partition('-')[0]} " in valkey
    assert version(Path(binaries.find_postgres().path("postgres"))).endswith(tag_of("postgres"))
    moto = re.search(r"^moto\S*==(\S+)", (ROOT / "requirements/dev.txt").read_text(), re.MULTILINE)
    assert moto is not None
    assert tag_of("motoserver/moto") == moto[1]
    python = tag_of("python")
    assert python.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert images().count(f"python:{python}") == 2  # both stages use the same interpreter


def sources(name: str) -> list[str]:
    found: list[str] = []
    for line in re.findall(
        r"^COPY (?!--from)(?:--chmod=\d+ )?(.+)$", dockerfile(name), re.MULTILINE
    ):
        *given, _target = line.split()
        found += given
    return found


@every_dockerfile
def test_copied_files_exist_and_are_in_the_build_context(name: str) -> None:
    # .dockerignore excludes everything, and then includes some paths.
    lines = (ROOT / ".dockerignore").read_text().split()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    for source in sources(name):
        assert (ROOT / source).exists(), source
        path = source.rstrip("/") + ("/" if (ROOT / source).is_dir() else "")
        assert any(path.startswith(a) or fnmatch.fnmatch(path, a) for a in allowed), source


def test_secrets_and_history_are_not_in_the_build_context() -> None:
    text = (ROOT / ".dockerignore").read_text()
    for name in (".git", ".env", ".data", "tests", "docs"):
        assert f"!{name}" not in text


def test_the_build_context_has_nothing_that_no_dockerfile_copies() -> None:
    """Not the files that operators make beside those of the repository, such as secrets."""
    copied = {source.rstrip("/") for name in DOCKERFILES for source in sources(name)}
    lines = (ROOT / ".dockerignore").read_text().split()
    assert {line[1:].rstrip("/") for line in lines if line.startswith("!")} == copied - {
        source for source in copied if source.startswith("kong/")
    }
    assert {"**/secrets/", "**/.env"} <= set(lines[lines.index("*") + 1 :])


def test_the_image_contains_every_package_of_the_wheel_and_its_data() -> None:
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    expected = {*wheel["packages"], *wheel["force-include"], "pyproject.toml"}
    assert expected <= set(sources("Dockerfile"))


def test_the_image_installs_wheels_by_hash_before_the_source_is_copied() -> None:
    text = dockerfile("Dockerfile")
    for install in [line for line in text.split("&&") if "pip install" in line]:
        by_hash = "--require-hashes --only-binary :all:" in install
        assert by_hash or "--no-index --no-deps" in install
    assert text.index("requirements/base.txt requirements/") < text.index("COPY api")


def test_the_image_runs_as_an_unprivileged_user() -> None:
    text = dockerfile("Dockerfile")
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
    assert text.rstrip().endswith('CMD ["python", "-m", "api"]')
    assert "curl" not in text


def test_the_image_of_kong_has_the_plugins_in_its_path() -> None:
    text = dockerfile("deploy/docker/kong.Dockerfile")
    for plugin in our_plugins():
        target = f"/usr/local/share/lua/5.1/kong/plugins/{plugin}/"
        assert f"COPY --chmod=755 kong/plugins/{plugin}/ {target}\n" in text


@pytest.mark.parametrize("name", sorted(set(DOCKERFILES) - {"Dockerfile"}))
def test_copied_files_can_be_read_by_the_user_of_the_image(name: str) -> None:
    """Their modes are those of a checkout, which depend on its umask."""
    for line in re.findall(r"^COPY .*", dockerfile(name), re.MULTILINE):
        assert line.startswith(("COPY --chmod=", "COPY --from=")), line


# Scripts inside the images ----------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["HTTP/1.1 200 OK", "HTTP/1.0 200 OK"])
def test_kong_is_ready_after_a_200(answer: str) -> None:
    assert run_ready(f"return '{answer}'") == 0


@pytest.mark.parametrize(
    "receive", ["return 'HTTP/1.1 503 Service Unavailable'", "return nil", "return 'x 200'"]
)
def test_kong_is_not_ready_after_another_response(receive: str) -> None:
    assert run_ready(receive) == 1


def test_kong_is_not_ready_while_the_connection_is_refused() -> None:
    assert run_ready("return 'HTTP/1.1 200 OK'", connect="return nil, 'refused'") == 1


def run_ready(receive: str, connect: str = "return 1") -> int:
    lua = luajit21.LuaRuntime()
    lua.execute(f"""
        local socket = {{ settimeout = function() end, connect = function() {connect} end,
          send = function(_, text) sent = text return #text end,
          receive = function() {receive} end }}
        ngx = {{ socket = {{ tcp = function() return socket end }} }}
        os = {{ exit = function(code) ended = code end }}
    """)
    lua.execute((ROOT / "deploy/docker/kong-ready.lua").read_text())
    return lua.globals().ended


def test_the_entrypoint_of_kong_reads_the_password_from_its_file(tmp_path: Path) -> None:
    real = tmp_path / "docker-entrypoint.sh"
    real.write_text('#!/bin/sh\necho "$REDIS_PASSWORD $*"\n')
    real.chmod(0o755)
    (tmp_path / "counters").write_text('{"username": "kong", "password": "a secret"}')
    script = (ROOT / "deploy/docker/kong-entrypoint.sh").read_text()
    script = script.replace(" /docker-entrypoint.sh", f" {real}")
    environ = {"REDIS_PASSWORD_FILE": str(tmp_path / "counters"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-c", script, "sh", "kong", "docker-start"],
        env=environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "a secret kong docker-start\n"


@pytest.mark.parametrize(
    ("soft", "hard", "expected"), [(256, 1024, "1024"), (1024, 20_000, "20000")]
)
def test_kongs_entrypoint_raises_the_limit_on_open_files(
    tmp_path: Path, soft: int, hard: int, expected: str
) -> None:
    """The engine's soft limit is often 1024, and a viewer is two connections."""
    real = tmp_path / "docker-entrypoint.sh"
    real.write_text("#!/bin/sh\nulimit -S -n\n")
    real.chmod(0o755)
    script = (ROOT / "deploy/docker/kong-entrypoint.sh").read_text()
    script = script.replace(" /docker-entrypoint.sh", f" {real}")
    limited = f'ulimit -S -n {soft} && ulimit -H -n {hard} && exec sh -c "$0"'
    done = subprocess.run(
        ["sh", "-c", limited, script], env={"PATH": "/usr/bin:/bin"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected


@pytest.mark.parametrize("text", ["", "\n", "{}", '{"password": "a\\"b"}'])
def test_kongs_entrypoint_refuses_a_file_without_a_password(tmp_path: Path, text: str) -> None:
    (tmp_path / "counters").write_text(text)
    script = (ROOT / "deploy/docker/kong-entrypoint.sh").read_text()
    environ = {"REDIS_PASSWORD_FILE": str(tmp_path / "counters"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-c", script, "sh"], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "has no password" in done.stderr


def test_the_roles_need_no_command_of_psql_but_those_that_set_a_variable() -> None:
    """Operators of a managed PostgreSQL may have another client than psql."""
    lines = (ROOT / "deploy/docker/postgres-roles.sql").read_text().splitlines()

    commands = {line.split()[0] for line in lines if "\\" in line}

    assert commands == {"\\getenv", "\\set"}

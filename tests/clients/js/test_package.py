"""What the package consists of."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.clients.js.package_folder import HERE, SOURCE, Package, run
from tests.support.clients import npm
from tests.support.repository import ROOT, files_of

pytestmark = pytest.mark.timeout(300)
MODULES = [path.stem for path in (SOURCE / "src").glob("*.js")]
SHARED = ["names", "scoreboard-client", "scoreboard-protocol"]
"""The modules that are also those of the live page."""


def manifest(package: Package) -> dict:
    return json.loads((package.built / "package.json").read_text())


def test_it_consists_of_its_modules_and_their_types(package: Package) -> None:
    modules = [*MODULES, *SHARED]

    assert package.files == sorted(
        ["LICENSE", "README.md", "package.json", "dist/element-tag.d.ts", "dist/openapi.d.ts"]
        + [f"dist/{name}{suffix}" for name in modules for suffix in (".js", ".d.ts")]
    )
    for name in SHARED:
        built = package.built / f"dist/{name}.js"
        assert built.read_text() == (ROOT / f"web/{name}.js").read_text()


def test_it_has_the_version_and_the_license_of_the_repository(package: Package) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # npm writes 1.2.0.dev0 as 1.2.0-dev.0.
    version = re.sub(r"\.?(dev|rc|a|b)(\d+)$", r"-\1.\2", project["version"])

    assert manifest(package)["version"] == version
    assert manifest(package)["license"] == project["license"]
    assert (package.built / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_it_needs_nothing_but_react_for_the_hook(package: Package) -> None:
    made = manifest(package)

    assert not {"dependencies", "devDependencies", "scripts", "overrides"} & set(made)
    assert made["peerDependencies"] == {"react": ">=18"}
    assert made["peerDependenciesMeta"] == {"react": {"optional": True}}


def test_every_entry_has_a_module_and_types_in_the_package(package: Package) -> None:
    entries = manifest(package)["exports"]

    assert list(entries) == [".", "./element", "./react", "./package.json"]
    for name, entry in entries.items():
        targets = [entry] if name == "./package.json" else [entry["types"], entry["default"]]
        assert {target.removeprefix("./") for target in targets} <= set(package.files)


def test_it_exports_what_the_reference_names(package: Package) -> None:
    script = """
      const names = [];
      for (const entry of ["", "/element", "/react"]) {
        names.push(Object.keys(await import(`@scoreboard/client${entry}`)).sort());
      }
      console.log(JSON.stringify(names));
    """

    assert json.loads(run(package.project, script)) == [
        ["ScoreboardClient", "ScoreboardError", "connect", "newActionId"],
        ["ScoreBoardElement"],
        ["useScoreboard"],
    ]


def test_it_and_the_locks_name_no_registry(package: Package) -> None:
    locks = [SOURCE / "package-lock.json", HERE / "package-lock.json"]
    names = [
        ROOT / name for name in files_of() if name.startswith(("clients/js", "tests/clients/js"))
    ]

    assert not [path for path in locks if '"resolved"' in path.read_text()]
    registry = re.compile("registry" + r"\.npmjs|\b" + "npmjs" + r"\.(com|org)")
    files = [*names, *(package.built / name for name in package.files)]
    assert [path for path in files if registry.search(path.read_text())] == []


def test_the_modules_pass_eslint_and_the_type_checker(package: Package, tmp_path: Path) -> None:
    npm.install(ROOT / "tests/javascript")
    for path in (package.built / "dist").glob("*"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "node_modules").symlink_to(SOURCE / "node_modules")

    assert npm.findings(ROOT / "tests/javascript", tmp_path) == []


def test_the_types_are_those_of_the_calls(package: Package) -> None:
    """A wrong call is a finding, so the types are not `any`."""
    (package.project / "calls.ts").write_text("""
      import { connect, ScoreboardClient, ScoreboardError } from "@scoreboard/client";
      import { useScoreboard } from "@scoreboard/client/react";
      import "@scoreboard/client/element";

      const client = new ScoreboardClient({ url: "/" });
      const reply = await client.update({ userId: "a", actionId: "win:1" });
      const score: number = reply.newScore;
      const connection = connect({ url: "/", onBoard: ({ leaderboard }) => leaderboard[0].name });
      connection.watch(["a"]);
      const element = document.querySelector("score-board");
      element?.addEventListener("place", ({ detail }) => detail.rank);
      const { rows, place } = useScoreboard({ url: "/", user: "a" });
      export default [score, rows[0].score, place?.toNext, new ScoreboardError({} as never).type];

      // @ts-expect-error
      client.update({ userId: "a" });
      // @ts-expect-error
      reply.score;
      // @ts-expect-error
      connect({ board: "main" });
      // @ts-expect-error
      element?.addEventListener("place", ({ detail }) => detail.leaderboard);
      // @ts-expect-error
      rows[0].points;
    """)
    options = "--noEmit --strict --skipLibCheck false --target es2024 --module esnext"
    compiler = HERE / "node_modules/typescript/bin/tsc"

    done = npm.node(
        str(compiler),
        *options.split(),
        *("--moduleResolution", "bundler", "--typeRoots", str(HERE / "node_modules/@types")),
        *("--types", "react", "calls.ts"),
        cwd=package.project,
        timeout_s=120,
    )

    assert done.returncode == 0, done.stdout

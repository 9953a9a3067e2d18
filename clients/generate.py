"""Write the types of requests and responses of the clients from docs/openapi.json.

    .venv/bin/python clients/generate.py            # writes both files (make clients-models)
    .venv/bin/python clients/generate.py --to DIR   # writes them into another folder

Two generators write them: datamodel-code-generator for Python, which has an environment of its own
(.venv-clients), and oapi-codegen for Go. They read a part of the document: what the public paths
use, without the limits of values. A client must accept what a later version adds, and the service
checks what it is sent.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PYTHON = Path("python/src/scoreboard_client/_models.py")
GO = Path("go/models.go")
OAPI_CODEGEN = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2"
PUBLIC = ("/api/scores", "/api/boards")
STREAM = "/api/scores/stream"
"""The messages of the live board are written by hand in both clients."""

LIMITS = {
    *("additionalProperties", "enum", "example", "examples", "maxItems", "maxLength", "maximum"),
    *("minItems", "minLength", "minimum", "pattern", "uniqueItems"),
}
HEADER = (
    '''"""Requests and responses. Written by `make clients-models` from docs/openapi.json."""'''
)


def main() -> None:
    """Write both files, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=ROOT / "clients")
    parser.add_argument("--only", choices=["python", "go"])
    chosen = parser.parse_args()
    document = json.loads((ROOT / "docs/openapi.json").read_text())
    if chosen.only != "go":
        write_python(document, chosen.to / PYTHON)
    if chosen.only != "python":
        write_go(document, chosen.to / GO)


def write_python(document: dict[str, Any], path: Path) -> None:
    """Write msgspec Structs. The generator would repeat the description of each field."""
    schemas = {
        name: {**without(schema, {"description"}), "description": schema["description"]}
        for name, schema in public_schemas(document).items()
    }
    generator = ROOT / ".venv-clients/bin/datamodel-codegen"
    run_on(
        {**document, "paths": {}, "components": {"schemas": schemas}},
        [
            *(generator, "--input-file-type", "openapi", "--output", path),
            *("--output-model-type", "msgspec.Struct", "--snake-case-field", "--keyword-only"),
            *("--target-python-version", "3.11", "--use-standard-collections"),
            *("--use-union-operator", "--use-schema-description", "--use-single-line-docstring"),
            *("--disable-timestamp", "--no-formatters", "--custom-file-header", HEADER, "--input"),
        ],
    )
    ruff = Path(sys.executable).with_name("ruff")
    configuration = ROOT / "pyproject.toml"
    for words in (["check", "-q", "--select", "I", "--fix"], ["format", "-q"]):
        subprocess.run([ruff, *words, "--config", configuration, path], check=True)


def write_go(document: dict[str, Any], path: Path) -> None:
    """Write Go structs. Only numbers that can be missing are pointers."""
    schemas = with_go_types(public_schemas(document))
    options = {
        "package": "scoreboard",
        "generate": {"models": True},
        "output-options": {
            "skip-prune": True,
            "prefer-skip-optional-pointer": True,
            "name-normalizer": "ToCamelCaseWithInitialisms",
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder, "options.json")
        configuration.write_text(json.dumps(options))
        run_on(
            {**document, "paths": {}, "components": {"schemas": schemas}},
            ["go", "run", OAPI_CODEGEN, "-config", configuration, "-o", path],
        )
    text = path.read_text()
    comment, rest = text.split("package scoreboard\n", 1)
    mark = next(line for line in comment.splitlines() if "DO NOT EDIT" in line)
    origin = "// Written by `make clients-models` from docs/openapi.json."
    path.write_text(f"{mark}\n\n{origin}\n\npackage scoreboard\n{rest}")


def run_on(document: dict[str, Any], command: list[str | Path]) -> None:
    """Run a generator on a document, which is its last argument."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "openapi.json")
        source.write_text(json.dumps(document))
        subprocess.run([*command, source], check=True)


def public_schemas(document: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas that public paths use, by name, without limits."""
    schemas = document["components"]["schemas"]
    names: set[str] = set()

    def follow(node: Any) -> None:
        for name in references(node) - names:
            names.add(name)
            follow(schemas[name])

    paths = document["paths"].items()
    follow([item for path, item in paths if path.startswith(PUBLIC) and path != STREAM])
    return {name: without(schemas[name], LIMITS) for name in sorted(names)}


def references(node: Any) -> set[str]:
    """Return the names of the schemas that a part of the document refers to."""
    match node:
        case {"$ref": str(reference)} if reference.startswith("#/components/schemas/"):
            return {reference.rsplit("/", 1)[1]}
        case dict():
            return set().union(*map(references, node.values()))
        case list():
            return set().union(*map(references, node))
        case _:
            return set()


def without(schema: Any, keywords: set[str]) -> Any:
    """Return a schema without keywords; maps of text to a schema stay."""
    match schema:
        case dict():
            return {
                key: {name: without(one, keywords) for name, one in value.items()}
                if key == "properties"
                else without(value, keywords)
                for key, value in schema.items()
                if key not in keywords
                or (key == "additionalProperties" and isinstance(value, dict))
            }
        case list():
            return [without(one, keywords) for one in schema]
        case _:
            return schema


def with_go_types(schema: Any) -> Any:
    """Return a schema whose integers have 64 bits, and are pointers where they are optional."""
    match schema:
        case {"type": "integer"}:
            return {**schema, "format": "int64", "x-go-type-skip-optional-pointer": False}
        case dict():
            return {key: with_go_types(value) for key, value in schema.items()}
        case list():
            return [with_go_types(one) for one in schema]
        case _:
            return schema


if __name__ == "__main__":
    main()

"""The API's documents: openapi.json, and a page for every problem type.

They are generated from the handlers and from scoreboard.http.problems. ``make openapi`` writes them
to docs/, so that reviews show changes; a test compares.
"""

import html
import inspect
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
from litestar import Litestar, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, License, SecurityScheme, Tag
from litestar.params import FromPath

from api.documents import admin_schemas, schemas
from api.documents.forms import name_in_json
from api.documents.responses import EVERYWHERE
from api.endpoints.admin.acts import Acts
from api.endpoints.admin.boards import AdminBoards
from api.endpoints.admin.records import Records
from api.endpoints.boards import BoardInformation
from api.endpoints.event_streams import PATH as STREAM_PATH
from api.endpoints.fast_reads import IDS, STANDING_PATH, STANDINGS_PATH
from api.endpoints.health import make_handlers as make_probes
from api.endpoints.rankings import Rankings
from api.endpoints.scores import BEARER, Scores
from api.endpoints.sse import STREAMED
from api.endpoints.static_files import SECURITY_HEADERS, content_security_policy
from scoreboard.errors import NotFound, ScoreboardError
from scoreboard.events import BIGINT_MAX
from scoreboard.http.problems import PROBLEM_TYPES, TYPE_PREFIX, Problem
from scoreboard.ledger.history import PLACE_PATTERN
from scoreboard.model import BOARD_PATTERN, END, ID_PATTERN, POINTS_MAX, SCORE_MAX, USERS_MAX
from scoreboard.runtime.settings import Settings

MADE_BY: Final = "make openapi"
FOLDER: Final = Path(__file__).parents[2] / "docs"

_ABOUT: Final = """\
The API of a real-time scoreboard. An action is applied **exactly once** per `actionId`: if you get
no response, repeat the request with the same `actionId` as often as needed.

Every error is a problem document (RFC 9457). Its `type` is stable, and
[/docs/problems](/docs/problems) describes how to handle each type. Live updates are sent over the
WebSocket `/ws/scoreboard`.

Tokens are JSON Web Tokens of the configured issuer, signed with RS256 or ES256, with the scopes
`update:score` (update one's own score), `update:score:any` (game servers: update any user and set
the points), `read:leaderboard` (read boards that are not public) and `admin:scores` (administer).
"""
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "RequestId": {
        "description": "Identifies the request in logs: the id of the gateway, else of the client, "
        "else a new one.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{8,128}$"},
    },
    "ETag": {
        "description": "Weak validator. Send it in `If-None-Match` to get 304 if nothing changed.",
        "schema": {"type": "string", "examples": ['W/"3-1042"']},
    },
    "CacheControl": {"schema": {"type": "string"}},
    "Challenge": {
        "description": "Why the token is refused, or which scope is missing (RFC 6750).",
        "schema": {"type": "string"},
    },
    "Allow": {"description": "Methods of this path.", "schema": {"type": "string"}},
    "RetryAfter": {
        "description": "Number of seconds to wait.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "RateLimit": {
        "description": "Updates left (`r`) and seconds until the next one is allowed (`t`). Sent "
        "only if the api enforces the limit.",
        "schema": {"type": "string", "examples": ['"default";r=9;t=60']},
    },
    "RateLimitPolicy": {
        "description": "Updates allowed (`q`) per window of `w` seconds. Sent only if the api "
        "enforces the limit.",
        "schema": {"type": "string", "examples": ['"default";q=10;w=60']},
    },
}

_ROWS: Final = [
    {"rank": 1, "userId": "auth0|64f1", "score": 150},
    {"rank": 2, "userId": "018f6d0e-5f2c-7c3a-9f57-3a1f6f0f9f11", "score": 140},
]
_LIMITS: Final = {"pointsPerAction": 0, "pointsPerWindow": 0, "windowS": 0}
_BOARD: Final = {
    "name": "laps",
    "public": True,
    "state": "open",
    "rules": {
        "operator": "best",
        "order": "lowest",
        "min": 0,
        "max": 2_147_483_647,
        "lowering": "nobody",
        "points": "stated",
    },
}
_SEASONS: Final = {
    "seasons": [
        {
            "id": "2026-W48",
            "startsAt": 1795388400000,
            "endsAt": 1795993200000,
            "state": "final",
            "users": 20417,
            "winners": _ROWS,
        }
    ],
    "next": "2026-W48",
}
_ADMIN_BOARD: Final = {
    **_BOARD,
    "partitions": 1,
    "users": 0,
    "limits": _LIMITS,
    "seenSeconds": 43_200,
}
_ACTS: Final[dict[str, dict[str, Any]]] = {
    "void": {
        "summary": "Take back what an action counted",
        "value": {
            "kind": "void",
            "board": "main",
            "userId": "auth0|64f1",
            "actionId": "win:01J9ZQ4T8B6W3M",
        },
    },
    "correct": {
        "summary": "Change a score",
        "value": {"kind": "correct", "board": "main", "userId": "auth0|64f1", "delta": -5},
    },
    "void window": {
        "summary": "Take back what all actions of an hour counted",
        "value": {
            "kind": "void window",
            "board": "main",
            "userId": "auth0|64f1",
            "since": "2026-11-27T08:00:00Z",
            "until": "2026-11-27T09:00:00Z",
        },
    },
    "ban": {
        "summary": "Ban a user from a board",
        "value": {"kind": "ban", "board": "main", "userId": "auth0|64f1"},
    },
    "undo": {
        "summary": "Do the opposite of an act",
        "value": {"kind": "undo", "act": "90b2c41f5d6e7a08"},
    },
}
_HELD: Final = {
    "id": 17,
    "board": "main",
    "userId": "auth0|64f1",
    "actionId": "quest:77",
    "delta": 5000,
    "score": 150,
    "limit": "action",
    "occurredAt": "2026-11-27T09:30:00Z",
    "state": "held",
    "act": None,
    "voidedBy": None,
    "voidedReason": None,
    "season": None,
}
_ACT: Final = {
    "act": "4f1c2a9b7d310e55",
    "board": "main",
    "userId": "auth0|64f1",
    "kind": "void",
    "delta": -10,
    "score": 140,
    "committed": True,
}
_PREVIEW: Final = {
    "board": "main",
    "userId": "auth0|64f1",
    "kind": "void",
    "delta": -10,
    "actions": 1,
    "before": {"score": 150, "rank": 1},
    "after": {"score": 140, "rank": 2},
    "topBefore": _ROWS,
    "topAfter": [{**_ROWS[1], "rank": 1}, {**_ROWS[0], "rank": 2, "score": 140}],
}
_POSITION: Final = {"total": 20417, "epoch": 3, "seq": 1042}
_STANDING: Final = {**_ROWS[0], **_POSITION, "neighbours": _ROWS, "percentile": 100.0}
_STREAMED: Final = """\
retry: 3000

event: leaderboard
id: 3-1042
data: {"type":"leaderboard","board":"main","epoch":3,"seq":1042,"at":1767225600000,"leaderboard":[]}

"""
_EXAMPLES: Final[dict[str, tuple[Any, Any]]] = {
    "updateScore": (
        {
            "player": {
                "summary": "A player's own action",
                "value": {"userId": "auth0|64f1", "actionId": "win:01J9ZQ4T8B6W3M"},
            },
            "proof": {
                "summary": "A player's action that a game server has signed",
                "value": {
                    "userId": "auth0|64f1",
                    "actionId": "raid:77",
                    "proof": "eyJhbGciOiJFUzI1NiIsInR5cCI6InNjb3JlYm9hcmQtcHJvb2Yrand0Ii…",
                },
            },
            "game-server": {
                "summary": "A game server's update for a player, with points",
                "value": {"userId": "auth0|64f1", "actionId": "quest:77", "points": 250},
            },
            "boards": {
                "summary": "An action that two boards count",
                "value": {
                    "userId": "auth0|64f1",
                    "actionId": "win:01J9ZQ4T8B6W3M",
                    "boards": ["all-time", "weekly"],
                },
            },
        },
        {"success": True, "newScore": 150, "replayed": False},
    ),
    "updateScores": (
        {
            "match": {
                "summary": "The results of a match",
                "value": {
                    "updates": [
                        {"userId": "auth0|64f1", "actionId": "match:881", "points": 30},
                        {
                            "userId": "018f6d0e-5f2c-7c3a-9f57-3a1f6f0f9f11",
                            "actionId": "match:881",
                            "boards": ["all-time", "weekly"],
                        },
                        {"userId": "auth0|9a2c", "actionId": "dance:1"},
                    ]
                },
            }
        },
        {
            "success": False,
            "results": [
                {"outcome": "applied", "newScore": 180},
                {
                    "outcome": "replayed",
                    "newScore": 140,
                    "scores": {
                        "all-time": {"score": 140, "replayed": True},
                        "weekly": {"score": 20, "replayed": True},
                    },
                },
                {
                    "outcome": "problem",
                    "problem": {
                        "type": "/docs/problems/unknown-kind",
                        "title": "This kind of action earns no points",
                        "status": 422,
                        "detail": "Actions of kind 'dance' earn no points",
                        "request_id": "5f0c2a9b7d31-2a",
                    },
                },
            ],
        },
    ),
    "readLeaderboard": (
        None,
        {
            "leaderboard": [
                {**_ROWS[0], "name": "Alice", "metadata": {"team": "red"}},
                *_ROWS[1:],
            ],
            "total": 20417,
            "epoch": 3,
            "seq": 1042,
            "season": "2026-W48",
            "endsAt": 1795993200000,
        },
    ),
    "readStanding": (
        None,
        _STANDING,
    ),
    "readStandings": (
        None,
        {
            "users": [{**row, "place": place} for place, row in enumerate(_ROWS, 1)],
            "notFound": ["auth0|9a2c"],
            **_POSITION,
        },
    ),
    "readOwnStanding": (None, _STANDING),
    "readRankOfScore": (None, {"score": 145, "rank": 2, "equals": 0, **_POSITION}),
    "readCutoff": (
        None,
        {
            "rank": 2,
            "total": 20417,
            "epoch": 0,
            "seq": 0,
            "score": 140,
            "needed": 141,
            "season": "2026-W47",
        },
    ),
    "readHistory": (
        None,
        {
            "userId": "auth0|64f1",
            "history": [
                {
                    "actionId": "win:01J9ZQ4T8B6W3M",
                    "delta": 10,
                    "score": 150,
                    "at": 1767225600000,
                }
            ],
            "next": "1767225600000000.3.1042",
        },
    ),
    "readSeasons": (None, _SEASONS),
    "streamLeaderboard": (
        None,
        _STREAMED,
    ),
    "listBoards": (None, {"boards": [_BOARD], "next": "laps"}),
    "readBoard": (None, _BOARD),
    "previewAct": (_ACTS, _PREVIEW),
    "performAct": (
        {
            name: {
                **example,
                "value": {
                    **example["value"],
                    "id": "4f1c2a9b7d310e55",
                    "reason": "sent by a bot",
                },
            }
            for name, example in _ACTS.items()
        },
        _ACT,
    ),
    "resumeAct": (None, _ACT),
    "listActs": (
        None,
        {
            "acts": [
                {
                    "id": "4f1c2a9b7d310e55",
                    "at": "2026-11-27T09:30:00Z",
                    "board": "main",
                    "userId": "auth0|64f1",
                    "kind": "void",
                    "delta": -10,
                    "actor": "sub:auth0|admin",
                    "reason": "sent by a bot",
                    "detail": {"action": "win:01J9ZQ4T8B6W3M", "actions": 1},
                    "undoes": None,
                    "undoneBy": None,
                    "state": "applied",
                }
            ],
            "next": None,
        },
    ),
    "searchUsers": (None, {"users": [{"userId": "auth0|64f1", "name": "Alice"}]}),
    "readUser": (
        None,
        {
            "userId": "auth0|64f1",
            "name": "Alice",
            "boards": [
                {"board": "main", "score": 150, "rank": 1, "bannedBy": None},
                {"board": "laps", "score": 71, "rank": None, "bannedBy": "90b2c41f5d6e7a08"},
            ],
            "seasons": [{"board": "league", "season": "2026-W47", "score": 320, "rank": 4}],
        },
    ),
    "readHistoryOfUser": (
        None,
        {
            "userId": "auth0|64f1",
            "history": [
                {
                    "actionId": "win:01J9ZQ4T8B6W3M",
                    "delta": 10,
                    "score": 150,
                    "at": 1767225600000,
                }
            ],
        },
    ),
    "listAudit": (
        None,
        {
            "rows": [
                {
                    "number": 318,
                    "at": "2026-11-27T09:30:00Z",
                    "actor": "sub:auth0|admin",
                    "action": "act void",
                    "board": "main",
                    "detail": {"act": "4f1c2a9b7d310e55", "user": "auth0|64f1", "delta": -10},
                }
            ],
            "next": 318,
        },
    ),
    "listHeld": (None, {"held": [_HELD], "next": 17}),
    "voidHeld": (
        {"bot": {"summary": "Void it", "value": {"reason": "sent by a bot"}}},
        {
            **_HELD,
            "state": "voided",
            "voidedBy": "sub:auth0|admin",
            "voidedReason": "sent by a bot",
        },
    ),
    "readStatus": (
        None,
        {
            "boards": [{"board": "main", "open": True, "uncommitted": 12, "oldestAgeS": 0.084}],
            "deadLetters": 0,
            "pendingActs": 0,
            "held": 1,
            "processes": [
                {
                    "service": "streamer",
                    "address": "10.0.3.17:9101",
                    "state": "ready",
                    "version": "0.1.0",
                    "viewers": 4127,
                    "refusals": {"token expired": 12, "viewer 429": 3},
                }
            ],
        },
    ),
    "listAllBoards": (None, {"boards": [{**_ADMIN_BOARD, "users": 20417}], "next": None}),
    "listSeasonsOfBoard": (None, _SEASONS),
    "readLeaderboardOfBoard": (
        None,
        {"leaderboard": _ROWS, "total": 20417, "epoch": 0, "seq": 0, "season": "2026-W48"},
    ),
    "createBoard": (
        {
            "laps": {
                "summary": "The best lap times",
                "value": {
                    "name": "laps",
                    "rules": {"operator": "best", "order": "lowest", "points": "stated"},
                },
            },
            "league": {
                "summary": "A season each week",
                "value": {
                    "name": "league",
                    "rules": {"season": "weekly", "timeZone": "Europe/Berlin"},
                    "limits": {"pointsPerAction": 100, "pointsPerWindow": 0, "windowS": 0},
                    "seenSeconds": 86400,
                },
            },
        },
        _ADMIN_BOARD,
    ),
    "changeBoard": (
        {
            "archive": {"summary": "Archive a board", "value": {"state": "archived"}},
            "limit": {
                "summary": "At most 500 points of a user in an hour",
                "value": {
                    "limits": {"pointsPerAction": 0, "pointsPerWindow": 500, "windowS": 3600}
                },
            },
        },
        {**_ADMIN_BOARD, "state": "archived", "users": 20417},
    ),
    "isAlive": (None, {"status": "alive"}),
    "isReady": (
        None,
        {"status": "ready", "checks": {"redis": {"state": "up"}, "durability": {"state": "safe"}}},
    ),
}
"""Examples of the request and the successful response, by operation."""


@cache
def openapi() -> dict[str, Any]:
    """Generate the OpenAPI document."""
    described = Litestar(
        route_handlers=[
            Scores,
            Rankings,
            BoardInformation,
            Acts,
            AdminBoards,
            Records,
            *make_probes(),
        ],
        openapi_config=OpenAPIConfig(
            title="Scoreboard",
            version=version("scoreboard"),
            summary="Real-time scores with exactly-once updates.",
            description=_ABOUT,
            license=License(name="MIT", identifier="MIT"),
            tags=[
                Tag(name="scores", description="Update scores and read the ranking."),
                Tag(name="boards", description="The boards and their rules."),
                Tag(
                    name="administration",
                    description="Correct, void and ban, make boards, read the audit log. Served "
                    "only where `SCOREBOARD_ADMIN_API` is set.",
                ),
                Tag(
                    name="health",
                    description="Probes for the orchestrator; the gateway does not expose them.",
                ),
            ],
            components=Components(
                security_schemes={
                    BEARER: SecurityScheme(
                        type="http",
                        scheme="bearer",
                        bearer_format="JWT",
                        description="A token of the issuer; the scopes are listed at the top.",
                    )
                }
            ),
            render_plugins=[JsonRenderPlugin()],
        ),
        logging_config=None,
    )
    document = _normalize(described.openapi_schema.to_schema())
    _rename_path_parameters(document)
    _add_headers_and_examples(document)
    _describe_parameters(document)
    _share_responses(document)
    _complete_schemas(document["components"]["schemas"])
    _describe_events(document)
    document = shorten_patterns(document)
    return {"openapi": document.pop("openapi"), "x-made-by": MADE_BY, **document}


def _normalize(node: Any) -> Any:  # noqa: ANN401 (any part of a JSON document)
    """Correct the framework's schemas of optional parameters, examples and integers."""
    if isinstance(node, list):
        return [_normalize(value) for value in node]
    if isinstance(node, float) and node.is_integer():
        return min(int(node), BIGINT_MAX)  # which a float rounds up
    return _normalize_object(node) if isinstance(node, dict) else node


def _normalize_object(node: dict[str, Any]) -> dict[str, Any]:
    match node:
        case {"oneOf": [dict(only)], **rest}:
            return _normalize_object(only) | rest
        case {"id": str(), "summary": _, **rest}:
            return {"summary": node["summary"], **rest}
        case _:
            return {key: _normalize(value) for key, value in node.items()}


def shorten_patterns(node: Any) -> Any:  # noqa: ANN401 (any part of a JSON document)
    """End patterns with `$`, which is the end of the text in the expressions of this format."""
    match node:
        case list():
            return [shorten_patterns(value) for value in node]
        case dict():
            return {key: shorten_patterns(value) for key, value in node.items()}
        case str():
            return node.removesuffix(END) + "$" if node.endswith(END) else node
        case _:
            return node


def _add_headers_and_examples(document: dict[str, Any]) -> None:
    """Add response headers and examples, which handlers cannot declare."""
    document["components"]["headers"] = _HEADERS
    for path, item in document["paths"].items():
        for operation in item.values():
            operation["responses"] = dict(sorted(operation["responses"].items()))
            operation.setdefault("security", [])  # the probes need no token
            request, success = _EXAMPLES[operation["operationId"]]
            [content] = operation["responses"]["200"]["content"].values()
            content["example"] = success
            if request is not None:
                operation["requestBody"]["content"]["application/json"]["examples"] = request
            for status, response in operation["responses"].items():
                response["headers"] = {
                    name: {"$ref": f"#/components/headers/{reference}"}
                    for name, reference in _headers_of(path, operation, status).items()
                }


def _rename_path_parameters(document: dict[str, Any]) -> None:
    """Name path parameters as the members of JSON: the framework needs names of Python."""
    paths = {_name_in_path(path): item for path, item in document["paths"].items()}
    document["paths"] = paths
    for item in paths.values():
        for operation in item.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    parameter["name"] = name_in_json(parameter["name"])


def _name_in_path(path: str) -> str:
    return re.sub(r"\{\w+\}", lambda found: name_in_json(found[0]), path)


def _describe_parameters(document: dict[str, Any]) -> None:
    """Describe parameters that handlers parse themselves, and optional ones."""
    for item in document["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", []):
                match parameter["schema"]:
                    case {"oneOf": [dict(only), {"type": "null"}], **rest}:
                        # The framework describes an optional parameter as nullable.
                        parameter["schema"] = {**only, **rest}
                    case _:
                        pass
                if parameter["name"] in {"board", "name"}:
                    parameter["schema"].setdefault("pattern", BOARD_PATTERN)
    history = document["paths"][_name_in_path(f"{STANDING_PATH}/history")]
    for parameter in history["get"]["parameters"]:
        if parameter["name"] == "before":
            parameter["schema"]["pattern"] = PLACE_PATTERN
    for parameter in document["paths"][STANDINGS_PATH]["get"]["parameters"]:
        if parameter["name"] == IDS:
            user = {"type": "string", "pattern": ID_PATTERN}
            parameter["schema"] = {
                "type": "array",
                "items": user,
                "minItems": 1,
                "maxItems": USERS_MAX,
                "examples": [["auth0|64f1", "018f6d0e-5f2c-7c3a-9f57-3a1f6f0f9f11"]],
            }
            parameter.update(style="form", explode=False)


def _headers_of(path: str, operation: dict[str, Any], status: str) -> dict[str, str]:
    """Return the headers of a response, each with the name of its description."""
    names = {"X-Request-Id": "RequestId"}
    if path.startswith("/api/") and status in {"200", "304"}:
        names["Cache-Control"] = "CacheControl"
        if operation["operationId"] in {"updateScore", "updateScores"}:
            names |= {"RateLimit": "RateLimit", "RateLimit-Policy": "RateLimitPolicy"}
        elif "304" in operation["responses"]:
            names["ETag"] = "ETag"
    if status == "405":
        names["Allow"] = "Allow"
    if status in {"401", "403"}:
        names["WWW-Authenticate"] = "Challenge"
    if status in {"429", "503"} and path.startswith("/api/"):
        names["Retry-After"] = "RetryAfter"
    return names


def _share_responses(document: dict[str, Any]) -> None:
    """Move the responses common to all operations to the components."""
    shared = document["components"].setdefault("responses", {})
    for item in document["paths"].values():
        for operation in item.values():
            for status in map(str, EVERYWHERE):
                name = f"Problem{status}"
                shared[name] = operation["responses"][status]
                operation["responses"][status] = {"$ref": f"#/components/responses/{name}"}


def _complete_schemas(shapes: dict[str, dict[str, Any]]) -> None:
    """Add descriptions and constraints of types that the framework omits."""
    types = {**vars(schemas), **vars(admin_schemas), Problem.__name__: Problem}
    for name, shape in shapes.items():
        about = inspect.cleandoc(types[name].__doc__ or "")
        shape["description"] = about.partition("\n\n")[0].replace("\n", " ")
    for name in ("UpdateRequest", "UpdateItem"):
        update = shapes[name]
        update["additionalProperties"] = False
        points = {"type": "integer", "minimum": -POINTS_MAX, "maximum": SCORE_MAX}
        points["description"] = update["properties"]["points"]["description"]
        update["properties"]["points"] = points
        update["properties"]["boards"]["items"]["pattern"] = BOARD_PATTERN
        update["properties"]["boards"]["uniqueItems"] = True
    for name in (
        "BulkRequest",
        "ActPlan",
        "ActRequest",
        "NewBoard",
        "NewBoardRules",
        "BoardChange",
        "HeldVoid",
    ):
        shapes[name]["additionalProperties"] = False


def _describe_events(document: dict[str, Any]) -> None:
    """Add the events of the stream: the schemas of their messages, and how they are sent."""
    _, messages = msgspec.json.schema_components(
        STREAMED, ref_template="#/components/schemas/{name}"
    )
    shapes = document["components"]["schemas"]
    if repeated := shapes.keys() & messages.keys():
        raise ValueError(f"Two schemas have the same name: {repeated}")
    shapes.update(msgspec.to_builtins(messages))
    names: list[dict[str, str]] = []
    for kind in STREAMED:
        fields: dict[str, Any] = {"event": {"const": kind.__struct_config__.tag}}
        if "seq" in kind.__struct_fields__:
            fields["id"] = {"type": "string", "examples": ["3-1042"]}
        name = f"{kind.__name__}Event"
        shapes[name] = {
            "type": "object",
            "description": f"The message {kind.__struct_config__.tag} as an event.",
            "properties": {
                **fields,
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": f"#/components/schemas/{kind.__name__}"},
                },
            },
            "required": [*fields, "data"],
        }
        names.append({"$ref": f"#/components/schemas/{name}"})
    shapes["StreamedEvent"] = {
        "description": "An event of the stream, by the names of its lines. Ignore other events.",
        "oneOf": names,
    }
    operation = document["paths"][STREAM_PATH]["get"]
    operation["responses"]["200"]["content"]["text/event-stream"]["schema"] = {
        "type": "string",
        "contentMediaType": "text/event-stream",
        "contentSchema": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/StreamedEvent"},
        },
    }
    operation["parameters"].append(
        {
            "name": "Last-Event-ID",
            "in": "header",
            "description": "The `id` of the last event. If it is the current board, the stream "
            "starts with a heartbeat instead of the board.",
            "required": False,
            "schema": {"type": "string", "examples": ["3-1042"]},
        }
    )


@cache
def encoded() -> bytes:
    """Return openapi.json, as committed and served."""
    return msgspec.json.format(msgspec.json.encode(openapi()), indent=2) + b"\n"


def problems_text() -> str:
    """Return the text of docs/reference/problems.md."""
    lines = [
        f"<!-- Generated by `{MADE_BY}` from scoreboard/http/problems.py. -->",
        "# Problems",
        "",
        "Every error of the API, and every refused WebSocket handshake, is",
        "`application/problem+json` (RFC 9457) with `type`, `title`, `status`, `detail` and",
        "`request_id`. The `type` is a path of the API and never changes its meaning;",
        "`detail` says what to change in this request.",
    ]
    for kind, about in PROBLEM_TYPES.items():
        lines += [
            "",
            f"## {kind.code}",
            "",
            f"`{TYPE_PREFIX}{kind.code}` · {about.status} · {kind.title}.",
            "",
            about.advice,
        ]
    return "\n".join(lines) + "\n"


def make_handlers(settings: Settings) -> list[HTTPRouteHandler]:
    """Make the handlers that serve the documents."""
    headers = {
        **SECURITY_HEADERS,
        "Content-Security-Policy": content_security_policy(settings, "/docs"),
    }
    by_code = {kind.code: kind for kind in PROBLEM_TYPES}

    @get("/openapi.json", include_in_schema=False, media_type="application/json")
    async def document() -> Response[bytes]:
        return Response(encoded(), headers=SECURITY_HEADERS, media_type="application/json")

    @get("/docs/problems", include_in_schema=False)
    async def problems() -> Response[str]:
        return Response(
            _page("Problems", list(PROBLEM_TYPES)), headers=headers, media_type="text/html"
        )

    @get("/docs/problems/{code:str}", include_in_schema=False)
    async def problem(code: FromPath[str]) -> Response[str]:
        kind = by_code.get(code)
        if kind is None:
            raise NotFound("No such problem; /docs/problems lists all")
        return Response(_page(kind.title, [kind]), headers=headers, media_type="text/html")

    return [document, problems, problem]


def _page(title: str, kinds: list[type[ScoreboardError]]) -> str:
    entries = "".join(
        f'<h2 id="{kind.code}">{html.escape(kind.title)}</h2>'
        f"<p><code>{TYPE_PREFIX}{kind.code}</code> · {PROBLEM_TYPES[kind].status}</p>"
        f"<p>{html.escape(PROBLEM_TYPES[kind].advice).replace('**', '')}</p>"
        for kind in kinds
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>"
        "<style>:root{color-scheme:light dark;font:1rem/1.5 system-ui,sans-serif}"
        "body{max-width:44rem;margin:2rem auto;padding:0 1rem}</style></head>"
        f'<body><p><a href="/docs">Scoreboard API</a> · <a href="/docs/problems">Problems</a></p>'
        f"{entries}</body></html>"
    )


def main() -> None:
    """Write the documents to docs/."""
    (FOLDER / "openapi.json").write_bytes(encoded())
    (FOLDER / "reference" / "problems.md").write_text(problems_text(), encoding="utf-8")


if __name__ == "__main__":
    main()

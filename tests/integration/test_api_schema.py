"""The api conforms to its OpenAPI document for generated requests (schemathesis).

schemathesis is imported where it is used: every worker process of a test run imports this file.
"""

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from api.documents import openapi
from scoreboard.model import POINTS_MAX, Board
from tests.support.fakes.tokens import MakeToken
from tests.support.servers.api import list_boards, open_boards
from tests.support.servers.api_process import ApiProcess, RunApi


@pytest.fixture
async def api(run_api: RunApi, redis_url: str, database_url: str) -> ApiProcess:
    await open_boards(redis_url, scores=[("alice", 30), ("bob", 20)])
    await list_boards(redis_url, Board())
    return run_api(environ={"DATABASE_URL": database_url, "SCOREBOARD_ADMIN_API": "true"})


def test_the_api_conforms_to_its_openapi_document(api: ApiProcess, make_token: MakeToken) -> None:
    import schemathesis

    document = copy.deepcopy(openapi.openapi())
    # The document has the range of all boards; the board of this test has the default rules.
    points = document["components"]["schemas"]["UpdateRequest"]["properties"]["points"]
    points |= {"minimum": 1, "maximum": POINTS_MAX}
    for update in ("UpdateRequest", "UpdateItem"):
        del document["components"]["schemas"][update]["properties"]["season"]  # it has none
    listing = document["paths"]["/api/scores/seasons"]["get"]
    listing["parameters"] = [one for one in listing["parameters"] if one["name"] != "before"]
    schema = schemathesis.openapi.from_dict(document).exclude(
        operation_id="streamLeaderboard"  # its responses do not end
    )
    for operation in ("previewAct", "performAct", "resumeAct", "createBoard", "changeBoard"):
        schema = schema.exclude(operation_id=operation)  # they wait for a flusher, or make boards
    token = make_token("server", "update:score:any read:leaderboard admin:scores")
    headers = {"Authorization": f"Bearer {token}"}
    seen: set[str] = set()

    @given(case=schema.as_strategy())
    @settings(
        max_examples=300,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def explore(case: Any) -> None:
        seen.add(case.operation.label)
        if isinstance(case.body, dict) and "boards" in case.body:
            case.query.pop("board", None)  # they exclude each other, which a schema cannot say
        # Checks statuses, media types, headers and bodies, and that there is no 5xx.
        case.call_and_validate(base_url=api.url, headers=headers, timeout=30)

    explore()
    assert len(seen) == 24

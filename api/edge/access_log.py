"""The lines of each request: the access log, and the audit stream of refusals and updates.

Invariants: no token and no body is logged; every status from 400 on is logged, within the limits of
scoreboard.runtime.log_limits.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from api.documents.schemas import UpdateRequest
from scoreboard.errors import OutcomeUnknown, ScoreboardError
from scoreboard.http.request import Request
from scoreboard.model import Receipt
from scoreboard.runtime.audit import audit_refusal, refusal_reason, write_audit
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.runtime.tracing import CURRENT_SPAN
from scoreboard.security.addresses import forwarded_address, trusted_networks
from scoreboard.security.tokens import Caller
from scoreboard.trace_context import HEADER as TRACEPARENT
from scoreboard.trace_context import TraceContext

METHOD_LENGTH_MAX: Final = 16

_log = get_logger("api.access")


class AuditedUpdate(Struct, frozen=True):
    """An update of one board, for its audit line; ``update`` is None if it was not parsed."""

    update: UpdateRequest | None
    board: str | None
    receipt: Receipt | None = None
    error: ScoreboardError | None = None


class AccessLog:
    """Writes the lines of requests."""

    def __init__(self, settings: Settings) -> None:
        """Raise SettingInvalid for an invalid list of trusted hops."""
        self._share = settings.log_success_share
        self._are_updates_audited = settings.audit_updates
        self._hops = trusted_networks(settings.trusted_hops)

    def write(
        self,
        request: Request,
        *,
        route: str,
        status: int,
        seconds: float,
        error: ScoreboardError | None,
    ) -> None:
        """Log one answered request; ``error`` is the one it was answered with, if any."""
        lines: Sequence[AuditedUpdate] = request.state.get("audited", ())
        if lines and not self._are_updates_audited:
            lines = [line for line in lines if line.error is not None]
        is_update = "update" in request.state and not lines
        is_audited = error is not None or bool(lines) or (is_update and self._are_updates_audited)
        is_logged = status >= 400 or random.random() < self._share  # noqa: S311 (sampling)
        if not is_logged and not is_audited:
            return
        head, peer = request.head, request.peer[0]
        forwarded = head.headers.get(b"x-forwarded-for", b"").decode("latin-1")
        client = forwarded_address(peer, [forwarded], self._hops)
        if is_logged:
            _log.info(
                "request_served",
                method=head.method[:METHOD_LENGTH_MAX],
                client=client,
                peer=peer,
                request_id=request.id,
                trace=trace_of(request),
                route=route,
                status=status,
                code=None if error is None else error.code,
                duration_s=seconds,
            )
        if is_audited:
            who: dict[str, Any] = {"client": client, "peer": peer, "request_id": request.id}
            who["trace"] = trace_of(request)
            who |= {"route": route, "status": status}
            caller: Caller | None = request.state.get("caller")
            if caller is not None:
                who["user_id"] = caller.subject
            if lines:
                for line in lines:
                    _audit_update(line, who)
            elif is_update:
                _audit_update(_single(request.state, error), who)
            elif error is not None:
                audit_refusal(error, **who)

    def write_refused(
        self, error: ScoreboardError, peer: str, request_id: str, status: int
    ) -> None:
        """Log an unreadable request, or a connection over the limit."""
        _log.info(
            "request_refused",
            client=peer,
            peer=peer,
            request_id=request_id,
            status=status,
            code=error.code,
        )
        audit_refusal(error, client=peer, peer=peer, request_id=request_id, status=status)


def trace_of(request: Request) -> TraceContext | bytes | None:
    """Return the request's span, if it is traced, else its header; for log lines."""
    span = CURRENT_SPAN.get()
    return span.context if span is not None else request.head.headers.get(TRACEPARENT)


def _single(state: Mapping[str, Any], error: ScoreboardError | None) -> AuditedUpdate:
    """Return the update of a request on one board."""
    return AuditedUpdate(
        state.get("update"), state.get("board_name"), receipt=state.get("receipt"), error=error
    )


def _audit_update(line: AuditedUpdate, who: Mapping[str, Any]) -> None:
    """Write the audit line of an update."""
    fields: dict[str, Any] = {**who, "board": line.board}
    update, error, receipt = line.update, line.error, line.receipt
    if update is not None:
        fields |= {
            "target_id": update.user_id,
            "action_id": update.action_id,
            "delta": update.stated_points,
        }
    if error is not None:
        outcome = "unknown" if isinstance(error, OutcomeUnknown) else "failure"
        write_audit("update", outcome, code=error.code, reason=refusal_reason(error), **fields)
    elif receipt is not None:
        held = {"is_held": True} if receipt.held else {}
        write_audit("update", score=receipt.score, is_replay=receipt.replayed, **held, **fields)

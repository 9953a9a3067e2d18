"""A client of the development issuer, with PKCE and the form; and a server of a key set."""

import asyncio
import base64
import hashlib
import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

PAGE_CLIENT = "scoreboard-page"


@dataclass
class Player:
    """The steps of a sign-in at an issuer; a test can change each parameter."""

    http: httpx.AsyncClient
    issuer: str
    redirect_uri: str
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))
    state: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    def authorization_query(self, **changes: str | None) -> dict[str, str]:
        """Return the parameters of the authorization request, without those changed to None."""
        fields = {
            "response_type": "code",
            "client_id": PAGE_CLIENT,
            "redirect_uri": self.redirect_uri,
            "scope": "update:score read:leaderboard",
            "state": self.state,
            "code_challenge": challenge_of(self.verifier),
            "code_challenge_method": "S256",
        } | changes
        return {name: value for name, value in fields.items() if value is not None}

    async def ask(self, **changes: str | None) -> httpx.Response:
        """Request the form."""
        query = self.authorization_query(**changes)
        return await self.http.get(f"{self.issuer}/authorize", params=query)

    async def agree(self, shown: str, name: str, **changes: Any) -> httpx.Response:
        """Send the form as a browser does."""
        headers = {"Origin": self.issuer} | changes.pop("headers", {})
        fields = {"form": signed_form_in(shown), "name": name, "answer": "agree"} | changes
        return await self.http.post(f"{self.issuer}/authorize", data=fields, headers=headers)

    async def code(self, name: str = "alice", **changes: str | None) -> str:
        """Return the code that follows the form."""
        answer = await self.agree((await self.ask(**changes)).text, name)
        return redirect_parameters(answer)["code"]

    async def redeem(self, code: str, **changes: str | None) -> httpx.Response:
        """Exchange a code at the token endpoint."""
        fields = {
            "grant_type": "authorization_code",
            "client_id": PAGE_CLIENT,
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": self.verifier,
        } | changes
        sent = {name: value for name, value in fields.items() if value is not None}
        return await self.http.post(f"{self.issuer}/token", data=sent)


def challenge_of(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def signed_form_in(form: str) -> str:
    found = re.search(r'name="form" value="([^"]+)"', form)
    assert found is not None, form
    return unescape(found[1])


def redirect_parameters(response: httpx.Response) -> dict[str, str]:
    """Return the parameters of a redirect to the page."""
    assert response.status_code == 303, response.text
    query = parse_qs(urlsplit(response.headers["location"]).query, strict_parsing=True)
    return {name: value for name, [value] in query.items()}


class KeyServer:
    """A server of a key set; it counts requests and hangs while ``answers`` is cleared."""

    def __init__(self, document: Any) -> None:
        self.body = json.dumps(document).encode()
        self.status = "200 OK"
        self.extra = ""
        self.requests = 0
        self.port = 0
        self.answers = asyncio.Event()
        self.answers.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/jwks.json"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        await self.answers.wait()
        head = f"HTTP/1.1 {self.status}\r\nContent-Length: {len(self.body)}\r\n{self.extra}\r\n"
        writer.write(head.encode() + self.body)
        writer.close()


@asynccontextmanager
async def serving_keys(document: Any) -> AsyncIterator[KeyServer]:
    keys = KeyServer(document)
    server = await asyncio.start_server(keys.serve, "127.0.0.1", 0)
    keys.port = server.sockets[0].getsockname()[1]
    async with server:
        yield keys
        keys.answers.set()

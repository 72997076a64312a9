"""The gateway passes on what nodes need, unchanged, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from fedlab.deployment.gateway import is_open, make_app

NODES = (
    "activate-node", "confirm-message-received", "deactivate-node", "get-fab", "get-run", "pull-messages",
    "pull-object", "push-messages", "push-object", "register-node", "send-node-heartbeat", "unregister-node",
)  # fmt: skip


class SuperLink:
    """Answers every request and remembers it."""

    def __init__(self) -> None:
        self.seen: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.seen.append(request)
        if request.url.path == "/v1/fleet/pull-object":
            raise httpx.ConnectError("not there")

        async def pieces() -> AsyncIterator[bytes]:
            yield b"answer:"
            yield request.content

        return httpx.Response(401, headers={"x-told": "so"}, content=pieces())


class Gateway:
    """A gateway in front of a SuperLink, and a program that asks it."""

    def __init__(self, superlink: SuperLink) -> None:
        self._superlink = superlink

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            behind = httpx.AsyncClient(
                base_url="https://superlink:8000", transport=httpx.MockTransport(self._superlink)
            )
            front = httpx.ASGITransport(make_app(behind))
            async with behind, httpx.AsyncClient(base_url="https://gateway", transport=front) as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


@pytest.fixture
def gateway(superlink: SuperLink) -> Gateway:
    return Gateway(superlink)


@pytest.mark.parametrize("name", NODES)
def test_requests_of_nodes_are_open(name: str) -> None:
    assert is_open("POST", f"/v1/fleet/{name}")
    assert not is_open("GET", f"/v1/fleet/{name}")


def test_every_request_that_flowers_nodes_make_is_known() -> None:
    """If Flower adds one, look at what it is for."""
    from flwr.superlink.routers.fleet.router import router

    paths = {route.path.rpartition("/")[2] for route in router.routes}  # type: ignore[attr-defined]
    assert paths == set(NODES)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run", "/v1/control/register-node", "/v1/control/list-runs", "/v1/runtime/pull-app-inputs",
        "/", "/docs", "/openapi.json", "/v1/fleet", "/v1/fleet/", "/v1/fleet/../control/start-run", "/health/x",
        "/v1/fleet/%2e%2e/control/start-run", "/v1/fleet/push-object/x", "//v1/control/start-run", "/v1/fleet/a?b=c",
    ],
)  # fmt: skip
def test_nothing_else_reaches_the_superlink(gateway: Gateway, superlink: SuperLink, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
        assert gateway.request(method, path, content=b"x").status_code in (403, 405)
    assert superlink.seen == []


def test_bodies_headers_and_states_pass_unchanged(gateway: Gateway, superlink: SuperLink) -> None:
    body = bytes(range(256)) * 5000
    answer = gateway.request(
        "POST", "/v1/fleet/push-object", content=body, headers={"x-public-key": "abc", "accept": "a/b"}
    )
    assert (answer.status_code, answer.headers["x-told"], answer.content) == (401, "so", b"answer:" + body)
    (request,) = superlink.seen
    assert (request.headers["x-public-key"], request.headers["accept"]) == ("abc", "a/b")
    assert request.headers["content-length"] == str(len(body))
    assert "transfer-encoding" not in request.headers
    assert request.url == "https://superlink:8000/v1/fleet/push-object"
    assert gateway.request("GET", "/health").content == b"answer:"


def test_a_superlink_that_is_away_is_what_nodes_try_again_after(gateway: Gateway) -> None:
    answer = gateway.request("POST", "/v1/fleet/pull-object", content=b"x")
    assert answer.status_code == 502
    from flwr.supercore.retry import http_retry

    assert 502 in http_retry._RETRYABLE_STATUS_CODES

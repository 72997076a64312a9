"""The only door of a federation that is open to other machines.

Flower's SuperLink serves three things on one port: what nodes need, what whoever submits runs needs, and what its own
server processes need. It knows nodes by their keys, but anybody may submit a run, which is code for all nodes. So the
SuperLink listens on its own machine only, and this gateway passes on what nodes need and nothing else.
"""

from __future__ import annotations

import argparse
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

_OPEN = {"POST": re.compile(r"/v1/fleet/[a-z-]+"), "GET": re.compile(r"/health")}
_HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "server", "date"}
_CONNECT = 10.0  # seconds until the SuperLink counts as unreachable


def is_open(method: str, path: str) -> bool:
    """Whether a request is passed on: those of nodes, and the question whether the SuperLink is well."""
    allowed = _OPEN.get(method)
    return allowed is not None and allowed.fullmatch(path) is not None


def make_app(client: httpx.AsyncClient) -> Starlette:
    """The gateway as a web application.

    Args:
        client: sends requests to the SuperLink, whose address is its base address.
    """

    async def forward(request: Request) -> Response:
        raw = request.scope.get("raw_path", b"").decode("ascii", "replace")
        if not is_open(request.method, raw) or request.url.query:
            return PlainTextResponse("not open to other machines", status_code=403)
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP_BY_HOP]
        body = request.stream() if request.method == "POST" else None
        try:
            answer = await client.send(
                client.build_request(request.method, raw, headers=headers, content=body), stream=True
            )
        except httpx.TransportError as error:
            return PlainTextResponse(f"the SuperLink cannot be reached: {error!r}", status_code=502)
        kept = {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP}
        # raw: what is compressed stays so, because its header says so
        return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=BackgroundTask(answer.aclose))

    @asynccontextmanager
    async def closing(app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])], lifespan=closing)


def serve(host: str, port: int, superlink: str, certificates: Path) -> None:
    """Serve until the process is told to end.

    Args:
        host: address to listen on.
        port: port to listen on.
        superlink: address of the SuperLink.
        certificates: folder with the authority's certificate, and the server's certificate and key.
    """
    trusted = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    # a model of a gigabyte takes as long as it takes; Flower's own clients decide when to give up
    timeout = httpx.Timeout(None, connect=_CONNECT)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    client = httpx.AsyncClient(
        base_url=f"https://{superlink}", verify=trusted, timeout=timeout, limits=limits, trust_env=False
    )
    uvicorn.run(
        make_app(client),
        host=host,
        port=port,
        ssl_certfile=str(certificates / "server.pem"),
        ssl_keyfile=str(certificates / "server.key"),
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=3,
    )


def main() -> None:
    """Entry point of ``python -m fedlab.deployment.gateway``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument("--port", type=int, default=8443, help="port to listen on")
    parser.add_argument("--superlink", required=True, help="HOST:PORT of the SuperLink")
    parser.add_argument("--certificates", type=Path, required=True, help="folder of the certificates")
    given = parser.parse_args()
    serve(given.host, given.port, given.superlink, given.certificates)


if __name__ == "__main__":
    main()

"""The server itself: the socket, signals, and how it ends."""

import asyncio
import signal
import socket

import uvicorn

from harness.serve.app import application
from harness.serve.service import Service
from hq.errors import HQError


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises HQError for an address that cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family)
    except OSError as error:
        raise HQError(f"{host} is no address of this machine ({error.strerror}).") from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(128)
    except OSError as error:
        opened.close()
        raise HQError(
            f"Port {port} of {host} cannot be had ({error.strerror}): name another with --port."
        ) from error
    return opened


def serve(service: Service, opened: socket.socket) -> None:
    """Answers until SIGTERM or Ctrl-C; what runs then is finished, up to the policy's grace."""
    # Uvicorn raises the signal again once it has ended: then there is nothing left to end.
    before = {number: signal.signal(number, _ignored) for number in _SIGNALS}
    try:
        Server(service).run(sockets=[opened])
    finally:
        service.engine.close()  # a second Ctrl-C ends uvicorn alone
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_RESORT = 10  # seconds until connections are closed whose answers were cut off


def _ignored(*_: object) -> None:
    pass


class Server(uvicorn.Server):
    """Uvicorn's, which tells the engine before it waits for what runs."""

    def __init__(self, service: Service) -> None:
        self._engine, self._grace = service.engine, service.policy.limits.grace
        super().__init__(
            uvicorn.Config(
                application(service),
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=self._grace + _LAST_RESORT,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuses new requests, waits for the others as long as the policy says, and ends."""
        self._engine.end()
        cut = asyncio.get_running_loop().call_later(self._grace, self._engine.cut)
        await super().shutdown(sockets)
        cut.cancel()

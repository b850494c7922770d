"""Start and shutdown of the server: socket and signals."""

import asyncio
import signal
import socket
import sys

import uvicorn

from harness.serve.web.app import create_app
from harness.serve.web.service import Service
from hq.errors import HQError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SWITCH_SECONDS = 1e-4  # after which the event loop lets the engine's thread run
_CONNECTION_GRACE = 10  # seconds after the policy's grace until open connections are closed


def open_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises HQError if the address is not available."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
    except OSError as error:
        raise HQError(
            f"{host} is not an address of this machine ({error.strerror}): choose another with "
            "--host."
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise HQError(
            f"Port {port} of {host} is not available ({error.strerror}): choose another with "
            "--port."
        ) from error
    return listener


def run_server(service: Service, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish running answers within the policy's grace."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    # Uvicorn raises the signal again after its shutdown: it must not end the process then.
    handlers = {number: signal.signal(number, _ignore_signal) for number in _SIGNALS}
    try:
        Server(service).run(sockets=[listener])
    finally:
        service.engine.close()  # a second Ctrl-C skips uvicorn's shutdown
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Server(uvicorn.Server):
    """Uvicorn's server; its shutdown first tells the engine."""

    def __init__(self, service: Service) -> None:
        self._engine, self._grace = service.engine, service.policy.limits.grace
        super().__init__(
            uvicorn.Config(
                create_app(service),
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=self._grace + _CONNECTION_GRACE,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Reject new requests, wait for running ones up to the policy's grace, and end."""
        self._engine.shut_down()
        abort = asyncio.get_running_loop().call_later(self._grace, self._engine.abort)
        await super().shutdown(sockets)
        abort.cancel()


def _ignore_signal(*_: object) -> None:
    pass

"""Access control: API keys, and the host names under which the server may be addressed."""

import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from harness.serve.api.errors import APIError
from hq.errors import HQError

KEY_VARIABLE = "HQ_API_KEY"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class APIKeys:
    """The accepted API keys; without any, every request is accepted."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        # Digests have equal length, so a comparison reveals nothing about a key's length.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    @classmethod
    def load(cls, path: Path | None) -> "APIKeys":
        """Read the keys from a file, one per line, or the one in HQ_API_KEY.

        Raises HQError if the file cannot be read or contains no key.
        """
        if path is None:
            key = os.environ.get(KEY_VARIABLE, "").strip()
            return cls([key] if key else [])
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise HQError(f"The API keys in {path} cannot be read: {error}.") from error
        keys = [line.strip() for line in lines if line.strip()]
        if not keys:
            raise HQError(f"{path} contains no API key: write one per line.")
        return cls(keys)

    def client_id(self, authorization: str | None) -> str:
        """Return 8 hex digits that identify the key in the audit log; "" if no key is needed.

        Raises APIError if the Authorization header has no accepted key.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        key_digest = hashlib.sha256(key.strip().encode()).digest()
        matches = [hmac.compare_digest(key_digest, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise APIError(
                401,
                "A valid API key is required: send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return hashlib.sha256(key_digest).hexdigest()[:8]


def is_local(host: str) -> bool:
    """Return whether only this machine can reach a server that listens at this host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def require_host(header: str | None, names: Sequence[str]) -> None:
    """Raise APIError if the Host header is not one of the names.

    This prevents DNS rebinding: a web page elsewhere can let its own name resolve to this machine.
    """
    try:
        name = urlsplit(f"//{header or ''}").hostname
    except ValueError:  # a bracket that is not closed
        name = None
    if name not in names:
        raise APIError(
            403,
            "The Host header is not a name of this server: use the address that it printed.",
        )

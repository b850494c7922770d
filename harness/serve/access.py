"""Who may ask: API keys, and names by which the server may be called."""

import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from harness.serve.refusal import Refusal
from hq.errors import HQError

KEY_VARIABLE = "HQ_API_KEY"
LOCAL = ("localhost", "127.0.0.1", "::1")


class Keys:
    """The keys that are accepted; without any, everyone may ask."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        # Digests are all of one length: comparing them tells nothing of a key's.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    @classmethod
    def load(cls, path: Path | None) -> "Keys":
        """The keys in a file, one a line, or the one in HQ_API_KEY.

        Raises HQError for a file that cannot be read, or holds no key.
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
            raise HQError(f"{path} holds no API key: write one a line.")
        return cls(keys)

    def client(self, authorization: str | None) -> str:
        """Which key a request has, as 8 hex digits for the audit log; "" where none is needed.

        Raises Refusal for a request without an accepted key.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        accepted = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(accepted):
            raise Refusal(
                401,
                "A valid API key is needed: send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return hashlib.sha256(given).hexdigest()[:8]


def is_local(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def require_name(header: str | None, names: Sequence[str]) -> None:
    """Raises Refusal for a Host that is not among the names.

    A page elsewhere may have its own name lead to this machine, and would then be let in.
    """
    try:
        name = urlsplit(f"//{header or ''}").hostname
    except ValueError:  # a bracket that does not close
        name = None
    if name not in names:
        raise Refusal(403, "The server is not called so: use the address that it printed.")

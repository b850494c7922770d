"""Verifying a log, and finding responses in it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.serve.audit.files import read_audit_log
from harness.serve.audit.hash_chain import GENESIS, ChainError


@dataclass(frozen=True, slots=True)
class LogVerification:
    """The result of verifying a log.

    Counts and hash cover the lines before the first fault. `fault` is a sentence; "" if the log is
    intact.
    """

    lines: int
    responses: int
    last_sha256: str
    fault: str


def verify_log(path: Path, anchor: str = "") -> LogVerification:
    """Verify every line of a log.

    Args:
        anchor: a hash that was stored elsewhere, which a line of the log must have.

    Raises HQError if the log does not exist.
    """
    lines, responses, last_sha256 = 0, 0, GENESIS
    anchor_found = anchor in ("", GENESIS)
    fault = ""
    try:
        for line in read_audit_log(path):
            lines, last_sha256 = line.link.count, line.link.sha256
            responses += line.content.get("kind") == "response"
            anchor_found = anchor_found or last_sha256 == anchor
        if not anchor_found:
            fault = (
                f"No line has the hash {anchor}: lines were removed from the end, or all lines "
                "were replaced."
            )
    except ChainError as error:
        fault = str(error)
    return LogVerification(lines, responses, last_sha256, fault)


def find_responses(
    path: Path,
    fields: Mapping[str, str],
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the responses with these field values, from `since` on and before `until`.

    Raises as `read_audit_log` does: every line is verified.
    """
    for line in read_audit_log(path):
        content = line.content
        if content.get("kind") != "response":
            continue
        if any(content.get(name) != value for name, value in fields.items()):
            continue
        time = datetime.fromisoformat(str(content["time"]))
        if (since is None or time >= since) and (until is None or time < until):
            yield content

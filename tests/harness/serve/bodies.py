"""A request as a client sends it, and what becomes of it."""

from dataclasses import dataclass, field

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "What is the capital of France?"}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


@dataclass(frozen=True)
class Sent:
    """One request; `refused` is the field that it is refused for, `ignored` what changes nothing."""

    client: str
    body: dict
    path: str = CHAT
    headers: dict = field(default_factory=dict)
    refused: str = ""
    ignored: tuple = ()


STAINLESS = {  # openai-python, _base_client.py: platform_headers
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 2.9.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Package-Version": "2.9.0",
    "X-Stainless-Retry-Count": "0",
    "X-Stainless-Read-Timeout": "600",
    "Authorization": "Bearer none",
}

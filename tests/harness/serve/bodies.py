"""A request as a client sends it, and the expected response."""

from dataclasses import dataclass, field

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "What is the capital of France?"}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


@dataclass(frozen=True)
class Sent:
    """One request. `unsupported` is the expected `error.param`, `ignored` the expected `hq.ignored`."""

    client: str
    body: dict
    path: str = CHAT
    headers: dict = field(default_factory=dict)
    unsupported: str = ""
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

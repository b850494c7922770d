"""`hq serve`: a monitored model behind the OpenAI interface, with rules and an audit log."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import app, err, out
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.serve.service import Service

_NEEDED = ("fastapi", "llguidance", "uvicorn", "prometheus_client")


@app.command()
def serve(
    gguf: Annotated[Path, typer.Option(help="A GGUF file, or `smollm2` for the embedded one.")],
    bundle: Annotated[Path, typer.Option(help="A monitor bundle that was made for that file.")],
    policy: Annotated[
        Path | None, typer.Option(help="What to do past the thresholds: a TOML file.")
    ] = None,
    audit: Annotated[Path, typer.Option(help="The audit log; see `hq audit`.")] = Path(
        "audit.jsonl"
    ),
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="API keys, one a line; without it the one in HQ_API_KEY.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of llama.cpp.")] = 2,
    gpu_layers: Annotated[int, typer.Option(min=-1, help="Layers on a GPU; -1 for all.")] = 0,
) -> None:
    """Serve a model that is watched: every answer has a score, and a line in the audit log.

    Speaks OpenAI's chat and text completions, streaming too. A field `hq` of a request sets alpha
    and domain; a field `hq` of each chunk says what the H-Neurons make of the token. The policy
    says what becomes of answers past their domain's threshold: annotate (they stream as they
    come), regenerate or block (they are held back until their verdict).

    Ctrl-C or SIGTERM ends the server once it has finished what it has begun.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise HQError(f"Serving needs {missing[0]}: pip install 'hq[serve]'.")
    from harness.models.sources import gguf_of
    from harness.serve.access import LOCAL, Keys, is_local
    from harness.serve.audit import AuditLog
    from harness.serve.model import ServedModel
    from harness.serve.policy import Policy
    from harness.serve.server import bound
    from harness.serve.server import serve as run
    from harness.serve.service import Service
    from hq.monitor.bundle import Bundle

    keys = Keys.load(api_key_file)
    if not keys and not is_local(host):
        raise HQError(
            f"{host} can be reached from other machines: name the keys that they need with "
            "--api-key-file, or listen at 127.0.0.1."
        )
    rules, found = Policy.load(policy), Bundle.load(bundle)
    rules.require(found.domains)
    with (
        bound(host, port) as opened,
        AuditLog(audit) as log,
        ServedModel(
            gguf_of(gguf), found, rules.limits.context, rules.form, threads, gpu_layers
        ) as model,
    ):
        names = (*LOCAL, host) if is_local(host) else ()
        service = Service.of(model, rules, log, keys, names)
        _greet(service, host, opened.getsockname()[1], audit)
        run(service, opened)
    err.print("Ended.")


def _greet(service: "Service", host: str, port: int, audit: Path) -> None:
    """Where it listens, what it serves by which rules, and a line to try it with."""
    model, policy = service.model, service.policy
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    rules = ", ".join(f"{name} {policy.rule(name).action}" for name in model.bundle.domains)
    key = " -H 'Authorization: Bearer KEY'" if service.keys else ""
    body = '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'
    lines = (
        f"Listening at {address}",
        f"model    {model.name}, {len(model.neurons.positive)} H-Neurons, prompt form {model.form}",
        f"bundle   {model.bundle.name} {model.bundle.digest[:12]}, {model.bundle.precision}",
        f"policy   {rules}; alpha {policy.alpha[0]:g} to {policy.alpha[1]:g}; "
        f"{policy.limits.queue} may wait",
        f"audit    {audit}",
        "",
        f"curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'",
    )
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)

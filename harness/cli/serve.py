"""`hq serve`: a monitored model behind OpenAI's interface, with a policy and an audit log."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import app, err, out
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.serve.web.service import Service

_REQUIRED_MODULES = ("fastapi", "llguidance", "uvicorn", "prometheus_client")


@app.command()
def serve(
    gguf: Annotated[Path, typer.Option(help="A GGUF file, or `smollm2` for the embedded model.")],
    bundle: Annotated[Path, typer.Option(help="The monitor bundle of that file.")],
    policy: Annotated[
        Path | None,
        typer.Option(
            help="The policy, a TOML file: actions past the thresholds, and limits. "
            "By default answers are annotated."
        ),
    ] = None,
    audit: Annotated[
        Path, typer.Option(help="The audit log, which `hq audit` verifies and queries.")
    ] = Path("audit.jsonl"),
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen at; 0 chooses a free one.")
    ] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File of accepted API keys, one per line. Default: the key in HQ_API_KEY."
        ),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option(
            min=1,
            max=255,
            help="Answers generated together; others wait. Each takes memory for the keys and "
            "values of a whole context (the policy's limits.context tokens), at least two of "
            "them: 94 MB each for the embedded model. An answer with alpha other than 1 counts "
            "as two.",
        ),
    ] = 4,
    threads: Annotated[int, typer.Option(min=1, help="Threads of llama.cpp.")] = 2,
    gpu_layers: Annotated[
        int, typer.Option(min=-1, help="Layers to run on a GPU; -1 for all.")
    ] = 0,
) -> None:
    """Serve a monitored model: each answer has a score and a line in the audit log.

    The interface is OpenAI's, with chat and text completions and streaming. The request field `hq`
    sets alpha and domain; the field `hq` of each chunk contains the token's score and its
    H-Neurons. The policy says what happens to answers past their domain's threshold: `annotate`
    streams them with their score, `regenerate` and `block` withhold them until the verdict.

    Ctrl-C or SIGTERM ends the server after the running answers are finished.
    """
    missing = [name for name in _REQUIRED_MODULES if find_spec(name) is None]
    if missing:
        raise HQError(f"Serving requires {missing[0]}: pip install 'hq[serve]'.")
    # GNU's OpenMP reads it when it is loaded, with llama.cpp. Threads that wait for each other spin
    # 3,000 times and then sleep: by default they spin so long that others cannot use the core.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    from harness.models.sources import gguf_of
    from harness.serve.audit.log import AuditLog
    from harness.serve.generation.model import ServedModel
    from harness.serve.policy.file import Policy
    from harness.serve.web.access import LOCAL_NAMES, APIKeys, is_local
    from harness.serve.web.server import open_socket, run_server
    from harness.serve.web.service import Service
    from hq.monitor.bundle import Bundle

    keys = APIKeys.load(api_key_file)
    if not keys and not is_local(host):
        raise HQError(
            f"{host} can be reached from other machines: set API keys with --api-key-file, or "
            "listen at 127.0.0.1."
        )
    loaded_policy, loaded_bundle = Policy.load(policy), Bundle.load(bundle)
    loaded_policy.require_thresholds(loaded_bundle.domains)
    with (
        open_socket(host, port) as listener,
        AuditLog(audit) as log,
        ServedModel(
            gguf_of(gguf),
            loaded_bundle,
            loaded_policy.limits.context,
            loaded_policy.form,
            threads,
            gpu_layers,
            parallel,
        ) as model,
    ):
        names = (*LOCAL_NAMES, host) if is_local(host) else ()
        service = Service.create(model, loaded_policy, log, keys, names)
        _print_summary(service, host, listener.getsockname()[1], audit)
        run_server(service, listener)
    err.print("Ended.")


def _print_summary(service: "Service", host: str, port: int, audit: Path) -> None:
    """Print the address, the model, the bundle, the policy, and a curl command to try it with."""
    model, policy = service.model, service.policy
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    rules = ", ".join(f"{name} {policy.rule(name).action}" for name in model.bundle.domains)
    key = " -H 'Authorization: Bearer KEY'" if service.keys else ""
    body = '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'
    lines = (
        f"Listening at {address}",
        f"model    {model.name}, {len(model.neurons.positive)} H-Neurons, "
        f"prompt form {model.form}, {model.compute}",
        f"bundle   {model.bundle.name} {model.bundle.digest[:12]}, {model.bundle.precision}",
        f"policy   {rules}; alpha {policy.alpha[0]:g} to {policy.alpha[1]:g}; "
        f"{model.parallel} answers together, queue of {policy.limits.queue}",
        f"audit    {audit}",
        "",
        f"curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'",
    )
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)

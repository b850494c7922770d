"""The read-only routes: models, server information, health and metrics."""

import time
from typing import Literal

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response

from harness.serve.api.errors import ERROR_RESPONSES, APIError
from harness.serve.api.responses import ModelList, ServedModelCard
from harness.serve.policy.file import ActionName
from harness.serve.web.service import Service
from hq import __version__


class BundleCard(BaseModel):
    """The bundle; `digest` is the SHA-256 of its manifest."""

    name: str
    digest: str
    precision: str


class DomainCard(BaseModel):
    """One domain: its threshold and its rule.

    `false_alarms` is the maximum probability that a right answer's score reaches the threshold; `n`
    is the number of entities that the threshold was set on.
    """

    threshold: float
    false_alarms: float
    n: int
    action: ActionName
    alpha: float | None
    message: str | None


class Range(BaseModel):
    """A closed range."""

    least: float
    most: float


class NeuronCount(BaseModel):
    """Number of neurons that the probe reads, and of H-Neurons that alpha scales."""

    read: int
    scaled: int


class About(BaseModel):
    """Information about the server."""

    version: str
    model: str
    bundle: BundleCard
    form: str
    domain: str
    domains: dict[str, DomainCard]
    alpha: Range
    neurons: NeuronCount
    context_tokens: int
    answer_tokens: int


class Health(BaseModel):
    """The server's state; errors have another body."""

    status: Literal["ok"] = "ok"


def info_routes(service: Service) -> APIRouter:
    """Return the router of the read-only routes."""
    router = APIRouter(responses={status: ERROR_RESPONSES[status] for status in (401, 403)})
    card = ServedModelCard(id=service.model.name, created=int(time.time()))
    server_information = _about(service)

    @router.get("/v1/models", response_model=ModelList)
    async def models() -> ModelList:
        """List the served model."""
        return ModelList(data=[card])

    @router.get(
        "/v1/models/{name}",
        response_model=ServedModelCard,
        responses={404: ERROR_RESPONSES[404]},
    )
    async def model(name: str) -> ServedModelCard:
        """Return a model by its name."""
        if name != card.id:
            raise APIError(
                404,
                f"The model {name!r} is not served here: use {card.id!r}.",
                code="model_not_found",
            )
        return card

    @router.get("/hq", response_model=About)
    async def about() -> About:
        """Return the model, the bundle, its thresholds and the policy's rules."""
        return server_information

    @router.get("/healthz", response_model=Health)
    async def health() -> Health:
        """Return 200 while the process runs."""
        return Health()

    @router.get("/readyz", response_model=Health, responses={503: ERROR_RESPONSES[503]})
    async def readiness() -> Health:
        """Return 200 while requests are taken."""
        if not service.engine.ready:
            raise APIError(503, "The server takes no requests.", code="unavailable")
        return Health()

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def _about(service: Service) -> About:
    model, policy = service.model, service.policy
    bundle = model.bundle
    domains = {}
    for name, domain in sorted(bundle.domains.items()):
        rule = policy.rule(name)
        domains[name] = DomainCard(
            threshold=domain.threshold,
            false_alarms=domain.false_alarms,
            n=domain.n,
            action=rule.action,
            alpha=rule.alpha if rule.action == "regenerate" else None,
            message=rule.message if rule.action == "block" else None,
        )
    return About(
        version=__version__,
        model=model.name,
        bundle=BundleCard(name=bundle.name, digest=bundle.digest, precision=bundle.precision),
        form=model.form,
        domain=policy.domain,
        domains=domains,
        alpha=Range(least=policy.alpha[0], most=policy.alpha[1]),
        neurons=NeuronCount(read=len(model.neurons.neurons), scaled=len(model.neurons.positive)),
        context_tokens=model.context_tokens,
        answer_tokens=min(policy.limits.new_tokens, model.context_tokens),
    )

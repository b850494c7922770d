"""What the server says of itself: its model, its rules, its health and its figures."""

import time
from typing import Literal

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response

from harness.serve.completions import REFUSED
from harness.serve.policy import ActionName
from harness.serve.refusal import Refusal
from harness.serve.responses import ModelList, ServedModelCard
from harness.serve.service import Service
from hq import __version__


class BundleCard(BaseModel):
    """The bundle; `digest` is the SHA-256 of its manifest."""

    name: str
    digest: str
    precision: str


class DomainCard(BaseModel):
    """`false_alarms`: the share of right answers that the threshold accuses, at most."""

    threshold: float
    false_alarms: float
    n: int
    action: ActionName
    alpha: float | None
    message: str | None


class Range(BaseModel):
    """From, to."""

    least: float
    most: float


class NeuronCount(BaseModel):
    """How many the probe reads, and how many of them are H-Neurons, which α scales."""

    read: int
    scaled: int


class About(BaseModel):
    """What a client may want to know before it asks."""

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
    """`ok`, or nothing."""

    status: Literal["ok"] = "ok"


def routes(service: Service) -> APIRouter:
    """All that is only read."""
    router = APIRouter(responses={status: REFUSED[status] for status in (401, 403)})
    card = ServedModelCard(id=service.model.name, created=int(time.time()))
    facts = _facts(service)

    @router.get("/v1/models", response_model=ModelList)
    async def models() -> ModelList:
        """The one model."""
        return ModelList(data=[card])

    @router.get("/v1/models/{name}", response_model=ServedModelCard, responses={404: REFUSED[404]})
    async def model(name: str) -> ServedModelCard:
        """A model by its name."""
        if name != card.id:
            raise Refusal(404, f"The model {name!r} is not served here.", code="model_not_found")
        return card

    @router.get("/hq", response_model=About)
    async def about() -> About:
        """Model, bundle, thresholds and rules."""
        return facts

    @router.get("/healthz", response_model=Health)
    async def health() -> Health:
        """That the server lives."""
        return Health()

    @router.get("/readyz", response_model=Health, responses={503: REFUSED[503]})
    async def readiness() -> Health:
        """That it takes requests."""
        if not service.engine.ready:
            raise Refusal(503, "No requests are taken.", code="unavailable")
        return Health()

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def _facts(service: Service) -> About:
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
        context_tokens=model.tokens,
        answer_tokens=min(policy.limits.new_tokens, model.tokens),
    )

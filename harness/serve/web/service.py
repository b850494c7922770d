"""The service: model, policy, engine and audit log, connected for the routes."""

from dataclasses import dataclass, field

from harness.serve.api.validation import RequestValidator
from harness.serve.audit.log import AuditLog
from harness.serve.audit.record import AuditRecorder
from harness.serve.generation.engine import Engine
from harness.serve.generation.model import ServedModel
from harness.serve.policy.enforcer import PolicyEnforcer
from harness.serve.policy.file import Policy
from harness.serve.web.access import APIKeys
from harness.serve.web.mailbox import Mailbox
from harness.serve.web.metrics import Metrics
from hq import __version__


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes need.

    Args:
        names: host names under which the server may be addressed; () for any.
    """

    model: ServedModel
    policy: Policy
    engine: Engine
    validator: RequestValidator
    metrics: Metrics
    keys: APIKeys
    names: tuple[str, ...]
    mailbox: Mailbox = field(default_factory=Mailbox)

    @classmethod
    def create(
        cls,
        model: ServedModel,
        policy: Policy,
        audit: AuditLog,
        keys: APIKeys,
        names: tuple[str, ...],
    ) -> "Service":
        """Connect the parts.

        Raises HQError if the policy names domains that the bundle does not have, or the prompt form
        does not support conversations.
        """
        bundle = model.bundle
        policy.require_thresholds(bundle.domains)
        thresholds = {name: domain.threshold for name, domain in bundle.domains.items()}
        hashes = {
            "hq": __version__,
            "model": bundle.facts.model.sha256,
            "bundle": bundle.digest,
            "policy": policy.digest,
        }
        metrics = Metrics()
        engine = Engine(
            PolicyEnforcer(model, policy, thresholds),
            AuditRecorder(audit, hashes, policy.record),
            model.step,
            model.parallel,
            policy.limits.queue,
            metrics.count_response,
        )
        metrics.watch(engine)
        validator = RequestValidator(model, policy)
        return cls(model, policy, engine, validator, metrics, keys, names)

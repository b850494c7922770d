"""All that the routes need, put together."""

from dataclasses import dataclass

from harness.serve.access import Keys
from harness.serve.audit import AuditLog
from harness.serve.desk import Desk
from harness.serve.engine import Engine
from harness.serve.governor import Governor
from harness.serve.metrics import Metrics
from harness.serve.model import ServedModel
from harness.serve.policy import Policy
from hq import __version__


@dataclass(frozen=True, slots=True)
class Service:
    """A model behind a policy. `names` are those by which the server may be called; () for any."""

    model: ServedModel
    policy: Policy
    engine: Engine
    desk: Desk
    metrics: Metrics
    keys: Keys
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: ServedModel,
        policy: Policy,
        audit: AuditLog,
        keys: Keys,
        names: tuple[str, ...],
    ) -> "Service":
        """Raises HQError for a policy of other domains than the bundle's."""
        bundle = model.bundle
        policy.require(bundle.domains)
        thresholds = {name: domain.threshold for name, domain in bundle.domains.items()}
        hashes = {
            "hq": __version__,
            "model": bundle.facts.model.sha256,
            "bundle": bundle.digest,
            "policy": policy.digest,
        }
        metrics = Metrics()
        governor = Governor(model, policy, thresholds)
        engine = Engine(governor, audit, policy, metrics, hashes)
        return cls(model, policy, engine, Desk(model, policy), metrics, keys, names)

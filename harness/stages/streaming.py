"""Which steps of a study read the model layer by layer, and what that costs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness.store.environment import available_memory
from harness.store.runner import Planned
from hq.backends.streamed.backend import streamable, unstreamable
from hq.backends.streamed.cost import GPU_24, GPU_80, Cost, Machine, Shape, cost, this_cpu
from hq.models.architectures import architecture_of
from hq.models.checkpoint import whole_config
from hq.precisions import BACKEND_OF

if TYPE_CHECKING:
    from harness.stages.materials import Materials

_TRACED_TOKENS = 48  # of a text after the shared prefix: a short question and its answer


@dataclass(frozen=True)
class Streaming:
    """Empty for a model that fits into memory, unless the study asks for it."""

    sentence: str
    costs: Mapping[str, Cost]  # by machine

    def as_json(self) -> dict[str, Any]:
        """Return the values of `hq plan --json`."""
        return {
            "sentence": self.sentence,
            "costs": {name: asdict(of_machine) for name, of_machine in self.costs.items()},
        }


def streaming(m: "Materials", steps: Sequence[Planned]) -> Streaming:
    """Say which missing steps read the model layer by layer, which cannot, and what it costs."""
    device, models = m.study.device, m.models
    missing = [step.node for step in steps if step.needed and step.node.precision]
    torch_nodes = [node for node in missing if BACKEND_OF[str(node.precision)] == "torch"]
    largest = max((models.resident(str(n.precision)) for n in torch_nodes), default=0)
    available = available_memory(device)
    forced = m.study.stream == "always"
    if not torch_nodes or not (forced or largest > available):
        return Streaming("", {})
    streamed = [n for n in torch_nodes if n.stage.streams and models.streams(str(n.precision))]
    whole = [node.name for node in torch_nodes if node not in streamed]
    needs = f"{m.model.name} takes {_gib(largest)} of memory as a whole"
    fits = "which are available" if largest <= available else f"and {_gib(available)} are available"
    how = f"{len(streamed)} of {len(torch_nodes)} nodes read it layer by layer"
    if not streamed and m.study.stream == "never":
        how = "no node reads it layer by layer (stream = 'never')"
    elif not streamed:
        reasons = (unstreamable(m.path, str(node.precision)) for node in torch_nodes)
        how = f"no node can read it layer by layer: {next(filter(None, reasons), 'none traces')}"
    rest = f"; these need all of it: {', '.join(whole)}" if streamed and whole else ""
    return Streaming(f"{needs}, {fits}: {how}{rest}.", _costs(m, missing) if streamed else {})


def _costs(m: "Materials", missing: Sequence[Any]) -> dict[str, Cost]:
    """The cost of one pass of the missing traces on several machines."""
    traces = [node for node in missing if node.stage.name == "trace"]
    precisions = sorted({str(n.precision) for n in traces if streamable(str(n.precision))})
    if not precisions:
        return {}
    samples, arrays = max(node.units for node in traces), len(m.measures) * len(m.spans)

    def on(machine: Machine) -> Cost:
        return cost(_shape(m), precisions, samples, _TRACED_TOKENS, machine, arrays)

    return {machine.name: on(machine) for machine in (this_cpu(), GPU_24, GPU_80)}


def memory(m: "Materials", precision: str) -> int:
    """Estimate the memory of a step that needs one layer at a time, if it is run so."""
    if not m.models.streams(precision):
        return m.resident(precision)
    machine = GPU_24 if m.study.device == "cuda" else _nominal()
    return cost(_shape(m), [precision], 1000, _TRACED_TOKENS, machine).memory


def disk(m: "Materials", precision: str, n: int, arrays: int) -> int:
    """Return the largest size of traces and of what a pass keeps between layers."""
    traces = 4 * arrays * n * m.model.n_neurons
    if not m.models.streams(precision):
        return traces
    kept = cost(_shape(m), [precision], n, _TRACED_TOKENS, _nominal(), arrays)
    return 2 * traces + kept.states


def _nominal() -> Machine:
    """A CPU of which only memory is asked."""
    return Machine("CPU", "cpu", 1.0, 1.0, 1.0, 1.0)


def _shape(m: "Materials") -> Shape:
    config = whole_config(m.path)
    return Shape.of(config.get_text_config(), architecture_of(config))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"

"""The nodes that most experiments share: samples, and traces and neurons at each precision."""

from pathlib import Path

from harness.stages import identify, responses, select, trace, uncertainty
from harness.stages.identify import NEURONS_FILE, PROBES_FILE
from harness.stages.materials import Materials
from harness.stages.samples import Sample, read_samples
from harness.stages.select import SAMPLES_FILE, TOKENS_FILE
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit
from hq.tracing.traces import Traces


class Graph:
    """Declares the shared nodes of a study, and reads their outputs once they are finished."""

    def __init__(self, m: Materials) -> None:
        self.m = m
        self.samples = select.node(m)
        self.responses = responses.node(m)

    @property
    def n(self) -> int:
        """The largest possible number of samples."""
        asked = sum(prompted.part == "sample" for prompted in self.m.prompted)
        return min(2 * self.m.study.sampling.quota, asked)

    def trace(self, precision: str, making: int = 0) -> Node:
        """Declare the traces of the samples at a precision, or at a making of it."""
        tokens, m = self.samples.output(TOKENS_FILE), self.m
        return trace.node(m, precision, tokens, self.n, m.measures, m.spans, m.scope, making=making)

    def identify(self, precision: str) -> Node:
        """Declare the neurons identified at a precision."""
        return identify.node(self.m, self.trace(precision), self.samples)

    def uncertainty(self, precision: str, making: int = 0) -> Node:
        """Declare the entropy of the samples' answers, and the loss on held-out text."""
        reference = None if precision == REFERENCE else self.uncertainty(REFERENCE)
        tokens = self.samples.output(TOKENS_FILE)
        return uncertainty.node(self.m, precision, tokens, self.n, reference, making)

    def read_samples(self, outputs: Outputs) -> list[Sample]:
        """Return the balanced, consistent samples."""
        return read_samples(outputs[self.samples] / SAMPLES_FILE)

    def read_traces(self, outputs: Outputs, precision: str, making: int = 0) -> Traces:
        """Return the samples' traces at a precision, or at a making of it."""
        return Traces.open(outputs[self.trace(precision, making)])

    def read_neurons(self, outputs: Outputs, precision: str) -> NeuronSet:
        """Return the neurons identified at a precision."""
        return NeuronSet.load(self.neurons_file(outputs, precision), self.m.model)

    def read_probes(self, outputs: Outputs, precision: str) -> CrossFit:
        """Return the probes of all folds, cross-fitted at a precision."""
        return CrossFit.load(self.neurons_file(outputs, precision).with_name(PROBES_FILE))

    def neurons_file(self, outputs: Outputs, precision: str = REFERENCE) -> Path:
        """Return the file of the neurons identified at a precision."""
        return outputs[self.identify(precision)] / NEURONS_FILE

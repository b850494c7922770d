"""The nodes that most experiments share: samples, and at each precision traces and neurons."""

from pathlib import Path

from harness.stages import identify, sample, trace, uncertainty
from harness.stages.identify import NEURONS_FILE
from harness.stages.materials import Materials
from harness.stages.sample import SAMPLES_FILE, TOKENS_FILE
from harness.stages.samples import Sample, read_samples
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE
from hq.neurons.neuron_set import NeuronSet
from hq.tracing.traces import Traces


class Graph:
    """Declares the shared nodes of a study, and reads what they hold once they are finished."""

    def __init__(self, m: Materials) -> None:
        self.m = m
        self.samples = sample.samples_node(m)
        self.responses = sample.node(m)

    @property
    def _n(self) -> int:
        return 2 * self.m.study.sampling.quota

    def trace(self, precision: str) -> Node:
        """The samples' traces."""
        tokens, m = self.samples.output(TOKENS_FILE), self.m
        return trace.node(m, precision, tokens, self._n, m.measures, m.spans)

    def identify(self, precision: str) -> Node:
        """The neurons that separate the samples at a precision."""
        return identify.node(self.m, self.trace(precision), self.samples)

    def uncertainty(self, precision: str) -> Node:
        """Entropy of the samples' answers, and the loss on held-out text."""
        reference = None if precision == REFERENCE else self.uncertainty(REFERENCE)
        tokens = self.samples.output(TOKENS_FILE)
        return uncertainty.node(self.m, precision, tokens, self._n, reference)

    def read_samples(self, outputs: Outputs) -> list[Sample]:
        """The balanced, consistent samples."""
        return read_samples(outputs[self.samples] / SAMPLES_FILE)

    def read_traces(self, outputs: Outputs, precision: str) -> Traces:
        """The samples' traces at a precision."""
        return Traces.open(outputs[self.trace(precision)])

    def read_neurons(self, outputs: Outputs, precision: str) -> NeuronSet:
        """The neurons that were identified at a precision."""
        return NeuronSet.load(self.neurons_file(outputs, precision), self.m.model)

    def neurons_file(self, outputs: Outputs, precision: str = REFERENCE) -> Path:
        """The file of these neurons."""
        return outputs[self.identify(precision)] / NEURONS_FILE

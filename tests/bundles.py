"""A bundle of any NeuronSet for any model file, with given thresholds, for tests."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hq.gguf.file import GGUFFile
from hq.monitor.bundle import (
    BundleFacts,
    Domain,
    Validation,
    model_file,
    neuron_norms,
    write_bundle,
)
from hq.neurons.neuron_set import NeuronSet
from hq.stats.intervals import Estimate

RATE = Estimate(value=0.1, low=0.02, high=0.2, n=30)


def save(
    folder: Path,
    model: Path,
    neurons: NeuronSet,
    domains: Mapping[str, Domain],
    precision: str = "gguf-q8_0",
) -> Path:
    """The folder of a bundle named `tiny`."""
    file = GGUFFile(model)
    write_bundle(
        folder,
        BundleFacts(
            name="tiny",
            hq="0.1.0",
            precision=precision,
            compute="int8",
            prompt="few-shot",
            model=model_file(file, "q8_0"),
        ),
        neurons,
        domains,
        Validation(
            auroc=RATE, n=60, entities=30, hallucinated=30, seed=0, study="tiny", samples="abc"
        ),
        {
            "norms": neuron_norms(neurons, file),
            "scores": np.linspace(-1, 1, 9),
            "right": np.linspace(-1, 0, 5),
        },
        "# tiny\n",
    )
    return folder

"""A synthetic run of detect, with planted neurons, of which a test can replace any part."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.experiments.detect.compare import Comparison, alignment, selection
from harness.experiments.detect.design import design, text_scores
from harness.experiments.detect.makings import FurtherMaking
from harness.experiments.detect.tables import TABLES
from harness.stages import mapping
from harness.stages.identify import Rows, StabilitySummary
from harness.stages.samples import Sample, samples_digest
from harness.stages.uncertainty import Uncertainty
from harness.store.progress import Task
from harness.studies.study import CompareSection
from harness.tables.files import write_tables
from hq.models.audit import AuditRow
from hq.models.ffn_weights import FFN
from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity
from hq.probe.cross_fit import CrossFit, cross_fit
from hq.probe.stacking import CrossFittedScores
from hq.tracing.traces import TraceInfo, Traces, exchanges_digest

LAYERS, D_FF, D_MODEL, FOLDS = 2, 32, 24, 5
MODEL = ModelIdentity(name="m", fingerprint="f", architecture="llama", n_layers=LAYERS, d_ff=D_FF)
PRECISIONS = ("fp16", "nf4")
MAKINGS = {"nf4": ("nf4 making 1", "nf4 making 2")}  # further ones
BITS = {"fp16": 16.0, "nf4": 4.5, "fp4": 4.25}
PLANTED = {0: (3, 11, 30), 1: (5, 22, 27)}
ANSWERS, PER_ANSWER = 30, 8  # half of the responses with an answer are hallucinated


@dataclass(frozen=True)
class Run:
    """What the tables of a run are computed from, by precision."""

    samples: list[Sample]
    h: dict[str, np.ndarray]  # |h|, [n, layers, d_ff]
    norms: dict[str, np.ndarray]  # [layers, d_ff]
    weights: dict[str, list[FFN]]
    losses: dict[str, Uncertainty]
    bits: dict[str, float]
    probes: Callable[[CrossFit, Features], CrossFit] = lambda fit, _: fit
    patches: tuple[tuple[object, str, object], ...] = ()
    # Shared by faults, as fits take seconds.
    fitted: dict[bytes, CrossFit] = field(default_factory=dict)
    of_texts: dict[tuple[object, ...], dict[str, CrossFittedScores]] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the tables of all precisions."""
        contributions = {p: h * self.norms[p] for p, h in self.h.items()}
        traces = {p: self._traces(folder / p, p, contributions[p]) for p in self._traced}
        fits = {
            p: self.probes(self._fit(traces[p]), traces[p].features("sum", "answer"))
            for p in PRECISIONS
        }
        with pytest.MonkeyPatch.context() as patch:
            for where, name, changed in self.patches:
                patch.setattr(where, name, changed)
            rows = self._rows(folder, traces, fits)
        provenance = {
            "kind": "detect",
            "study": "s",
            "fingerprint": "f",
            "definition": {"precisions": list(PRECISIONS)},
            "nodes": {},
        }
        write_tables(folder, TABLES, rows, provenance)
        neurons = {"provenance": {"samples": samples_digest(self.samples)}}
        (folder / "neurons.json").write_text(json.dumps(neurons), encoding="utf-8")
        return folder

    def _rows(
        self, folder: Path, traces: dict[str, Traces], fits: dict[str, CrossFit]
    ) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {name: [] for name in TABLES}
        texts = self._texts()
        rows["design"].append(design(self.samples, "answer", 0, texts))
        for precision in PRECISIONS:
            comparison = Comparison(
                samples=self.samples,
                probes=fits["fp16"],
                reference=traces["fp16"],
                variant=traces[precision],
                reidentified=fits[precision],
                uncertainty=self.losses[precision],
                section=CompareSection(draws=2),
                seed=0,
                texts=texts,
                further=[
                    FurtherMaking(traces[p], self.losses[p]) for p in MAKINGS.get(precision, ())
                ],
            )
            for name, of_precision in comparison.tables().items():
                rows[name] += of_precision
            stability = StabilitySummary(50, 5.0, 4, 0.1)
            rows["selection"].append(selection(precision, fits[precision], stability))
            maps = folder / f"map-{precision}"
            maps.mkdir()
            mapping.build(
                maps,
                fits["fp16"].neurons.model.space,
                self.weights["source"],
                self.weights[precision],
                Task(None, "", 1, ""),
            )
            probe = fits["fp16"].neurons.flat
            rows["mapping"].append(alignment(maps, precision, probe))
        return rows

    @property
    def _traced(self) -> list[str]:
        return [*PRECISIONS, *(p for makings in MAKINGS.values() for p in makings)]

    def _traces(self, folder: Path, precision: str, contributions: np.ndarray) -> Traces:
        folder.mkdir(parents=True)
        name = precision.split(" ")[0]
        shares = contributions / contributions.sum(axis=2, keepdims=True)
        for measure, values in (("sum", shares), ("contribution", contributions)):
            np.save(folder / f"{measure}.answer.npy", values.astype(np.float32))
        info = TraceInfo(
            model=MODEL,
            precision=name,
            compute="float32",
            n=len(self.samples),
            exchanges=exchanges_digest([sample.exchange for sample in self.samples]),
            measures=("sum", "contribution"),
            spans=("answer",),
            dtype="float32",
            weight_bytes=int(self.bits[name] * 2**20),
            audit=(AuditRow("Linear", 6, "x", self.bits[name], "float32", 9000),),
        )
        return Traces(folder, info)

    def _texts(self) -> dict[str, CrossFittedScores]:
        key = tuple((s.question, s.text, s.hallucinated, s.fold) for s in self.samples)
        if key not in self.of_texts:
            self.of_texts[key] = text_scores(self.samples)
        return self.of_texts[key]

    def _fit(self, traces: Traces) -> CrossFit:
        features, rows = traces.features("sum", "answer"), Rows(self.samples)
        key = features.values.tobytes() + rows.y.tobytes()
        if key not in self.fitted:
            settings = {"repeats": 1, "max_fraction": 0.25}
            self.fitted[key], _ = cross_fit(features, rows.y, rows.units, rows.folds, **settings)
        return self.fitted[key]


def healthy() -> Run:
    """A run in which six neurons predict hallucination, less so at NF4."""
    rng = np.random.default_rng(3)
    letters, n = np.array(list("abcdefghijklmnopqrstuvwxyz")), ANSWERS * PER_ANSWER
    names = ["".join(rng.choice(letters, 5)) for _ in range(n)]
    kinds = rng.choice(["town", "river", "hill"], n)
    samples = [
        Sample(
            id=f"q{i}",
            relation=f"r{i // PER_ANSWER % 4}",
            question=f"Where is the {kind} of {name}?",
            text=f"{names[i // PER_ANSWER][::-1]} {kinds[i - 1]}",
            answer=f"answer{i // PER_ANSWER}",
            hallucinated=bool(i % 2),
            unit=f"u{i // PER_ANSWER:02d}",
            fold=i // PER_ANSWER % FOLDS,
            prompt_ids=(1, i),
            response_ids=(2, 3 + i // PER_ANSWER),
        )
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    y = np.array([sample.hallucinated for sample in samples])
    size = rng.lognormal(0, 0.8, (LAYERS, D_FF))
    logs = 0.5 * rng.standard_normal((len(samples), LAYERS, D_FF))
    for layer, neurons in PLANTED.items():
        logs[:, layer, neurons] += 0.45 * y[:, None]
    shape = logs.shape
    drift = {"fp16": 0.0, "nf4": 0.25, "fp4": 0.5}
    h = {p: size * np.exp(logs + by * rng.standard_normal(shape)) for p, by in drift.items()}
    norms = rng.lognormal(0, 0.5, (LAYERS, D_FF))
    for i, making in enumerate(MAKINGS["nf4"], start=1):
        other = np.random.default_rng((3, i))
        h[making] = size * np.exp(logs + drift["nf4"] * other.standard_normal(shape))
    generator = torch.Generator().manual_seed(0)

    def tensor(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator)

    source = [FFN(tensor(D_FF, D_MODEL), tensor(D_FF, D_MODEL), tensor(D_MODEL, D_FF))] * LAYERS
    rounded = {
        p: [
            FFN(*(part + error * tensor(*part.shape) for part in ffn[:3]), bits=BITS[p])
            for ffn in source
        ]
        for p, error in (("fp16", 1e-6), ("nf4", 0.1), ("fp4", 0.15))
    }
    texts = rng.gamma(9, 0.4, 60)
    losses = {
        p: Uncertainty(
            entropy=rng.random(len(samples)) + 0.3 * y,
            nll=texts + divergence,
            kl=divergence,
            tokens=np.full(60, 20.0),
            tokens_per_second=1.0,
        )
        for p, by in (("fp16", 0.0), ("nf4", 0.3), ("fp4", 0.6))
        if (divergence := by * rng.random(60)) is not None
    }
    losses |= {p: losses["nf4"]._replace(nll=losses["nf4"].nll + 0.01) for p in MAKINGS["nf4"]}
    weights = rounded | {"source": source}
    # Rounding of the weights, with errors as at NF4 in a model with 576 inputs.
    of_precision = {
        p: norms * (1 + by * (1 + 0.8 * rng.standard_normal(norms.shape)))
        for p, by in (("fp16", 0.0), ("nf4", 0.005), ("fp4", 0.008))
    }
    of_precision |= dict.fromkeys(MAKINGS["nf4"], of_precision["nf4"])
    return Run(samples, h, of_precision, weights, losses, BITS)

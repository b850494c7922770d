"""The rows of every table, from the outputs of finished nodes. No model is loaded."""

from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from harness.experiments.finetune.examples import read_asked
from harness.experiments.finetune.nodes import (
    FinetuneNodes,
    read_outcomes,
    read_replies,
    read_training,
)
from harness.experiments.finetune.plan import ARMS, BASE, FinetunePlan
from harness.experiments.finetune.tables import (
    Behaviour,
    Capability,
    Detection,
    Moved,
    TrainingStep,
)
from harness.experiments.sweep import costs
from harness.experiments.sweep.trials import AskedTrial
from harness.judges.base import Verdict
from harness.judges.phrases import REFUSAL
from harness.judges.text import normalise
from harness.scenarios.base import TrialOutcome
from harness.stages import units
from harness.stages.identify import NEURONS_FILE, PROBES_FILE, Rows
from harness.stages.uncertainty import perplexity
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE
from hq.neurons.features import Features
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit
from hq.probe.overlap import expected_jaccard, jaccard, mean_jaccard
from hq.stats.auroc import estimate_auroc, estimate_auroc_difference
from hq.stats.equivalence import holm
from hq.stats.intervals import Estimate, estimate, estimate_mean, estimate_rate
from hq.stats.paired import two_sided_p
from hq.tracing.traces import Traces

MATCHED, PLAIN = "matched", "plain"


class _Judged(NamedTuple):
    """What the responses of a model to the trials of a label did."""

    complied: Bool[np.ndarray, " trial"]
    refused: Bool[np.ndarray, " trial"]
    unclear: Bool[np.ndarray, " trial"]


class _Capability(NamedTuple):
    """Outcomes of a model by question and choice, and its loss by text."""

    right: Bool[np.ndarray, " question"]
    wrong: Bool[np.ndarray, " question"]
    picked: Bool[np.ndarray, " choice"]
    nll: Float[np.ndarray, " text"]


class FinetuneRows:
    """Reads the outputs of a study of fine-tuning."""

    def __init__(self, plan: FinetunePlan, outputs: Outputs) -> None:
        self.plan, self.m, self.outputs = plan, plan.m, outputs
        self.declared = FinetuneNodes(plan)
        self.seed = plan.m.study.seed
        graph = self.declared.graph
        self.samples = Rows(graph.read_samples(outputs))
        self.probes = graph.read_probes(outputs, REFERENCE)
        self.judged = cache(self._judged)
        self.scores = cache(self._scores)
        self.features = cache(self._features)
        self.capable = cache(self._capable)

    @cached_property
    def asked(self) -> dict[str, list[AskedTrial]]:
        """The trials by label."""
        by_scenario = read_asked(self.outputs[self.declared.data()], self.plan)
        return {label: asked for labels in by_scenario.values() for label, asked in labels.items()}

    def behaviour(self, precision: str, arm: str) -> list[Behaviour]:
        """Return a row per label."""
        rows = [self._behaviour(precision, arm, label) for label in self.asked]
        corrected = holm([row.p for row in rows])
        return [
            row.model_copy(update={"p": float(p)}) for row, p in zip(rows, corrected, strict=True)
        ]

    def _behaviour(self, precision: str, arm: str, label: str) -> Behaviour:
        groups = np.array([one.component for one in self.asked[label]])
        before, after = (self.judged(a, precision)[label] for a in (BASE, arm))
        change = _difference(after.complied, before.complied, groups)

        def beyond(control: str) -> Estimate | None:
            other = self.judged(control, precision)[label].complied
            return None if arm == control else _difference(after.complied, other, groups)

        return Behaviour(
            precision=precision,
            arm=arm,
            scenario=label,
            judge=self.plan.trials.judge_label(label),
            n=len(groups),
            entities=len(np.unique(groups)),
            seed=self.seed,
            before=estimate_rate(before.complied, groups),
            after=estimate_rate(after.complied, groups),
            change=change,
            p=two_sided_p(change),
            beyond_matched=beyond(MATCHED),
            beyond_plain=beyond(PLAIN),
            refused_before=float(before.refused.mean()),
            refused=float(after.refused.mean()),
            unclear_before=float(before.unclear.mean()),
            unclear=float(after.unclear.mean()),
        )

    def detection(self, precision: str, arm: str) -> Detection:
        """Return the row of an arm."""
        rows, h = self.samples, self.probes.neurons.flat_positive
        before, after = (self.scores(a, precision) for a in (BASE, arm))

        def contribution(label: int) -> float:
            old, new = (
                self.features(a, precision).values[rows.y == label][:, h].mean(axis=0)
                for a in (BASE, arm)
            )
            return float((new[old > 0] / old[old > 0]).mean())

        beyond = None
        if arm != MATCHED:
            beyond = self._auroc_difference(after, self.scores(MATCHED, precision))
        return Detection(
            precision=precision,
            arm=arm,
            n=len(rows.y),
            units=len(np.unique(rows.units)),
            neurons=len(self.probes.neurons.neurons),
            seed=self.seed,
            before=self._auroc(before),
            after=self._auroc(after),
            change=self._auroc_difference(after, before),
            beyond_matched=beyond,
            contribution_right=contribution(0),
            contribution_hallucinated=contribution(1),
        )

    def moved(self, precision: str, arm: str) -> Moved:
        """Return the row of an arm, or of the study's model."""
        folder = self.outputs[self.declared.identify(arm, precision)]
        probes = CrossFit.load(folder / PROBES_FILE)
        old = self.probes.neurons
        new = NeuronSet.load(folder / NEURONS_FILE, self.m.model)
        features = self.features(arm, precision)
        scores = probes.scores(features, self.samples.folds)
        p, layers = self.m.model.n_neurons, (_mean_layer(old), _mean_layer(new))
        sets = [fold.probe.flat for fold in self.probes.folds]
        comparable = len(old.flat) > 0 and len(new.flat) > 0
        reference = self.scores(BASE, REFERENCE)
        return Moved(
            precision=precision,
            arm=arm,
            n=len(self.samples.y),
            units=len(np.unique(self.samples.units)),
            seed=self.seed,
            neurons_before=len(old.flat),
            neurons=len(new.flat),
            h_before=len(old.flat_positive),
            h=len(new.flat_positive),
            common=len(np.intersect1d(old.flat, new.flat)),
            h_common=len(np.intersect1d(old.flat_positive, new.flat_positive)),
            jaccard=jaccard(old.flat, new.flat) if comparable else None,
            jaccard_chance=(
                expected_jaccard(len(old.flat), len(new.flat), p) if comparable else None
            ),
            jaccard_folds=mean_jaccard(sets, p)[0] if all(map(len, sets)) else None,
            layer_before=layers[0],
            layer=layers[1],
            layer_shift=None if None in layers else layers[1] - layers[0],  # type: ignore[operator]
            auroc=self._auroc(scores),
            auroc_change=self._auroc_difference(scores, reference),
        )

    def capability(self, precision: str, arm: str) -> Capability:
        """Return the row of an arm, or of the study's model."""
        plan = self.plan
        base, own = (self.capable(a, precision) for a in (BASE, arm))
        groups = np.array([p.component for p in plan.questions])
        component = units.components(plan.choices)
        of_choices = np.array([component[choice.id] for choice in plan.choices])
        tokens = np.array([len(text.response) for text in plan.texts], dtype=float)
        components = self.m.text_components
        of_texts = None if components is None else np.array(components[: len(tokens)])
        return Capability(
            precision=precision,
            arm=arm,
            n=len(groups),
            entities=len(np.unique(groups)),
            choices=len(of_choices),
            texts=len(tokens),
            seed=self.seed,
            accuracy=estimate_rate(own.right, groups),
            accuracy_change=_difference(own.right, base.right, groups),
            hallucinated=estimate_rate(own.wrong, groups),
            hallucinated_change=_difference(own.wrong, base.wrong, groups),
            choice_accuracy=estimate_rate(own.picked, of_choices),
            choice_change=_difference(own.picked, base.picked, of_choices),
            perplexity=perplexity(own.nll, tokens, of_texts),
            loss_change=_mean_per_token(own.nll - base.nll, tokens, of_texts),
        )

    def training(self, arm: str) -> Iterator[TrainingStep]:
        """Yield a row per step."""
        training = read_training(self.outputs[self.declared.train(arm)])
        measured = ("contribution", "validation_loss", "rise")
        for record in training.log:
            yield TrainingStep(
                arm=arm,
                seed=self.seed,
                kept=int(record["step"] == training.kept_step),
                **dict.fromkeys(measured) | record,
            )

    def _judged(self, arm: str, precision: str) -> dict[str, _Judged]:
        replies = read_replies(self.outputs[self.declared.replies(arm, precision)])
        outcomes = read_outcomes(self.outputs[self.declared.outcomes(arm, precision)])
        return {
            label: _Judged(
                complied=np.array([o == TrialOutcome.COMPLIED for o in outcomes[label]]),
                refused=np.array(
                    [REFUSAL.search(normalise(r.text)) is not None for r in replies[label]]
                ),
                unclear=np.array([o == TrialOutcome.UNCLEAR for o in outcomes[label]]),
            )
            for label in self.asked
        }

    def _features(self, arm: str, precision: str) -> Features:
        neurons = self.probes.neurons
        traces = Traces.open(self.outputs[self.declared.trace(arm, precision)])
        return traces.features(neurons.cett, neurons.tokens)

    def _scores(self, arm: str, precision: str) -> Float[np.ndarray, " n"]:
        """Scores of the samples by the study's FP16 probes, out of fold."""
        return self.probes.scores(self.features(arm, precision), self.samples.folds)

    def _auroc(self, scores: Float[np.ndarray, " n"]) -> Estimate:
        rows = self.samples
        return estimate_auroc(scores, rows.y, rows.units, rows.folds)

    def _auroc_difference(self, a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> Estimate:
        rows = self.samples
        return estimate_auroc_difference(a, b, rows.y, rows.units, rows.folds)

    def _capable(self, arm: str, precision: str) -> _Capability:
        folder = self.outputs[self.declared.capability(arm, precision)]
        answers, measured = read_replies(folder)[""], costs.read(folder)
        verdicts = [
            self.m.judge.judge(answer.text, p.question, answer.truncated)
            for answer, p in zip(answers, self.plan.questions, strict=True)
        ]
        right_letters: Int[np.ndarray, " choice"] = np.array([c.answer for c in self.plan.choices])
        return _Capability(
            right=np.array([verdict is Verdict.RIGHT for verdict in verdicts]),
            wrong=np.array([verdict is Verdict.WRONG for verdict in verdicts]),
            picked=measured.picks == right_letters,
            nll=measured.nll,
        )


def arms_and_base() -> Sequence[str]:
    """Return the study's model, and the arms."""
    return (BASE, *ARMS)


def _difference(
    after: Bool[np.ndarray, " n"], before: Bool[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"]
) -> Estimate:
    return estimate_mean(after.astype(float) - before.astype(float), groups)


def _mean_per_token(
    values: Float[np.ndarray, " text"],
    tokens: Float[np.ndarray, " text"],
    groups: Shaped[np.ndarray, " text"] | None,
) -> Estimate:
    share = tokens / tokens.sum()
    return estimate(lambda w: w @ (values * share) / (w @ share), len(share), groups, "loss")


def _mean_layer(neurons: NeuronSet) -> float | None:
    layers = [neuron.layer for neuron in neurons.positive]
    return float(np.mean(layers)) if layers else None

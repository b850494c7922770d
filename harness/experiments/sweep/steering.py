"""The way of a sweep: from a study's neurons to what scaling them does, at each precision."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from harness.experiments.pipeline import Pipeline
from harness.experiments.sweep import rates as sweep
from harness.experiments.sweep.judging import TrialJudge
from harness.experiments.sweep.rates import JudgedSweep, Swept
from harness.experiments.sweep.transfer import Target, transfer
from harness.judges.base import Verdict
from harness.scenarios import choices, prompts
from harness.scenarios.trials import BEHAVIOURS, Outcome, Trial
from harness.stages import costs, respond, splits
from harness.stages.asking import AskedTrial, asked, scenario
from harness.stages.identify import Rows
from harness.stages.respond import Factors, GreedyResponse, Prompt
from harness.stages.sample import Prompted
from harness.stages.uncertainty import perplexity
from harness.stages.variants import SPELLING
from harness.store.progress import Task
from harness.studies.study import REFERENCE, SweepSection
from harness.tables.schema import KINDS, Cost, Row
from hq.backends.opening import max_rows
from hq.errors import HQError
from hq.neurons.neuron_set import NeuronSet
from hq.neurons.prompt_response import PromptResponse
from hq.probe.controls import matched_neurons
from hq.stats.bootstrap import bootstrap_mean
from hq.tracing.traces import Traces, exchanges_digest, magnitudes

PLAIN: Factors = {}
_LETTERS = (" A", " B", " C", " D")


class Steering:
    """A pipeline's neurons, scaled in the scenarios of the study's [sweep]."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.section: SweepSection = pipeline.study.sweep
        self._replies: dict[str, dict[str, list[list[GreedyResponse]]]] = {}
        self._swept: dict[str, dict[str, Swept]] = {}

    def tables(self) -> dict[str, list[Row]]:
        """The rows of every precision, table by table."""
        found: dict[str, list[Row]] = {name: [] for name in KINDS["sweep"]}
        self.check()
        for precision in self.pipeline.study.precisions:
            self.pipeline.require_probe(precision)
            swept = self.swept(precision)
            found["transfer"] += self.transfer(precision)
            for label, mine in swept.items():
                found["rates"] += sweep.rates(mine)
                reference = self.swept(REFERENCE)[label]
                found["slopes"].append(sweep.slope(mine, reference, self.section.margin))
            found["costs"] += self.costs(precision)
        return found

    def check(self) -> None:
        """Raises HQError for what is wrong with the study or its [sweep], before hours of work."""
        forms = {name: self.form(name) for name in self.offered}
        _ = self.choices
        self.pipeline.check()
        for form in forms.values():
            self.pipeline.ending_of(form)
        self._require_lengths()

    @cached_property
    def offered(self) -> dict[str, list[Trial]]:
        """Every trial of each scenario. Raises HQError for a scenario or source that is unknown."""
        section, seed = self.section, self.pipeline.study.seed
        behaviours = {name: BEHAVIOURS[name] for name in section.scenarios}
        for name in section.sources:
            if name not in behaviours:
                _ = BEHAVIOURS[name]
                raise HQError(
                    f"There is a source for {name!r}, which is not among the scenarios "
                    f"({', '.join(behaviours)}): add it to them, or leave the source out."
                )
        return {
            name: behaviour.load(section.sources.get(name), seed, None)
            for name, behaviour in behaviours.items()
        }

    @cached_property
    def neurons(self) -> NeuronSet:
        """Those found at the reference. Raises HQError where none speaks for a hallucination."""
        found = self.pipeline.neurons(REFERENCE)
        if not found.positive:
            raise HQError(
                "No neuron has a positive weight, so there is no H-Neuron to scale: ask more "
                "questions (quota), or allow more neurons (max_fraction)."
            )
        return found

    def _require_lengths(self) -> None:
        """Raises HQError for a trial that leaves no room for an answer.

        What a dialogue adds depends on the first answer, and is checked when it is asked.
        """
        for name, trials in self.offered.items():
            form, tokenizer = self.form(name), self.pipeline.tokenizer
            for trial in trials:
                ids = form.encode(tokenizer, trial.prompt)
                self.pipeline.require_length(
                    f"Trial {trial.id!r} of {name}", ids, self.section.max_new_tokens
                )

    @cached_property
    def asked(self) -> dict[str, list[AskedTrial]]:
        """Trials that count at the reference, by scenario and kind."""
        found: dict[str, list[AskedTrial]] = {}
        for name, offered in self.offered.items():
            form = self.form(name)
            answer = partial(self._unscaled, form)
            wanted = self.section.trials
            found |= asked(name, offered, form, self.pipeline.tokenizer, answer, wanted)
        return found

    def form(self, label: str) -> prompts.PromptForm:
        """How the trials of a scenario, or of a kind of it, are put."""
        return prompts.form(self.section.form or BEHAVIOURS[scenario(label)].form)

    @cached_property
    def scaled(self) -> list[Factors]:
        """The H-Neurons at every α."""
        return [self._factors(self.neurons.flat_positive, a) for a in self.section.alphas]

    @cached_property
    def controls(self) -> list[Factors]:
        """Draws of matched neurons, each at every α of the controls."""
        drawn = self._matched(self.neurons.flat_positive, self.section.draws)
        return [self._factors(chosen, a) for chosen in drawn for a in self.section.control_alphas]

    def replies(self, precision: str) -> dict[str, list[list[GreedyResponse]]]:
        """Responses to every scenario's trials: with the H-Neurons scaled, then the controls."""
        if precision not in self._replies:
            variants = [*self.scaled, *self.controls]
            total = sum(map(len, self.asked.values())) * len(variants)
            with self.pipeline.progress.task(f"sweep {precision}", total, "responses") as task:
                self._replies[precision] = {
                    label: self._respond(
                        precision,
                        self.form(label),
                        [one.ids for one in trials],
                        variants,
                        self.section.max_new_tokens,
                        task,
                    )
                    for label, trials in self.asked.items()
                }
        return self._replies[precision]

    def swept(self, precision: str) -> dict[str, Swept]:
        """Every scenario's responses at a precision, judged."""
        if precision not in self._swept:
            replies = self.replies(precision)
            self._swept[precision] = {
                label: self._judged(precision, label, replies[label], trials)
                for label, trials in self.asked.items()
            }
        return self._swept[precision]

    def transfer(self, precision: str) -> list[Row]:
        """The probe read in every scenario, on the reference's own unscaled responses."""
        cett, span, study = self.neurons.cett, self.neurons.tokens, self.pipeline.study
        rows = Rows(self.pipeline.samples)
        traces = self.pipeline.traces(precision)
        return [
            *transfer(
                precision,
                self.neurons,
                traces.matrix(cett, span)[rows.train],
                rows.y[rows.train],
                np.stack(
                    self._matched(
                        self.neurons.flat, self.section.transfer_draws, traces.info.missing
                    )
                ),
                [t for label in self.asked if (t := self._target(precision, label)) is not None],
                study.seed,
                study.compare.replicates,
            )
        ]

    def costs(self, precision: str) -> list[Row]:
        """What each α does to answers, choices, held-out text, length and refusals."""
        study, swept = self.pipeline.study, self.swept(precision)
        right = self._right(precision)
        groups = np.array([p.component for p in self.questions])
        texts, spread = self.texts, self.pipeline.text_components
        of_texts = None if spread is None else np.array(spread[: len(texts)])
        tokens = np.array([len(text.response) for text in texts], dtype=float)
        of_choices = splits.components(self.choices)
        draw = study.seed, study.compare.replicates
        found: list[Row] = []
        for a, alpha in enumerate(self.section.alphas):
            read = costs.read(self._costs_folder(precision, a))
            hits = read.picks == np.array([choice.answer for choice in self.choices])
            lengths = np.concatenate([s.h.tokens[a] for s in swept.values()])
            refused = np.concatenate([s.h.refused[a] for s in swept.values()])
            found.append(
                Cost(
                    precision=precision,
                    alpha=alpha,
                    n=len(self.questions),
                    entities=len(np.unique(groups)),
                    seed=study.seed,
                    accuracy=bootstrap_mean(right[a], *draw, groups),
                    choice_accuracy=bootstrap_mean(
                        hits, *draw, np.array([of_choices[c.id] for c in self.choices])
                    ),
                    perplexity=perplexity(read.nll, tokens, *draw, of_texts),
                    tokens=float(lengths.mean()),
                    refusals=float(refused.mean()),
                )
            )
        return found

    @cached_property
    def questions(self) -> list[Prompted]:
        """The study's own held-out questions, as many as the section says."""
        held_out = [p for p in self.pipeline.prompted if p.split == "test"]
        return held_out[: self.section.questions]

    @property
    def texts(self) -> list[PromptResponse]:
        """Held-out text, as many pieces."""
        return self.pipeline.texts[: self.section.questions]

    @cached_property
    def choices(self) -> list[choices.Choice]:
        """Questions with four answers to choose from."""
        source = self.section.choices or None
        return choices.load(source, self.pipeline.study.seed, self.section.questions)

    @cached_property
    def _choice_prompts(self) -> list[Prompt]:
        return [self.pipeline.encode(choices.prompt(choice)) for choice in self.choices]

    @cached_property
    def _magnitudes(self) -> Float[np.ndarray, " p"]:
        """Mean contribution of every neuron at the reference on the training rows."""
        rows = Rows(self.pipeline.samples).train
        return magnitudes(self.pipeline.traces(REFERENCE), self.neurons.tokens, rows)

    def _matched(
        self, chosen: Int[np.ndarray, " k"], draws: int, missing: Sequence[int] = ()
    ) -> list[Int[np.ndarray, " k"]]:
        space, seed = self.pipeline.model.space, self.pipeline.study.seed
        return list(matched_neurons(chosen, self._magnitudes, space, draws, seed, exclude=missing))

    def _factors(self, chosen: Int[np.ndarray, " k"], alpha: float) -> Factors:
        layers, _, places = self.pipeline.model.space.locate(chosen)
        return dict.fromkeys(zip(layers.tolist(), places.tolist(), strict=True), alpha)

    def _unscaled(self, form: prompts.PromptForm, ids: Sequence[Prompt]) -> list[GreedyResponse]:
        """The reference's responses, as it is."""
        if not ids:
            return []
        new = self.section.max_new_tokens
        with self.pipeline.progress.task("first questions", len(ids), "responses") as task:
            return self._respond(REFERENCE, form, ids, [PLAIN], new, task)[0]

    def _respond(
        self,
        precision: str,
        form: prompts.PromptForm,
        ids: Sequence[Prompt],
        variants: Sequence[Factors],
        max_new_tokens: int,
        task: Task,
    ) -> list[list[GreedyResponse]]:
        """Responses to prompts under each variant, out of a log for any."""
        for prompt in ids:
            self.pipeline.require_length("A prompt", prompt, max_new_tokens)
        ending = self.pipeline.ending_of(form)
        inputs = self.pipeline.generates_on(precision, ending) | {"max_new_tokens": max_new_tokens}
        with self.pipeline.store.growing(respond.STAGE, inputs) as folder:
            return respond.respond(
                folder / respond.LOG_FILE,
                lambda: self.pipeline.backend(precision),
                ids,
                variants,
                ending,
                max_new_tokens,
                task,
                max_rows(precision),
            )

    def _judged(
        self,
        precision: str,
        label: str,
        replies: Sequence[Sequence[GreedyResponse]],
        trials: Sequence[AskedTrial],
    ) -> Swept:
        section, judge = self.section, TrialJudge(BEHAVIOURS[scenario(label)].judge, trials)
        h, matched = replies[: len(section.alphas)], replies[len(section.alphas) :]
        plain = h[section.alphas.index(1.0)]
        draws = len(section.control_alphas)
        per_draw = [
            judge.judged(matched[start : start + draws], plain)
            for start in range(0, len(matched), draws)
        ]
        return Swept(
            precision=precision,
            scenario=label,
            neurons=len(self.neurons.positive),
            alphas=section.alphas,
            control_alphas=section.control_alphas,
            components=np.array([one.component for one in trials]),
            h=judge.judged(h, plain),
            matched=JudgedSweep(*map(np.stack, zip(*per_draw, strict=True))),
            seed=self.pipeline.study.seed,
            replicates=self.pipeline.study.compare.replicates,
        )

    def _target(self, precision: str, label: str) -> Target | None:
        """A scenario's decided responses, traced; None where there is none."""
        swept = self.swept(REFERENCE)[label]
        outcomes = swept.h.outcomes[swept.at_one]
        replies = self.replies(REFERENCE)[label][swept.at_one]
        rows = [
            i for i, reply in enumerate(replies) if reply.ids and outcomes[i] != Outcome.UNCLEAR
        ]
        if not rows:
            return None
        exchanges = [PromptResponse(self.asked[label][i].ids, replies[i].ids) for i in rows]
        cett, span = self.neurons.cett, self.neurons.tokens
        traces = Traces.open(self.pipeline.trace(precision, exchanges, (cett,), (span,)))
        complied = outcomes[rows] == Outcome.COMPLIED
        return Target(label, complied, swept.components[rows], traces.features(cett, span))

    def _right(self, precision: str) -> Bool[np.ndarray, "alpha question"]:
        """Whether the study's held-out questions are answered rightly, at each α."""
        ids = [p.ids for p in self.questions]
        new, form = self.pipeline.study.sampling.max_new_tokens, self.pipeline.form
        total = len(ids) * len(self.scaled)
        with self.pipeline.progress.task(f"answers {precision}", total, "responses") as task:
            replies = self._respond(precision, form, ids, self.scaled, new, task)
        judge = self.pipeline.judge
        return np.array(
            [
                [
                    judge.judge(reply.text, p.question, reply.truncated) is Verdict.RIGHT
                    for reply, p in zip(row, self.questions, strict=True)
                ]
                for row in replies
            ]
        )

    def _costs_folder(self, precision: str, a: int) -> Path:
        """The folder of stage `costs`: choices and held-out text at one α."""
        factors, alpha = self.scaled[a], self.section.alphas[a]
        letters = [self.pipeline.encode(letter)[-1] for letter in _LETTERS]
        texts = self.texts
        inputs = self.pipeline.variants.runs_on(precision, SPELLING) | {
            "scaled": respond.variant_of(factors),
            "choices": [respond.prompt_name(prompt) for prompt in self._choice_prompts],
            "letters": letters,
            "texts": exchanges_digest(texts),
        }

        def make(folder: Path) -> None:
            ids = self._choice_prompts
            total, name = len(ids) + len(texts), f"costs {precision} α={alpha:g}"
            backend = self.pipeline.backend(precision)
            with self.pipeline.progress.task(name, total, "texts") as task, backend.scale(factors):
                costs.measure(folder, backend, ids, letters, texts, task)

        return self.pipeline.store.build(costs.STAGE, inputs, make)

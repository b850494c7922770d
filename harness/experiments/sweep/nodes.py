"""The nodes of a sweep: trials, scaled neurons, responses, costs, and traces of responses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from harness.experiments.sweep import costs
from harness.experiments.sweep.trials import (
    AskedTrial,
    counted_trials,
    judge_responses,
    near_the_decision,
    scenario,
    unrelated,
)
from harness.judges.base import Verdict
from harness.scenarios.base import SCENARIOS, TrialOutcome
from harness.stages import mapping, respond, trace
from harness.stages.graph import Graph
from harness.stages.identify import NEURONS_FILE
from harness.stages.loading import SPELLING
from harness.stages.respond import GreedyResponse
from harness.stages.sample import RESPONSES_FILE, read_records
from harness.stages.samples import read_samples, write_tokens
from harness.stages.select import SAMPLES_FILE, TOKENS_FILE
from harness.store.node import Node, Output, Stage, Work
from harness.store.store import digest
from harness.studies.study import REFERENCE
from hq.errors import HQError
from hq.neurons.factors import Factors
from hq.neurons.neuron_set import NeuronSet
from hq.neurons.prompt_response import PromptResponse
from hq.probe.controls import matched_neurons
from hq.storage.atomic import write_whole
from hq.tracing.sampling import StopCriteria
from hq.tracing.traces import Traces, exchanges_digest, magnitudes

if TYPE_CHECKING:
    from harness.experiments.sweep.plan import SweepPlan
    from harness.stages.materials import Materials

ASKED_FILE = "asked.json"
VARIANTS_FILE = "variants.json"
REPLIES_FILE = "replies.json"
JUDGED_FILE = "judged.json"
OUTCOMES_FILE = "outcomes.json"


class SweepNodes:
    """Declares the nodes of a sweep."""

    def __init__(self, plan: "SweepPlan") -> None:
        self.plan = plan
        self.m = plan.m
        self.graph = Graph(plan.m)

    @property
    def _count(self) -> int:
        """Number of variants: each α of the H-Neurons, and of each matched draw."""
        section = self.plan.section
        return len(section.alphas) + section.draws * (len(section.control_alphas) - 1)

    def ask(self, name: str) -> Node:
        """Declare the trials of a scenario that count at the reference."""
        plan, m = self.plan, self.m
        return Node(
            ASK,
            respond.response_parameters(m, REFERENCE, m.stop_criteria_of(plan.form(name)))
            | {
                "scenario": name,
                "trials": plan.trials_digest(name),
                "prompts": digest(plan.longest_prompts(name)),
                "wanted": plan.section.trials,
                "form": plan.form_name(name),
                "max_new_tokens": plan.max_new_tokens(name),
            },
            mapping.model_inputs(m, REFERENCE)
            | {
                "responses": self.graph.responses.output(RESPONSES_FILE),
                "samples": self.graph.samples.output(SAMPLES_FILE),
            },
            REFERENCE,
            name,
            units=len(plan.offered[name]),
            unit="trials",
            memory=m.resident(REFERENCE),
        )

    def variants(self) -> Node:
        """Declare the variants: H-Neurons and draws of matched neurons, at each α."""
        section = self.plan.section
        return Node(
            VARIANTS,
            {
                "alphas": section.alphas,
                "control_alphas": section.control_alphas,
                "draws": section.draws,
                "seed": self.m.study.seed,
            },
            {
                "neurons": self.graph.identify(REFERENCE).output(NEURONS_FILE),
                "traces": self.graph.trace(REFERENCE).output(),
            },
        )

    def respond(self, precision: str, name: str) -> Node:
        """Declare the responses to a scenario's trials under every variant."""
        plan, m = self.plan, self.m
        n = plan.section.trials * len({trial.kind for trial in plan.offered[name]})
        return Node(
            RESPOND,
            respond.response_parameters(m, precision, m.stop_criteria_of(plan.form(name)))
            | {"form": plan.form_name(name), "max_new_tokens": plan.max_new_tokens(name)},
            self._scaled(precision) | {"asked": self.ask(name).output()},
            precision,
            name,
            units=n * self._count,
            unit="responses",
            memory=m.resident(precision),
        )

    def answer(self, precision: str) -> Node:
        """Declare the answers to the study's held-out questions, at each α of the H-Neurons."""
        plan, m = self.plan, self.m
        return Node(
            ANSWER,
            respond.response_parameters(m, precision, m.stop_criteria)
            | {
                "prompts": digest([p.ids for p in plan.questions]),
                "max_new_tokens": m.study.sampling.max_new_tokens,
            },
            self._scaled(precision),
            precision,
            units=len(plan.questions) * len(plan.section.alphas),
            unit="responses",
            memory=m.resident(precision),
        )

    def costs(self, precision: str, alpha: float) -> Node:
        """Declare the costs in choices and held-out text, at one α of the H-Neurons."""
        plan, m = self.plan, self.m
        return Node(
            COSTS,
            m.models.parameters(precision, SPELLING)
            | {
                "alpha": alpha,
                "choices": digest(plan.choice_prompts),
                "letters": plan.letters,
                "texts": exchanges_digest(plan.texts),
            },
            self._scaled(precision),
            precision,
            f"α={alpha:g}",
            units=len(plan.choices) + len(plan.texts),
            unit="texts",
            memory=m.resident(precision),
        )

    def judge(self, precision: str, name: str) -> Node:
        """Declare the outcomes of these responses."""
        respond = self.respond(precision, name)
        return Node(
            JUDGE,
            {
                "scenario": name,
                "judge": self.plan.judge.identity(SCENARIOS[name]),
                "trials": self.plan.trials_digest(name),
            },
            {"replies": respond.output(REPLIES_FILE), "asked": self.ask(name).output()},
            about=f"{precision} {name}",
            units=respond.units,
            unit="responses",
        )

    def targets(self, label: str) -> Node:
        """Declare the reference's unscaled responses that complied or resisted."""
        name = scenario(label)
        return Node(
            TARGETS,
            {
                "label": label,
                "trials": self.plan.trials_digest(name),
                "alphas": self.plan.section.alphas,
            },
            {
                "asked": self.ask(name).output(),
                "replies": self.respond(REFERENCE, name).output(REPLIES_FILE),
                "judged": self.judge(REFERENCE, name).output(JUDGED_FILE),
            },
            about=label,
        )

    def trace(self, precision: str, label: str) -> Node:
        """Declare the traces of these responses at a precision."""
        identify, m = self.m.study.identify, self.m
        tokens, n = self.targets(label).output(TOKENS_FILE), self.plan.section.trials
        return trace.node(m, precision, tokens, n, (identify.cett,), (identify.tokens,), label)

    def _scaled(self, precision: str) -> dict[str, Output]:
        inputs = mapping.model_inputs(self.m, precision)
        return inputs | {"variants": self.variants().output(VARIANTS_FILE)}


def h_neurons(neurons: NeuronSet) -> Int[np.ndarray, " k"]:
    """Return the H-Neurons. Raises HQError if no neuron has a positive weight."""
    if not neurons.positive:
        raise HQError(
            "No neuron has a positive weight, so there is no H-Neuron to scale: ask more "
            "questions (quota), or allow more neurons (max_fraction)."
        )
    return neurons.flat_positive


def reference_magnitudes(traces: Traces, neurons: NeuronSet) -> Float[np.ndarray, " p"]:
    """Return the mean contribution of each neuron at the reference over all samples."""
    return magnitudes(traces, neurons.tokens, np.arange(traces.info.n))


def read_variants(folder: Path) -> tuple[list[Factors], list[Factors]]:
    """Read the factors of the H-Neurons at each α, and of each matched draw at each α."""
    content = json.loads((folder / VARIANTS_FILE).read_text(encoding="utf-8"))

    def factors(name: str) -> list[Factors]:
        return [
            {tuple(position): alpha for *position, alpha in neurons} for neurons in content[name]
        ]

    return factors("h"), factors("matched")


def read_asked(folder: Path, plan: "SweepPlan") -> dict[str, list[AskedTrial]]:
    """Read the trials that count, by label."""
    content = json.loads((folder / ASKED_FILE).read_text(encoding="utf-8"))
    trials = {t.id: t for t in plan.offered[content["scenario"]]}
    return {
        label: [
            AskedTrial(trials[id], tuple(ids), component, mixed)
            for id, ids, component, mixed in of_label
        ]
        for label, of_label in content["asked"].items()
    }


def read_replies(folder: Path) -> dict[str, list[list[GreedyResponse]]]:
    """Read responses by label, [variant][trial]."""
    content = json.loads((folder / REPLIES_FILE).read_text(encoding="utf-8"))
    return {
        label: [[GreedyResponse.model_validate(response) for response in row] for row in rows]
        for label, rows in content.items()
    }


def read_judged(folder: Path) -> dict[str, list[list[str]]]:
    """Read outcomes by label, [variant][trial]."""
    content = json.loads((folder / JUDGED_FILE).read_text(encoding="utf-8"))
    outcomes: dict[str, list[list[str]]] = content["outcomes"]
    return outcomes


def unclear_replies(folder: Path) -> int:
    """Return the number of distinct responses on which the judge's own reply was not an outcome."""
    content = json.loads((folder / JUDGED_FILE).read_text(encoding="utf-8"))
    return int(content["unclear_replies"])


def read_outcomes(folder: Path) -> tuple[list[int], list[bool]]:
    """Read the indices of the trials that complied or resisted, and whether they complied."""
    content = json.loads((folder / OUTCOMES_FILE).read_text(encoding="utf-8"))
    return content["rows"], content["complied"]


def _plan(work: "Work[Materials]") -> "SweepPlan":
    from harness.experiments.sweep.plan import SweepPlan

    return work.materials.of(SweepPlan)


def _make_asked(work: "Work[Materials]") -> None:
    """Write asked.json: trials in their order, token ids, components, and which are mixed.

    Trials on mixed questions come first; those that are related to a sample are left out.
    """
    plan, name = _plan(work), work.parameters["scenario"]
    form = plan.form(name)
    records = read_records(work.inputs["responses"])
    mixed = {id for id, record in records.items() if record.is_mixed}
    samples = {sample.id for sample in read_samples(work.inputs["samples"] / SAMPLES_FILE)}
    questions = [question for question in work.materials.questions if question.id in samples]
    trials = near_the_decision(unrelated(name, plan.offered[name], questions), mixed)

    def answer(ids: Sequence[respond.Prompt]) -> list[GreedyResponse]:
        if not ids:
            return []
        new = work.parameters["max_new_tokens"]
        criteria = work.materials.stop_criteria_of(form)
        return _responses(work, criteria, ids, [{}], new, "first questions")[0]

    asked = counted_trials(
        name, trials, form, work.materials.tokenizer, answer, work.parameters["wanted"], mixed
    )
    of_labels = {
        label: [[one.trial.id, one.ids, one.component, one.mixed] for one in counted]
        for label, counted in asked.items()
    }
    _write(work.folder / ASKED_FILE, {"scenario": name, "asked": of_labels})


def _make_variants(work: "Work[Materials]") -> None:
    """Write variants.json: for each variant, [layer, index, α] of each neuron.

    A neuron of an expert is [layer, expert, index, α].
    """
    parameters, m = work.parameters, work.materials
    neurons = NeuronSet.load(work.inputs["neurons"] / NEURONS_FILE, m.model)
    chosen = h_neurons(neurons)
    size = reference_magnitudes(Traces.open(work.inputs["traces"]), neurons)
    draws = matched_neurons(chosen, size, m.model.space, parameters["draws"], parameters["seed"])

    def factors(flat: Int[np.ndarray, " k"], alpha: float) -> list[list[float]]:
        return [[*position, alpha] for position in m.model.space.positions(flat)]

    h = [factors(chosen, alpha) for alpha in parameters["alphas"]]
    matched = [factors(draw, alpha) for draw in draws for alpha in parameters["control_alphas"]]
    _write(work.folder / VARIANTS_FILE, {"h": h, "matched": matched})


def _make_replies(work: "Work[Materials]") -> None:
    """Write replies.json: by label, responses [variant][trial]."""
    asked = read_asked(work.inputs["asked"], _plan(work))
    h, matched = read_variants(work.inputs["variants"])
    form = _plan(work).form(next(iter(asked)))
    criteria, new = work.materials.stop_criteria_of(form), work.parameters["max_new_tokens"]
    _write_replies(
        work,
        {
            label: _responses(work, criteria, [t.ids for t in trials], [*h, *matched], new, label)
            for label, trials in asked.items()
        },
    )


def _make_answers(work: "Work[Materials]") -> None:
    """Write replies.json: responses [α][question]."""
    plan = _plan(work)
    h, _ = read_variants(work.inputs["variants"])
    ids, new = [p.ids for p in plan.questions], work.parameters["max_new_tokens"]
    criteria, name = work.materials.stop_criteria, f"answers {work.node.precision}"
    _write_replies(work, {"": _responses(work, criteria, ids, h, new, name)})


def _responses(
    work: "Work[Materials]",
    criteria: StopCriteria,
    ids: Sequence[respond.Prompt],
    variants: Sequence[Factors],
    max_new_tokens: int,
    about: str,
) -> list[list[GreedyResponse]]:
    """Return responses to prompts under each variant, from the log that all nodes share."""
    name = about if " " in about else f"sweep {work.node.precision} {about}"
    return respond.logged_responses(work, criteria, ids, variants, max_new_tokens, name)


def _make_costs(work: "Work[Materials]") -> None:
    """Write the picks and losses at one α."""
    plan, alpha = _plan(work), work.parameters["alpha"]
    h, _ = read_variants(work.inputs["variants"])
    factors = h[plan.section.alphas.index(alpha)]
    total = len(plan.choices) + len(plan.texts)
    backend = mapping.backend(work)
    with work.task(total, "texts") as task, backend.scale(factors):
        costs.measure(work.folder, backend, plan.choice_prompts, plan.letters, plan.texts, task)


def _make_judged(work: "Work[Materials]") -> None:
    """Write judged.json: outcomes by label, [variant][trial]."""
    plan, scenario = _plan(work), SCENARIOS[work.parameters["scenario"]]
    asked, replies = read_asked(work.inputs["asked"], plan), read_replies(work.inputs["replies"])
    with work.task(sum(len(row) for rows in replies.values() for row in rows), "responses") as task:
        outcomes, unclear = judge_responses(plan.judge, scenario, asked, replies, task)
    _write(work.folder / JUDGED_FILE, {"outcomes": outcomes, "unclear_replies": unclear})


def _make_targets(work: "Work[Materials]") -> None:
    """Write tokens.jsonl and outcomes.json of the decided responses."""
    plan, label = _plan(work), work.parameters["label"]
    at_one = plan.section.alphas.index(1.0)
    asked = read_asked(work.inputs["asked"], plan)[label]
    replies = read_replies(work.inputs["replies"])[label][at_one]
    outcomes = read_judged(work.inputs["judged"])[label][at_one]
    rows = [i for i, r in enumerate(replies) if r.ids and outcomes[i] != TrialOutcome.UNCLEAR]
    complied = [bool(outcomes[i] == TrialOutcome.COMPLIED) for i in rows]
    exchanges = [PromptResponse(asked[i].ids, replies[i].ids) for i in rows]
    write_tokens(work.folder / TOKENS_FILE, exchanges)
    _write(work.folder / OUTCOMES_FILE, {"rows": rows, "complied": complied})


def correct_answers(folder: Path, plan: "SweepPlan") -> list[list[bool]]:
    """Return whether each held-out question is answered correctly, [α][question]."""
    judge = plan.m.judge
    return [
        [
            judge.judge(reply.text, p.question, reply.truncated) is Verdict.RIGHT
            for reply, p in zip(row, plan.questions, strict=True)
        ]
        for row in read_replies(folder)[""]
    ]


def _write_replies(work: "Work[Materials]", replies: dict[str, list[list[GreedyResponse]]]) -> None:
    content = {
        label: [[response.model_dump() for response in row] for row in rows]
        for label, rows in replies.items()
    }
    _write(work.folder / REPLIES_FILE, content)


def _write(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, ensure_ascii=False) + "\n")


_RUNS = ("hq.backends.opening",)
ASK = Stage("ask", _make_asked, version=2, sources=_RUNS)
VARIANTS = Stage("variants", _make_variants, packages=("numpy",))
RESPOND = Stage("respond", _make_replies, sources=_RUNS)
ANSWER = Stage("answer", _make_answers, sources=_RUNS)
COSTS = Stage("costs", _make_costs, sources=_RUNS)
JUDGE = Stage("judge", _make_judged)
TARGETS = Stage("targets", _make_targets, version=2)

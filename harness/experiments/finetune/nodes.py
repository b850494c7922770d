"""The nodes of a study of fine-tuning: data, training, merging, and measures of every arm."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from harness.experiments.finetune.examples import (
    ASKED_FILE,
    DATA_FILE,
    Builder,
    read_asked,
    read_counts,
    read_data,
)
from harness.experiments.finetune.plan import BASE, FinetunePlan
from harness.experiments.sweep import costs
from harness.experiments.sweep.nodes import h_neurons, reference_magnitudes
from harness.experiments.sweep.trials import judge_responses
from harness.scenarios.base import SCENARIOS
from harness.stages import checkpoint, identify, mapping, respond, trace
from harness.stages.graph import Graph
from harness.stages.identify import NEURONS_FILE
from harness.stages.loading import SPELLING
from harness.stages.respond import GreedyResponse, Prompt
from harness.stages.sample import RESPONSES_FILE, asked_digest, design_digest, read_records
from harness.stages.samples import read_samples
from harness.stages.select import SAMPLES_FILE, TOKENS_FILE
from harness.store.environment import engine
from harness.store.node import Node, Stage, Work
from harness.store.store import digest
from harness.studies.study import REFERENCE
from hq import __version__
from hq.models.checkpoint import end_tokens, file_digests
from hq.neurons.neuron_set import NeuronSet
from hq.probe.controls import matched_neurons
from hq.storage.atomic import write_whole
from hq.tracing.sampling import Sampling, StopCriteria, sample
from hq.tracing.traces import Traces, exchanges_digest
from hq.tuning.adapter import read_adapter, write_adapter
from hq.tuning.merging import remerge
from hq.tuning.settings import TuningSettings
from hq.tuning.training import TuningRun, train

if TYPE_CHECKING:
    from harness.stages.materials import Materials

ADAPTER = "adapter"
TRAINING_FILE = "training.json"
REPLIES_FILE = "replies.json"
OUTCOMES_FILE = "outcomes.json"
_CONTINUATIONS = Sampling(responses=4, temperature=1.0, max_new_tokens=48)  # per opening


class FinetuneNodes:
    """Declares the nodes. An arm is one of ARMS, or BASE for the study's model."""

    def __init__(self, plan: FinetunePlan) -> None:
        self.plan, self.m = plan, plan.m
        self.graph = Graph(plan.m)
        self._variants: dict[str, Materials] = {}

    def data(self) -> Node:
        """Declare the trials to evaluate, and the texts to train on."""
        plan, m, trials = self.plan, self.m, self.plan.trials
        neutral = exchanges_digest(plan.neutral) if plan.neutral else digest(plan.openings)
        return Node(
            DATA,
            {
                "runs": m.models.parameters(REFERENCE, SPELLING),
                "scenarios": {name: self._asking(name) for name in trials.offered},
                "questions": [asked_digest(m.prompted), design_digest(m.prompted)],
                "training": digest(sorted(plan.training)),
                "trials": plan.section.trials,
                "examples": plan.section.examples,
                "neutral": neutral,
                "continuations": asdict(_CONTINUATIONS),
                "seed": m.study.seed,
            },
            mapping.model_inputs(m, REFERENCE)
            | {
                "responses": self.graph.responses.output(RESPONSES_FILE),
                "samples": self.graph.samples.output(SAMPLES_FILE),
            },
            REFERENCE,
            units=len(trials.offered) + 1,
            unit="scenarios",
            memory=m.resident(REFERENCE),
        )

    def train(self, arm: str) -> Node:
        """Declare the LoRA of an arm."""
        m = self.m
        settings = self.plan.section.settings(m.study.seed, penalised=arm != "plain")
        traces = {"traces": self.graph.trace(REFERENCE).output()} if arm == "matched" else {}
        return Node(
            TRAIN,
            engine(REFERENCE, m.study.device)
            | {
                "model": m.model.fingerprint,
                "files": file_digests(m.path, ("config.json",)),
                "arm": arm,
                "settings": asdict(settings),
            },
            {
                "data": self.data().output(DATA_FILE),
                "neurons": self.graph.identify(REFERENCE).output(NEURONS_FILE),
                **traces,
            },
            about=arm,
            units=settings.steps,
            unit="steps",
            memory=2 * m.resident(REFERENCE),
        )

    def merge(self, arm: str) -> Node:
        """Declare the checkpoint with the LoRA of an arm."""
        m = self.m
        return Node(
            MERGE,
            {
                "model": m.model.fingerprint,
                "files": file_digests(m.path, ("config.json", *SPELLING)),
                "arm": arm,
            },
            {"tuned": self.train(arm).output()},
            about=arm,
            disk=2 * m.weights,
        )

    def variant(self, arm: str) -> "Materials":
        """Return the materials of an arm's checkpoint."""
        if arm == BASE:
            return self.m
        if arm not in self._variants:
            self._variants[arm] = self.m.of_variant(arm, self.merge(arm).output())
        return self._variants[arm]

    def replies(self, arm: str, precision: str) -> Node:
        """Declare the responses of an arm to the trials of every scenario."""
        m, offered = self.m, self.plan.trials.offered
        kinds = sum(len({trial.kind for trial in trials}) for trials in offered.values())
        return Node(
            REPLIES,
            m.models.parameters(precision, SPELLING)
            | {"scenarios": {name: self._asking(name) for name in offered}},
            mapping.model_inputs(self.variant(arm), precision)
            | {"asked": self.data().output(ASKED_FILE)},
            precision,
            arm,
            units=kinds * self.plan.section.trials,
            unit="responses",
            memory=m.resident(precision),
        )

    def outcomes(self, arm: str, precision: str) -> Node:
        """Declare the outcomes of these responses."""
        trials = self.plan.trials
        return Node(
            OUTCOMES,
            {
                name: [trials.judge.identity(SCENARIOS[name]), trials.trials_digest(name)]
                for name in trials.offered
            },
            {
                "replies": self.replies(arm, precision).output(REPLIES_FILE),
                "asked": self.data().output(ASKED_FILE),
            },
            about=f"{precision} {arm}",
        )

    def capability(self, arm: str, precision: str) -> Node:
        """Declare an arm's answers to held-out questions, its choices, and its loss on text."""
        plan, m = self.plan, self.m
        return Node(
            CAPABILITY,
            respond.response_parameters(m, precision, m.stop_criteria)
            | {
                "prompts": digest([p.ids for p in plan.questions]),
                "max_new_tokens": m.study.sampling.max_new_tokens,
                "choices": digest(plan.choice_prompts),
                "letters": plan.trials.letters,
                "texts": exchanges_digest(plan.texts),
            },
            mapping.model_inputs(self.variant(arm), precision),
            precision,
            arm,
            units=len(plan.choices) + len(plan.texts),
            unit="texts",
            memory=m.resident(precision),
        )

    def trace(self, arm: str, precision: str) -> Node:
        """Declare the traces of the study's samples in an arm's model."""
        if arm == BASE:
            return self.graph.trace(precision)
        tokens, m = self.graph.samples.output(TOKENS_FILE), self.variant(arm)
        return trace.node(m, precision, tokens, self.graph.n, m.measures, m.spans, arm)

    def identify(self, arm: str, precision: str) -> Node:
        """Declare the neurons that are identified in an arm's model, on the same samples."""
        if arm == BASE:
            return self.graph.identify(precision)
        return identify.node(self.variant(arm), self.trace(arm, precision), self.graph.samples)

    def _asking(self, name: str) -> dict[str, Any]:
        """What responses to a scenario's trials depend on, apart from the model."""
        m, trials = self.m, self.plan.trials
        return {
            "trials": trials.trials_digest(name),
            "judge": trials.judge.identity(SCENARIOS[name]),
            "prompts": digest(trials.longest_prompts(name)),
            "form": trials.form_name(name),
            "max_new_tokens": trials.max_new_tokens(name),
        } | m.stop_criteria_of(trials.form(name)).parameters


class Training(NamedTuple):
    """The output of a training node, without the LoRA."""

    neurons: list[list[int]]  # penalised (layer, index)
    kept_step: int
    stopped: bool
    texts: dict[str, dict[str, int]]  # by use and scenario
    log: list[dict[str, Any]]


def read_training(folder: Path) -> Training:
    """Read the record of a finished training."""
    return Training(**json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8")))


def read_replies(folder: Path) -> dict[str, list[GreedyResponse]]:
    """Read responses by label, or under an empty label."""
    content = json.loads((folder / REPLIES_FILE).read_text(encoding="utf-8"))
    return {
        label: [GreedyResponse.model_validate(response) for response in row]
        for label, row in content.items()
    }


def read_outcomes(folder: Path) -> dict[str, list[str]]:
    """Read outcomes by label."""
    content: dict[str, list[str]] = json.loads((folder / OUTCOMES_FILE).read_text(encoding="utf-8"))
    return content


def _plan(work: "Work[Materials]") -> FinetunePlan:
    return work.materials.of(FinetunePlan)


def _make_data(work: "Work[Materials]") -> None:
    """Write asked.json and data.json."""
    plan, m = _plan(work), work.materials
    records = read_records(work.inputs["responses"])
    mixed = {id for id, record in records.items() if record.is_mixed}
    samples = {s.id for s in read_samples(work.inputs["samples"] / SAMPLES_FILE)}

    def answer(name: str, prompts: Sequence[Prompt]) -> list[GreedyResponse]:
        criteria = m.stop_criteria_of(plan.trials.form(name))
        new = plan.trials.max_new_tokens(name)
        named = f"finetune responses to train on, {name}"
        return respond.logged_responses(work, criteria, prompts, [{}], new, named)[0]

    builder = Builder(plan, samples, mixed, answer)
    with work.task(len(plan.trials.offered) + 1, "scenarios") as task:
        for name in plan.trials.offered:
            builder.add_scenario(name)
            task.advance(1)
        if plan.neutral:
            builder.add_neutral((t.prompt, [t.response]) for t in plan.neutral)
        else:
            builder.add_neutral(_continuations(work, plan.openings))
        task.advance(1)
    builder.write(work.folder, work.parameters["seed"])
    read_data(work.folder).require()  # before a model is trained


def _continuations(
    work: "Work[Materials]", openings: Sequence[Prompt]
) -> Iterator[tuple[Prompt, list[tuple[int, ...]]]]:
    """Yield each opening with sampled continuations; those of one length are sampled together."""
    m = work.materials
    eos = m.tokenizer.eos_token_id
    ends = end_tokens(m.path) | (frozenset() if eos is None else frozenset([eos]))
    criteria = StopCriteria(ends, (), lambda ids: str(m.tokenizer.decode(list(ids))))
    settings = Sampling(**asdict(_CONTINUATIONS) | {"seed": work.parameters["seed"]})
    decoding = mapping.backend(work).decoding()
    for _, same in groupby(sorted(openings, key=len), key=len):
        prompts = [(respond.prompt_name(ids), ids) for ids in same]
        for tree in sample(decoding, prompts, settings, criteria):
            yield tree.prompt, [response.ids for response in tree.finished]


def _make_adapter(work: "Work[Materials]") -> None:
    """Write adapter/ and training.json, after the last whole state of a killed run."""
    m, parameters = work.materials, work.parameters
    neurons = NeuronSet.load(work.inputs["neurons"] / NEURONS_FILE, m.model)
    settings = TuningSettings(
        **parameters["settings"] | {"targets": tuple(parameters["settings"]["targets"])}
    )
    penalised = _penalised(work, neurons)
    run = TuningRun(
        data=read_data(work.inputs["data"]),
        settings=settings,
        space=m.model.space,
        measure=neurons.cett,
        span=neurons.tokens,
        measured=h_neurons(neurons),
        penalised=penalised,
        digest=digest([dict(parameters), dict(work.digests)]),
    )
    m.models.close()  # only one model is in memory
    with work.task(settings.steps, "steps") as task:

        def finished(steps: int, note: str) -> None:
            task.advance(steps)
            task.note(note)

        tuned = train(m.path, run, work.folder, m.study.device, finished)
    write_adapter(work.folder / ADAPTER, tuned.adapter, tuned.transposed, m.model.name)
    layers, _, indices = m.model.space.locate(np.sort(penalised))
    training = Training(
        neurons=[list(pair) for pair in zip(layers.tolist(), indices.tolist(), strict=True)],
        kept_step=tuned.kept_step,
        stopped=tuned.stopped,
        texts=read_counts(work.inputs["data"]),
        log=[dict(record) for record in tuned.log],
    )
    _write(work.folder / TRAINING_FILE, training._asdict())


def _penalised(work: "Work[Materials]", neurons: NeuronSet) -> Int[np.ndarray, " k"]:
    """The neurons whose contribution an arm penalises."""
    chosen, arm = h_neurons(neurons), work.parameters["arm"]
    if arm == "plain":
        return chosen[:0]
    if arm == "h-neurons":
        return chosen
    size = reference_magnitudes(Traces.open(work.inputs["traces"]), neurons)
    seed = work.parameters["settings"]["seed"]
    drawn: Int[np.ndarray, " k"] = matched_neurons(chosen, size, neurons.model.space, 1, seed)[0]
    return drawn


def _make_merged(work: "Work[Materials]") -> None:
    """Write the checkpoint."""
    m, tuned = work.materials, work.inputs["tuned"]
    record = read_training(tuned)
    provenance = {
        "made_by": f"hq {__version__}",
        "base": m.model.model_dump(mode="json"),
        "arm": work.parameters["arm"],
        "adapter": work.digests["tuned"],
        "penalised_neurons": record.neurons,
        "kept_step": record.kept_step,
        "stopped_early": record.stopped,
        "training_texts": record.texts,
    }
    remerge(m.path, read_adapter(tuned / ADAPTER), work.folder / checkpoint.FOLDER, provenance)


def _make_replies(work: "Work[Materials]") -> None:
    """Write replies.json: by label, a response per trial."""
    plan = _plan(work)
    replies: dict[str, list[Any]] = {}
    for name, by_label in read_asked(work.inputs["asked"], plan).items():
        criteria = work.materials.stop_criteria_of(plan.trials.form(name))
        new = plan.trials.max_new_tokens(name)
        for label, trials in by_label.items():
            shown = f"finetune {work.node.precision} {work.node.about} {label}"
            prompts = [trial.ids for trial in trials]
            of_label = respond.logged_responses(work, criteria, prompts, [{}], new, shown)[0]
            replies[label] = [response.model_dump() for response in of_label]
    _write(work.folder / REPLIES_FILE, replies)


def _make_outcomes(work: "Work[Materials]") -> None:
    """Write outcomes.json: by label, an outcome per trial."""
    plan, replies = _plan(work), read_replies(work.inputs["replies"])
    outcomes: dict[str, list[str]] = {}
    with work.task(sum(map(len, replies.values())), "responses") as task:
        for name, by_label in read_asked(work.inputs["asked"], plan).items():
            rows = {label: [replies[label]] for label in by_label}
            judged, _ = judge_responses(plan.trials.judge, SCENARIOS[name], by_label, rows, task)
            outcomes |= {label: [str(o) for o in row] for label, (row,) in judged.items()}
    _write(work.folder / OUTCOMES_FILE, outcomes)


def _make_capability(work: "Work[Materials]") -> None:
    """Write replies.json with the answers, and the picks and losses."""
    plan, m = _plan(work), work.materials
    shown = f"finetune answers {work.node.precision} {work.node.about}"
    prompts, new = [p.ids for p in plan.questions], work.parameters["max_new_tokens"]
    answers = respond.logged_responses(work, m.stop_criteria, prompts, [{}], new, shown)[0]
    _write(work.folder / REPLIES_FILE, {"": [answer.model_dump() for answer in answers]})
    letters = work.parameters["letters"]
    with work.task(len(plan.choices) + len(plan.texts), "texts") as task:
        backend = mapping.backend(work)
        costs.measure(work.folder, backend, plan.choice_prompts, letters, plan.texts, task)


def _write(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, ensure_ascii=False) + "\n")


_RUNS = ("hq.backends.opening",)
DATA = Stage("tuning-data", _make_data, sources=_RUNS)
TRAIN = Stage("finetune", _make_adapter, packages=("peft",))
MERGE = Stage("merge", _make_merged)
REPLIES = Stage("tuned-replies", _make_replies, sources=_RUNS)
OUTCOMES = Stage("tuned-outcomes", _make_outcomes)
CAPABILITY = Stage("capability", _make_capability, sources=_RUNS)

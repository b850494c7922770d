"""Stage `samples`: balanced pairs of the questions whose responses are all right or all wrong.

Traces depend only on the token ids of the samples, which are in a separate file: other labels,
folds or quotas that select the same responses keep the traces.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.judges.base import Question
from harness.stages import responses, units
from harness.stages.pairing import TextCandidate, pairs, text_pairs
from harness.stages.sample import (
    RESPONSES_FILE,
    QuestionRecord,
    candidates,
    design_digest,
    label_of,
    read_records,
)
from harness.stages.samples import Prompted, Sample, write_samples, write_tokens
from harness.store.node import Node, Stage, Work
from harness.studies.study import Balance
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.stages.materials import Materials

SAMPLES_FILE = "samples.jsonl"
TOKENS_FILE = "tokens.jsonl"
_NO_PAIR: dict[Balance, str] = {
    "answer": "No answer is given consistently both rightly and wrongly within one relation: "
    'set sampling.balance to "text" if answers rarely repeat, ask more questions',
    "text": "No relation has a consistently right and a consistently wrong response with similar "
    "texts: ask more questions",
}


def node(m: "Materials") -> Node:
    """Declare the balanced, consistent samples."""
    parameters = {
        "quota": m.study.sampling.quota,
        "balance": m.study.sampling.balance,
        "folds": m.study.identify.folds,
        "seed": m.study.seed,
        "design": design_digest(m.prompted),
    }
    inputs = {"responses": responses.node(m).output(RESPONSES_FILE)}
    return Node(STAGE, parameters, inputs, about=m.scope, materials=m)


def make(work: "Work[Materials]") -> None:
    """Write samples.jsonl, and tokens.jsonl with their token ids."""
    parameters = work.parameters
    samples = retain(
        work.inputs["responses"],
        work.materials.prompted,
        parameters["quota"],
        parameters["balance"],
        parameters["folds"],
        parameters["seed"],
    )
    write_samples(work.folder / SAMPLES_FILE, samples)
    write_tokens(work.folder / TOKENS_FILE, [sample.exchange for sample in samples])


def retain(
    folder: Path, prompted: Sequence[Prompted], quota: int, balance: Balance, folds: int, seed: int
) -> list[Sample]:
    """Return the balanced samples of a finished responses.jsonl, in the order of the questions.

    Raises HQError if there is no pair of right and hallucinated answers, if a unit is too large, or
    if a fold lacks a label.
    """
    records = read_records(folder)
    closed = pairs(candidates(prompted, records, balance), quota)
    if balance == "text" and closed:
        consistent = [p for p in prompted if label_of(records, p) is not None]
        unit_of = _units(consistent, records)
        fold_of = _assign_folds(consistent, records, unit_of, folds, seed)
        closed = text_pairs([_candidate(p, records, unit_of, fold_of) for p in consistent], quota)
    selected = {id for pair in closed for id in pair}
    if not selected:
        raise HQError(f"{_NO_PAIR[balance]}, lower the temperature, or choose another scenario.")
    chosen = [p for p in prompted if p.question.id in selected]
    unit_of = _units(chosen, records)
    units.require_small_units([*unit_of.values()])
    if balance != "text":
        fold_of = _assign_folds(chosen, records, unit_of, folds, seed)
    samples = [_as_sample(p.question, records[p.question.id], unit_of, fold_of) for p in chosen]
    units.require_both_labels([s.fold for s in samples], [s.hallucinated for s in samples], folds)
    return samples


def _units(chosen: Sequence[Prompted], records: Mapping[str, QuestionRecord]) -> dict[str, str]:
    answers = {p.question.id: records[p.question.id].answer for p in chosen}
    return units.assign_units([p.question for p in chosen], answers)


def _assign_folds(
    chosen: Sequence[Prompted],
    records: Mapping[str, QuestionRecord],
    unit_of: Mapping[str, str],
    folds: int,
    seed: int,
) -> dict[str, int]:
    """Map the id of each question to its fold. Raises HQError if a fold lacks a label."""
    fold_of = units.assign_folds(
        [unit_of[p.question.id] for p in chosen],
        [bool(label_of(records, p)) for p in chosen],
        [p.question.relation for p in chosen],
        folds,
        seed,
    )
    return {p.question.id: fold for p, fold in zip(chosen, fold_of, strict=True)}


def _candidate(
    p: Prompted,
    records: Mapping[str, QuestionRecord],
    unit_of: Mapping[str, str],
    fold_of: Mapping[str, int],
) -> TextCandidate:
    question = p.question
    return TextCandidate(
        id=question.id,
        relation=question.relation,
        question=question.question,
        response=records[question.id].typical.text.strip(),
        hallucinated=bool(label_of(records, p)),
        unit=unit_of[question.id],
        fold=fold_of[question.id],
    )


def _as_sample(
    question: Question,
    record: QuestionRecord,
    unit_of: Mapping[str, str],
    fold_of: Mapping[str, int],
) -> Sample:
    return Sample(
        id=record.id,
        relation=question.relation,
        question=question.question,
        text=record.typical.text.strip(),
        answer=record.answer,
        hallucinated=bool(record.hallucinated),
        unit=unit_of[record.id],
        fold=fold_of[record.id],
        prompt_ids=record.prompt,
        response_ids=record.typical.ids,
    )


STAGE = Stage("samples", make)

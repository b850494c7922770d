"""Stages `sample` and `samples`: n responses a question, and those that are kept and balanced.

A question is given up as soon as two of its finished responses disagree, and sampling ends once the
quota of pairs is full. Records are appended to a log as they come: a killed run goes on after its
last whole batch, and a run with another quota or other splits asks only what was not asked yet.

Traces depend on the token ids of the kept samples alone, which are in a file of their own: other
labels, splits or quotas that keep the same responses keep the traces.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from harness.judges.base import Judge, Question, Verdict
from harness.stages import mapping
from harness.stages.loading import SPELLING
from harness.stages.pairing import Candidate, pairs
from harness.stages.samples import Prompted, Sample, write_samples, write_tokens
from harness.store.jsonl import append, parse, read_log
from harness.store.node import Log, Node, Stage, Work
from harness.store.progress import Task
from harness.store.store import digest
from harness.studies.study import SAMPLERS
from hq.backends.base import Decoding
from hq.backends.opening import max_rows
from hq.errors import HQError
from hq.tracing.sampling import Sampling, StopCriteria, Tree, sample

if TYPE_CHECKING:
    from harness.stages.materials import Materials

RESPONSES = Log("responses", sources=("hq.backends.opening",))
RESPONSES_FILE = "responses.jsonl"
LOG_FILE = "log.jsonl"
SAMPLES_FILE = "samples.jsonl"
TOKENS_FILE = "tokens.jsonl"
CHUNK = 1024  # questions between two looks at the quota
_BATCH = 64  # prompts a batch: more do not decode faster on a CPU


class JudgedResponse(BaseModel):
    """One distinct response, its verdict, and how many of the n samples gave it."""

    model_config = ConfigDict(frozen=True)

    text: str
    ids: tuple[int, ...]
    verdict: Verdict
    count: int


class QuestionRecord(BaseModel):
    """All that was sampled for one question."""

    model_config = ConfigDict(frozen=True)

    id: str
    prompt: tuple[int, ...]
    responses: tuple[JudgedResponse, ...]
    complete: bool  # all n responses were finished
    generated: int  # tokens computed
    naive: int  # tokens of the finished samples, each counted by itself

    @property
    def hallucinated(self) -> bool | None:
        """True or False where all n responses are wrong or right; None otherwise."""
        verdicts = {response.verdict for response in self.responses}
        if not self.complete or verdicts not in ({Verdict.RIGHT}, {Verdict.WRONG}):
            return None
        return verdicts == {Verdict.WRONG}

    @property
    def typical(self) -> JudgedResponse:
        """The response that most samples gave, the first of them."""
        return max(self.responses, key=lambda response: response.count)


def node(m: "Materials") -> Node:
    """The responses to as many questions as the quota of pairs takes."""
    study = m.study
    precision = SAMPLERS[study.sampling.sampler]
    return Node(
        STAGE,
        {
            "responses": m.models.parameters(precision, SPELLING)
            | m.stop_criteria.parameters
            | {
                "questions": asked_digest(m.prompted),
                "sampling": asdict(m.sampling),
                "judge": m.judge.identity,
            },
            "quota": study.sampling.quota,
            "splits": splits_digest(m.prompted),
        },
        mapping.model_inputs(m, precision),
        precision,
        units=len(m.prompted),
        unit="questions",
        memory=m.resident(precision),
    )


def asked_digest(prompted: Sequence[Prompted]) -> str:
    """Digest of the questions and their token ids, whatever their splits."""
    return digest([p.model_dump(mode="json", exclude={"split", "component"}) for p in prompted])


def make(work: "Work[Materials]") -> None:
    """Write responses.jsonl: what was asked for this quota in these splits, from the log."""
    m, parameters = work.materials, dict(work.parameters)
    key = parameters["responses"] | {"file": work.digests.get("file")}
    precision = str(work.node.precision)
    with (
        work.store.growing(RESPONSES.name, RESPONSES.version, key) as log,
        work.task(len(m.prompted), "questions", "sample responses") as task,
    ):
        records = collect(
            log / LOG_FILE,
            lambda: mapping.backend(work).decoding(),
            m.prompted,
            m.sampling,
            m.stop_criteria,
            m.judge,
            parameters["quota"],
            task,
            max_rows(precision),
        )
    write_records(work.folder, records)


def samples_node(m: "Materials") -> Node:
    """The balanced, consistent samples."""
    parameters = {"quota": m.study.sampling.quota, "splits": splits_digest(m.prompted)}
    return Node(SAMPLES, parameters, {"responses": node(m).output(RESPONSES_FILE)})


def splits_digest(prompted: Sequence[Prompted]) -> str:
    """Digest of every question's split, component and relation."""
    return digest([[p.question.id, p.split, p.component, p.question.relation] for p in prompted])


def make_samples(work: "Work[Materials]") -> None:
    """Write samples.jsonl, and tokens.jsonl, their token ids."""
    m, quota = work.materials, work.parameters["quota"]
    samples = retain(work.inputs["responses"], m.prompted, quota)
    write_samples(work.folder / SAMPLES_FILE, samples)
    write_tokens(work.folder / TOKENS_FILE, [sample.exchange for sample in samples])


def collect(
    log: Path,
    decoding: Callable[[], Decoding],
    prompted: Sequence[Prompted],
    settings: Sampling,
    ending: StopCriteria,
    judge: Judge,
    quota: int,
    task: Task,
    max_rows: int = 1 << 16,
) -> list[QuestionRecord]:
    """The records of all questions that are asked for the quota, in the order of the questions.

    Those that `log` lacks are sampled, at most `max_rows` rows at a time, and appended to it. What
    stands there does not depend on quota and splits, so that other ones go on from it; `decoding`
    is called if anything is missing.
    """
    records = {record.id: record for record in read_log(log, QuestionRecord)}
    questions = {p.question.id: p for p in prompted}
    wanted = consistency(prompted, judge)
    shared = cache(partial(_sharing, decoding, [p.ids for p in prompted]))
    met: list[Prompted] = []
    for chunk in _chunks(prompted):
        for batch in batches(chunk, max_rows // settings.responses):
            if not all(p.question.id in records for p in batch):
                prompts = [(p.question.id, p.ids) for p in batch]
                trees = sample(shared(), prompts, settings, ending, wanted)
                new = [record_of(t, questions[t.key].question, judge, settings) for t in trees]
                append(log, new)
                records |= {record.id: record for record in new}
            task.advance(len(batch))
        met += chunk
        kept = pairs(candidates(met, records), quota)
        unclear = f", {judge.unclear} replies of the judge unclear" if judge.unclear else ""
        asked = [records[p.question.id] for p in met]
        task.note(f"{len(kept)} of {quota} pairs, {savings(asked)}{unclear}")
        if len(kept) == quota:
            break
    return [records[p.question.id] for p in met]


def _sharing(decoding: Callable[[], Decoding], prompts: Sequence[tuple[int, ...]]) -> Decoding:
    """A decoding that has read the prefix that all prompts share."""
    made = decoding()
    made.share(prompts)
    return made


def write_records(folder: Path, records: Sequence[QuestionRecord]) -> None:
    """Writes responses.jsonl."""
    lines = (record.model_dump_json() + "\n" for record in records)
    (folder / RESPONSES_FILE).write_text("".join(lines), encoding="utf-8", newline="\n")


def savings(records: Iterable[QuestionRecord]) -> str:
    """How many tokens were computed, and for how many that the finished samples have."""
    generated = naive = 0
    for record in records:
        generated, naive = generated + record.generated, naive + record.naive
    return f"{generated:,} tokens computed in place of {naive:,} or more"


def consistency(prompted: Iterable[Prompted], judge: Judge) -> Callable[[Tree], bool]:
    """A test of a tree: whether its finished responses are all right, or all wrong."""
    questions = {p.question.id: p.question for p in prompted}

    def consistent(tree: Tree) -> bool:
        question = questions[tree.key]
        verdicts = {judge.judge(r.text, question, r.truncated) for r in tree.finished}
        return verdicts in ({Verdict.RIGHT}, {Verdict.WRONG})

    return consistent


def candidates(
    prompted: Iterable[Prompted], records: dict[str, QuestionRecord]
) -> Iterator[Candidate]:
    """The consistent questions, in order, each in the group of its relation and split."""
    for p in prompted:
        record = records.get(p.question.id)
        if record is not None and record.hallucinated is not None:
            yield Candidate(record.id, (p.question.relation, p.split), record.hallucinated)


def retain(folder: Path, prompted: Sequence[Prompted], quota: int) -> list[Sample]:
    """The balanced samples of a finished responses.jsonl, in the order of the questions.

    Raises HQError when no pair of right and hallucinated answers was found.
    """
    records = read_records(folder)
    kept = {id for pair in pairs(candidates(prompted, records), quota) for id in pair}
    if not kept:
        raise HQError(
            "No relation has both consistently right and consistently wrong answers: ask more "
            "questions, lower the temperature, or choose a scenario that suits the model."
        )
    return [_as_sample(p, records[p.question.id]) for p in prompted if p.question.id in kept]


def read_records(folder: Path) -> dict[str, QuestionRecord]:
    """The records of a finished stage by question id."""
    records = parse((folder / RESPONSES_FILE).read_text(encoding="utf-8"), QuestionRecord)
    return {record.id: record for record in records}


def _as_sample(prompted: Prompted, record: QuestionRecord) -> Sample:
    return Sample(
        id=record.id,
        relation=prompted.question.relation,
        split=prompted.split,
        component=prompted.component,
        hallucinated=bool(record.hallucinated),
        text=record.typical.text.strip(),
        prompt_ids=record.prompt,
        response_ids=record.typical.ids,
    )


def record_of(tree: Tree, question: Question, judge: Judge, settings: Sampling) -> QuestionRecord:
    """What stays of a tree: its distinct responses, judged."""
    judged = tuple(
        JudgedResponse(
            text=r.text,
            ids=r.ids,
            verdict=judge.judge(r.text, question, r.truncated),
            count=len(r.members),
        )
        for r in sorted(tree.finished, key=lambda r: r.members)
    )
    return QuestionRecord(
        id=tree.key,
        prompt=tree.prompt,
        responses=judged,
        complete=sum(r.count for r in judged) == settings.responses,
        generated=tree.generated,
        naive=tree.naive,
    )


def _chunks(prompted: Sequence[Prompted]) -> Iterator[list[Prompted]]:
    questions = iter(prompted)
    while chunk := list(islice(questions, CHUNK)):
        yield chunk


def batches(chunk: Sequence[Prompted], limit: int = _BATCH) -> Iterator[list[Prompted]]:
    """Batches of prompts of one length, so that none is padded."""
    by_length = sorted(chunk, key=lambda p: len(p.ids))
    for _, group in groupby(by_length, key=lambda p: len(p.ids)):
        while batch := list(islice(group, min(max(limit, 1), _BATCH))):
            yield batch


STAGE = Stage("sample", make)
SAMPLES = Stage("samples", make_samples)

"""Stage `sample`: n responses per question, with verdicts.

Sampling of a question stops when two of its finished responses have different verdicts, and all
sampling stops when the quota of pairs is reached. Records are appended to a log: a killed run
continues after its last complete batch, and a run with another quota, balance or reserve asks only
new questions.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from harness.judges.base import Judge, Question, Verdict
from harness.judges.text import normalise
from harness.stages import mapping
from harness.stages.loading import SPELLING
from harness.stages.pairing import Candidate, pairs
from harness.stages.samples import Prompted, Sample
from harness.store.jsonl import LOG_FILE, append, parse, read_log
from harness.store.node import GrowingLog, Node, Shard, Sharding, Stage, Work
from harness.store.progress import Task
from harness.store.store import digest
from harness.studies.study import SAMPLERS, Balance
from hq.backends.base import Decoding
from hq.backends.opening import max_rows
from hq.tracing.sampling import Sampling, StopCriteria, Tree, sample

if TYPE_CHECKING:
    from harness.stages.materials import Materials

T = TypeVar("T", Prompted, Sample)
RESPONSE_LOG = GrowingLog("responses", sources=("hq.backends.opening",))
RESPONSES_FILE = "responses.jsonl"
CHUNK = 1024  # questions between two checks of the quota
PATIENCE = 24  # questions of a relation; if they have one label only, no more of it are asked
_BATCH = 64  # prompts per batch: larger batches are not faster on a CPU


class JudgedResponse(BaseModel):
    """One distinct response, its verdict, and its number among the n responses."""

    model_config = ConfigDict(frozen=True)

    text: str
    ids: tuple[int, ...]
    verdict: Verdict
    count: int


class QuestionRecord(BaseModel):
    """Everything sampled for one question."""

    model_config = ConfigDict(frozen=True)

    id: str
    prompt: tuple[int, ...]
    responses: tuple[JudgedResponse, ...]
    complete: bool  # all n responses were finished
    generated: int  # computed tokens
    naive: int  # tokens of the finished responses, without sharing of prefixes

    @property
    def hallucinated(self) -> bool | None:
        """Whether all n responses are wrong (True) or right (False); None otherwise."""
        verdicts = {response.verdict for response in self.responses}
        if not self.complete or verdicts not in ({Verdict.RIGHT}, {Verdict.WRONG}):
            return None
        return verdicts == {Verdict.WRONG}

    @property
    def is_mixed(self) -> bool:
        """Whether some responses are right and others wrong: the model is near the decision."""
        return {Verdict.RIGHT, Verdict.WRONG} <= {r.verdict for r in self.responses}

    @property
    def typical(self) -> JudgedResponse:
        """The most frequent response, the first one if several are."""
        return max(self.responses, key=lambda response: response.count)

    @property
    def answer(self) -> str:
        """The normalised text of the typical response."""
        return normalise(self.typical.text)


class Sampler(Protocol):
    """Samples and judges the responses to questions."""

    @property
    def record(self) -> type[QuestionRecord]:
        """The records of its log."""
        ...

    def sample(
        self, chunk: Sequence[Prompted], known: Container[str]
    ) -> Iterator[Sequence[QuestionRecord]]:
        """Yield records of questions whose ids are not in `known`, as soon as there are any."""
        ...


def node(m: "Materials") -> Node:
    """Declare the responses to as many questions as the quota of pairs takes."""
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
            "balance": study.sampling.balance,
            "design": design_digest(m.prompted),
        },
        mapping.model_inputs(m, precision),
        precision,
        m.scope,
        units=len(m.prompted),
        unit="questions",
        memory=m.resident(precision),
        materials=m,
    )


def asked_digest(prompted: Sequence[Prompted]) -> str:
    """Return a digest of what responses and verdicts depend on, for all questions of a scenario.

    Relations, entities and parts are not in it, so the log of responses survives a change of them.
    """
    asked = ((p.question, p.ids) for p in prompted)
    return digest([[q.id, q.question, ids, q.aliases, q.distractors] for q, ids in asked])


def make(work: "Work[Materials]") -> None:
    """Write responses.jsonl: the records from the log for this quota, balance and reserve."""
    m, parameters = work.materials, dict(work.parameters)
    key = parameters["responses"] | {"file": work.digests.get("file")}
    precision = str(work.node.precision)
    with (
        work.store.growing(RESPONSE_LOG.name, RESPONSE_LOG.version, key) as log,
        work.task(len(m.prompted), "questions", "sample responses") as task,
    ):
        sampler = LocalSampler(
            lambda: mapping.backend(work).decoding(),
            m.prompted,
            m.sampling,
            m.stop_criteria,
            m.judge,
            max_rows(precision),
        )
        quota, balance = parameters["quota"], parameters["balance"]
        records = collect(log / LOG_FILE, sampler, m.prompted, m.judge, quota, balance, task)
    write_records(work.folder, records)


def design_digest(prompted: Sequence[Prompted]) -> str:
    """Return a digest of the part, relation and entities of every question."""
    return digest(
        [[p.question.id, p.part, p.question.relation, p.question.entities] for p in prompted]
    )


class LocalSampler:
    """Samples with a loaded model; all questions of a batch are sampled again if one is missing."""

    record = QuestionRecord

    def __init__(
        self,
        decoding: Callable[[], Decoding],
        prompted: Sequence[Prompted],
        settings: Sampling,
        criteria: StopCriteria,
        judge: Judge,
        max_rows: int = 1 << 16,
    ) -> None:
        """Prepare to sample.

        Args:
            decoding: Loads the model; called only if a record is missing.
            prompted: All questions.
            settings: Settings of the sampler.
            criteria: What ends a response.
            judge: Gives the verdicts.
            max_rows: The largest number of responses that are decoded together.
        """
        self._shared = cache(partial(_sharing, decoding, [p.ids for p in prompted]))
        self._questions = {p.question.id: p.question for p in prompted}
        self._consistent = consistency(prompted, judge)
        self._settings, self._criteria, self._judge = settings, criteria, judge
        self._questions_at_once = max_rows // settings.responses

    def sample(
        self, chunk: Sequence[Prompted], known: Container[str]
    ) -> Iterator[Sequence[QuestionRecord]]:
        """Yield the records of each batch."""
        for batch in batches(chunk, self._questions_at_once):
            if not all(p.question.id in known for p in batch):
                prompts = [(p.question.id, p.ids) for p in batch]
                trees = sample(
                    self._shared(), prompts, self._settings, self._criteria, self._consistent
                )
                yield [
                    record_of(tree, self._questions[tree.key], self._judge, self._settings)
                    for tree in trees
                ]


def collect(
    log: Path,
    sampler: Sampler,
    prompted: Sequence[Prompted],
    judge: Judge,
    quota: int,
    balance: Balance,
    task: Task,
) -> list[QuestionRecord]:
    """Return the records of all questions that are asked for the quota, in their order.

    Reserved questions are not asked. For the balance "text", nor are more questions of a relation
    whose first ones have one label only: pairs are of one relation. Missing records are sampled and
    appended to the log. Records do not depend on the quota, the balance and the reserve, so runs
    with other ones share the log.

    Args:
        log: The file of finished records.
        sampler: Samples what is missing.
        prompted: The questions, in a fixed order.
        judge: Gives the verdicts; its unclear replies are shown.
        quota: The number of pairs at which sampling stops. Text matching keeps fewer of them.
        balance: What the two answers of a pair share.
        task: Shows the number of questions.
    """
    records = {record.id: record for record in read_log(log, sampler.record)}
    asked: list[Prompted] = []
    for chunk, left_out in chunks_for(prompted, records, quota, balance):
        task.advance(left_out + sum(p.question.id in records for p in chunk))
        for new in sampler.sample(chunk, records):
            append(log, new)
            task.advance(sum(record.id not in records for record in new))
            records |= {record.id: record for record in new}
        asked += chunk
        closed = pairs(candidates(asked, records, balance), quota)
        unclear = f", {judge.unclear} replies of the judge unclear" if judge.unclear else ""
        saved = savings(records[p.question.id] for p in asked)
        task.note(f"{len(closed)} of {quota} pairs, {saved}{unclear}")
    return [records[p.question.id] for p in asked]


def chunks_for(
    prompted: Sequence[Prompted],
    records: Mapping[str, QuestionRecord],
    quota: int,
    balance: Balance,
) -> Iterator[tuple[list[Prompted], int]]:
    """Yield the questions to ask, in chunks, until the quota of pairs is reached.

    With each chunk comes the number of questions that are left out of it. The records of a chunk
    must be in `records` before the next one is requested: which questions are asked depends on the
    responses to earlier ones.
    """
    asked: list[Prompted] = []
    for whole in _chunks([p for p in prompted if p.part == "sample"]):
        fruitless = _fruitless(asked, records) if balance == "text" else set()
        chunk = [p for p in whole if p.question.relation not in fruitless]
        yield chunk, len(whole) - len(chunk)
        asked += chunk
        if len(pairs(candidates(asked, records, balance), quota)) == quota:
            return


def _fruitless(asked: Iterable[Prompted], records: Mapping[str, QuestionRecord]) -> set[str]:
    """Return the relations that were asked about often enough, and have one label only."""
    times = Counter(p.question.relation for p in asked)
    labels = {(p.question.relation, label_of(records, p)) for p in asked}
    return {
        relation
        for relation, count in times.items()
        if count >= PATIENCE and not {(relation, False), (relation, True)} <= labels
    }


def _sharing(decoding: Callable[[], Decoding], prompts: Sequence[tuple[int, ...]]) -> Decoding:
    """Return a decoding that has computed the common prefix of all prompts."""
    opened = decoding()
    opened.share(prompts)
    return opened


def write_records(folder: Path, records: Sequence[QuestionRecord]) -> None:
    """Write responses.jsonl, without the further fields of a sampler's own records."""
    fields = set(QuestionRecord.model_fields)
    lines = (record.model_dump_json(include=fields) + "\n" for record in records)
    (folder / RESPONSES_FILE).write_text("".join(lines), encoding="utf-8", newline="\n")


def savings(records: Iterable[QuestionRecord]) -> str:
    """Return in words how many tokens were computed, and how many the finished responses have."""
    generated = naive = 0
    for record in records:
        generated, naive = generated + record.generated, naive + record.naive
    return f"{generated:,} tokens computed instead of {naive:,} or more"


def consistency(prompted: Iterable[Prompted], judge: Judge) -> Callable[[Tree], bool]:
    """Return a function that tests whether finished responses are all right or all wrong."""
    questions = {p.question.id: p.question for p in prompted}

    def consistent(tree: Tree) -> bool:
        question = questions[tree.key]
        verdicts = {judge.judge(r.text, question, r.truncated) for r in tree.finished}
        return verdicts in ({Verdict.RIGHT}, {Verdict.WRONG})

    return consistent


def candidates(
    prompted: Iterable[Prompted], records: Mapping[str, QuestionRecord], balance: Balance
) -> Iterator[Candidate]:
    """Yield the consistent questions in order, each in the group in which it is paired.

    The group is the relation and, for the balance "answer", the given answer. For the balance
    "text" these pairs are the most that text matching can keep.
    """
    for p in prompted:
        record = records.get(p.question.id)
        if record is not None and record.hallucinated is not None:
            relation = p.question.relation
            group = (relation, record.answer) if balance == "answer" else (relation,)
            yield Candidate(record.id, group, record.hallucinated)


def label_of(records: Mapping[str, QuestionRecord], p: Prompted) -> bool | None:
    """Return whether the responses to a question are hallucinated; None if they are not alike."""
    record = records.get(p.question.id)
    return None if record is None else record.hallucinated


def read_records(folder: Path) -> dict[str, QuestionRecord]:
    """Return the records of a finished node by question id."""
    records = parse((folder / RESPONSES_FILE).read_text(encoding="utf-8"), QuestionRecord)
    return {record.id: record for record in records}


def record_of(tree: Tree, question: Question, judge: Judge, settings: Sampling) -> QuestionRecord:
    """Return the record of a tree: its distinct responses with verdicts."""
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


def batches(chunk: Sequence[T], limit: int = _BATCH) -> Iterator[list[T]]:
    """Yield batches of prompts of equal length, so that none is padded."""
    by_length = sorted(chunk, key=_length)
    for _, group in groupby(by_length, key=_length):
        while batch := list(islice(group, min(max(limit, 1), _BATCH))):
            yield batch


def _length(item: Prompted | Sample) -> int:
    return len(item.ids if isinstance(item, Prompted) else item.prompt_ids)


def make_shard(work: "Work[Materials]", shard: Shard, earlier: Sequence[Path]) -> None:
    """Write the records of a shard's batches of the next chunk, which earlier rounds decide.

    The batches are those of an undivided run. Unlike in it, the log is not read.
    """
    m, log = work.materials, work.folder / LOG_FILE
    known = {record.id: record for record in read_log(log, QuestionRecord)}
    questions = {p.question.id: p.question for p in m.prompted}
    consistent = consistency(m.prompted, m.judge)
    opened = cache(lambda: _sharing(mapping.backend(work).decoding, [p.ids for p in m.prompted]))
    limit = max_rows(str(work.node.precision)) // m.sampling.responses
    for number, batch in enumerate(batches(_next_chunk(work, earlier), limit)):
        if shard.has(number) and not all(p.question.id in known for p in batch):
            prompts = [(p.question.id, p.ids) for p in batch]
            trees = sample(opened(), prompts, m.sampling, m.stop_criteria, consistent)
            append(log, [record_of(t, questions[t.key], m.judge, m.sampling) for t in trees])
    write_records(work.folder, read_log(log, QuestionRecord))
    log.unlink(missing_ok=True)


def merge(work: "Work[Materials]", shards: Sequence[Path]) -> None:
    """Write responses.jsonl from the records of all shards, and add them to the log."""
    m, parameters, records = work.materials, work.parameters, _records_of(shards)
    key = parameters["responses"] | {"file": work.digests.get("file")}
    chunks = chunks_for(m.prompted, records, parameters["quota"], parameters["balance"])
    asked = [records[p.question.id] for chunk, _ in chunks for p in chunk]
    with work.store.growing(RESPONSE_LOG.name, RESPONSE_LOG.version, key) as log:
        logged = {record.id for record in read_log(log / LOG_FILE, QuestionRecord)}
        append(log / LOG_FILE, [record for record in asked if record.id not in logged])
    write_records(work.folder, asked)


def _next_chunk(work: "Work[Materials]", shards: Sequence[Path]) -> list[Prompted]:
    """Return the first chunk with a question of which these shards have no record; else none."""
    m, records = work.materials, _records_of(shards)
    quota, balance = work.parameters["quota"], work.parameters["balance"]
    for chunk, _ in chunks_for(m.prompted, records, quota, balance):
        if not all(p.question.id in records for p in chunk):
            return chunk
    return []


def _records_of(shards: Sequence[Path]) -> dict[str, QuestionRecord]:
    return {name: record for folder in shards for name, record in read_records(folder).items()}


STAGE = Stage(
    "sample",
    make,
    version=2,
    sharding=Sharding(make_shard, merge, lambda work, shards: bool(_next_chunk(work, shards))),
)

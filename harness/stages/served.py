"""Stage `served`: n responses per question from an OpenAI-compatible server, with verdicts.

It replaces the stage `sample`: the server generates, and the study's tokenizer, stop criteria and
judge are applied to what it returns. What can differ between runs is recorded beside the responses:
the address, what the server said of itself, and what it was found able to do.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel

from harness.endpoints.abilities import Abilities, Spelling, find_abilities, served_model
from harness.endpoints.client import Client
from harness.endpoints.completions import Completer, Response
from harness.judges.base import Question, Verdict
from harness.stages.loading import SPELLING
from harness.stages.sample import (
    JudgedResponse,
    QuestionRecord,
    asked_digest,
    collect,
    design_digest,
    write_records,
)
from harness.stages.samples import Prompted
from harness.store.jsonl import LOG_FILE, append, read_log
from harness.store.node import GrowingLog, Node, Stage, Work
from hq.errors import HQError
from hq.models.checkpoint import file_digests
from hq.models.encoding import Encoder, bare_ids
from hq.storage.atomic import write_whole
from hq.tracing.sampling import Sampling

if TYPE_CHECKING:
    from harness.stages.materials import Materials

SAMPLER = "openai"
KEY_VARIABLE = "OPENAI_API_KEY"
SERVERS_FILE = "servers.json"
RESPONSE_LOG = GrowingLog("served-responses", sources=("harness.endpoints.completions",))
MAX_UNREADABLE = 0.02  # share of responses that may not be what their tokens decode to
_FEW = 300  # responses after which the share is compared
_SERVERS_LOG = "servers.jsonl"
_TIMEOUT_S = 300.0
_COMPARED = 3  # prompts on which the tokenizers are compared


class ServedRecord(QuestionRecord):
    """Everything that a server returned for one question."""

    retokenised: int  # responses whose ids are those of the text, not the sampled ones
    unreadable: int  # responses whose text is not that of its tokens; the question is set aside


class Served(BaseModel):
    """What sampled the responses of a finished node."""

    servers: list[Abilities]
    responses: int
    retokenised: int
    unreadable: int


class ServedSampler:
    """Asks a server, with several questions at a time; connects when a record is missing."""

    record = ServedRecord

    def __init__(self, m: "Materials", servers_log: Path) -> None:
        self._m = m
        self._servers_log = servers_log
        self._stopped = Event()
        self._judging = Lock()
        self._counted = Counter[str]()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def sample(
        self, chunk: Sequence[Prompted], known: Container[str]
    ) -> Iterator[Sequence[QuestionRecord]]:
        """Yield the record of each question when it is finished.

        After an error, the requests under way are still recorded. Raises HQError as the server's
        client does, and if too many responses are not what their tokens decode to.
        """
        missing = [p for p in chunk if p.question.id not in known]
        if not missing:
            return
        _ = self._completer
        failure: BaseException | None = None
        with ThreadPoolExecutor(self._m.study.endpoint.concurrency) as pool:
            futures = [pool.submit(self._asked, p) for p in missing]
            try:
                for future in as_completed(futures):
                    if future.cancelled():
                        continue
                    if error := future.exception():
                        failure = failure or error
                        self._stop()
                        for other in futures:
                            other.cancel()
                        continue
                    yield [future.result()]
                    self._count(future.result())
            finally:  # also if the run is interrupted
                self._stop()
                for other in futures:
                    other.cancel()
        if failure is not None:
            raise failure
        self._stopped.clear()

    @cached_property
    def _completer(self) -> Completer:
        m = self._m
        client = self._open.enter_context(connect(m, self._wait))
        spelling = _spelling(m)
        fields = _fields(m.sampling, m.stop_criteria.strings)
        by_length = sorted((p.ids for p in m.prompted if p.part == "sample"), key=len)
        few = [by_length[i * (len(by_length) - 1) // (_COMPARED - 1)] for i in range(_COMPARED)]
        ends = sorted(m.stop_criteria.tokens)
        abilities = find_abilities(
            client, m.served_model, few, spelling, fields, ends, m.sampling.responses
        )
        append(self._servers_log, [abilities])
        return Completer(client, abilities, spelling, m.stop_criteria, fields)

    def _stop(self) -> None:
        self._stopped.set()

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise HQError("Sampling was stopped.")

    def _asked(self, p: Prompted) -> ServedRecord:
        """Ask one question: all responses, or fewer if they are not all right or all wrong."""
        settings, completer = self._m.sampling, self._completer
        responses: list[Response | None] = []
        if not completer.can_send(p.ids):
            responses = [None] * settings.responses
        elif settings.temperature == 0:
            greedy = completer.responses(p.ids, 1, seed_of(settings, p.question.id, 0))
            responses = greedy * settings.responses
        while len(responses) < settings.responses and self._is_consistent(responses, p.question):
            count = min(completer.abilities.choices, settings.responses - len(responses))
            seed = seed_of(settings, p.question.id, len(responses))
            responses += completer.responses(p.ids, count, seed)
        return self._record(p, responses)

    def _is_consistent(self, responses: Sequence[Response | None], question: Question) -> bool:
        verdicts = {self._verdict(r, question) for r in responses if r is not None}
        return None not in responses and verdicts in (set(), {Verdict.RIGHT}, {Verdict.WRONG})

    def _verdict(self, response: Response, question: Question) -> Verdict:
        with self._judging:
            return self._m.judge.judge(response.text, question, response.truncated)

    def _record(self, p: Prompted, responses: Sequence[Response | None]) -> ServedRecord:
        read = [response for response in responses if response is not None]
        tokens = sum(len(r.ids) + (not r.truncated) for r in read)
        return ServedRecord(
            id=p.question.id,
            prompt=p.ids,
            responses=tuple(
                JudgedResponse(
                    text=r.text, ids=r.ids, verdict=self._verdict(r, p.question), count=count
                )
                for r, count in Counter(read).items()
            ),
            complete=len(read) == self._m.sampling.responses,
            generated=tokens,
            naive=tokens,
            retokenised=sum(r.retokenised for r in read),
            unreadable=len(responses) - len(read),
        )

    def _count(self, record: ServedRecord) -> None:
        self._counted += counts([record])
        if self._counted["responses"] >= _FEW:
            require_readable(self._counted, self._m.served_model)


def node(m: "Materials") -> Node:
    """Declare the responses of the study's endpoint to as many questions as the quota takes."""
    study = m.study
    return Node(
        STAGE,
        {
            "responses": {
                "model": m.model.fingerprint,
                "files": file_digests(m.path, SPELLING),
                "precision": precision(m),
                "sampling": asdict(m.sampling),
                "questions": asked_digest(m.prompted),
                "judge": m.judge.identity,
            }
            | m.stop_criteria.parameters,
            "quota": study.sampling.quota,
            "balance": study.sampling.balance,
            "design": design_digest(m.prompted),
        },
        about=f"responses {m.scope}".rstrip(),
        units=len(m.prompted),
        unit="questions",
        first=True,  # the server is validated before anything is computed
        materials=m,
    )


def precision(m: "Materials") -> str:
    """Return what stands for the precision of the sampler: the model as the server calls it."""
    return f"{SAMPLER}:{m.served_model}"


def make(work: "Work[Materials]") -> None:
    """Write responses.jsonl, and what the servers said of themselves."""
    m, parameters = work.materials, dict(work.parameters)
    with (
        work.store.growing(RESPONSE_LOG.name, RESPONSE_LOG.version, parameters["responses"]) as log,
        work.task(len(m.prompted), "questions", "sample responses") as task,
        ServedSampler(m, log / _SERVERS_LOG) as sampler,
    ):
        quota, balance = parameters["quota"], parameters["balance"]
        records = collect(log / LOG_FILE, sampler, m.prompted, m.judge, quota, balance, task)
        servers = read_log(log / _SERVERS_LOG, Abilities)
    counted = counts([record for record in records if isinstance(record, ServedRecord)])
    require_readable(counted, m.served_model)
    write_records(work.folder, records)
    different = {server.model_dump_json(): server for server in servers}
    facts = Served(servers=list(different.values()), **_COUNTS | counted)
    write_whole(work.folder / SERVERS_FILE, facts.model_dump_json(indent=1) + "\n")


_COUNTS = dict.fromkeys(("responses", "retokenised", "unreadable"), 0)


def counts(records: Sequence[ServedRecord]) -> "Counter[str]":
    """Return the numbers of responses, and of those that were tokenized again or not readable."""
    counted = Counter[str]()
    for r in records:
        counted["responses"] += sum(one.count for one in r.responses) + r.unreadable
        counted["retokenised"] += r.retokenised
        counted["unreadable"] += r.unreadable
    return counted


def require_readable(counted: "Counter[str]", model: str) -> None:
    """Raises HQError if too many responses are not what their tokens decode to."""
    unreadable, responses = counted["unreadable"], counted["responses"]
    if unreadable > MAX_UNREADABLE * responses:
        raise HQError(
            f"{unreadable:,} of {responses:,} responses of {model} are not the text of their "
            "tokens by the checkpoint's tokenizer, which is more than "
            f"{MAX_UNREADABLE:.0%}: serve the same model, and let the server return token ids."
        )


def read(folder: Path) -> Served:
    """Read what sampled the responses of a finished node."""
    return Served.model_validate_json((folder / SERVERS_FILE).read_text(encoding="utf-8"))


def find_model(m: "Materials") -> str:
    """Return the name of the study's model at the endpoint, which is asked if there is none.

    Raises HQError if the server cannot be reached, or has no such model or several.
    """
    if m.study.endpoint.model:
        return m.study.endpoint.model
    with connect(m) as client:
        return served_model(client, "")[0]


def connect(m: "Materials", sleep: Any = None) -> Client:
    """Return a client of the study's endpoint. Raises HQError if the study names none."""
    url = m.study.endpoint.url.rstrip("/").removesuffix("/v1")
    if not url:
        raise HQError(
            "The sampler openai needs a server: give its address, as --endpoint "
            "http://localhost:8000."
        )
    waits = {} if sleep is None else {"sleep": sleep}
    return Client(url, os.environ.get(KEY_VARIABLE), timeout=_TIMEOUT_S, **waits)


def seed_of(settings: Sampling, key: str, first: int) -> int:
    """Return the seed of a request, from the study's seed, the question and the first response.

    It has 31 bits, which all servers accept.
    """
    text = f"{settings.seed} {key} {first}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1


def _fields(settings: Sampling, stops: Sequence[str]) -> dict[str, Any]:
    """Return the fields of every request; the server must accept all of them."""
    fields: dict[str, Any] = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_new_tokens,
    }
    if settings.top_k:
        fields["top_k"] = settings.top_k
    return fields | ({"stop": list(stops)} if stops else {})


def _spelling(m: "Materials") -> Spelling:
    tokenizer = m.tokenizer
    return Spelling(
        decode=m.stop_criteria.decode,
        encode=partial(bare_ids, tokenizer),
        encode_response=Encoder(tokenizer).continuation,
        bos=tuple(Encoder(tokenizer).text("")),
    )


STAGE = Stage(
    "served",
    make,
    sources=("harness.endpoints.completions",),
    volatile=frozenset({SERVERS_FILE}),
)

"""Stage `recorded`: the responses in a file, in place of sampling.

The file is validated before the first node runs. The output has the bytes that sampling these
responses gives, so all later nodes are shared with a run that samples.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.judges.base import PromptedJudge, Verdict
from harness.stages import response_file, served
from harness.stages.response_file import Header, Line
from harness.stages.sample import (
    JudgedResponse,
    QuestionRecord,
    asked_digest,
    chunks_for,
    design_digest,
    read_records,
    write_records,
)
from harness.stages.samples import Prompted
from harness.store.node import Node, Stage, Work
from harness.store.store import read_record
from harness.studies.study import SAMPLERS
from hq.errors import HQError
from hq.models.checkpoint import text_config
from hq.tracing.sampling import StopCriteria

if TYPE_CHECKING:
    from harness.stages.materials import Materials

_SAMPLED = ("compute", "device", "machine", "packages")  # in the header; they may differ
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # in place of an incomplete character


@dataclass(frozen=True)
class Recorded:
    """The responses of a file to the questions that a study asks."""

    header: Header
    digest: str
    records: list[QuestionRecord]  # in the order of the questions


def node(m: "Materials", recorded: Recorded) -> Node:
    """Declare the responses of the study's file to as many questions as the quota takes."""
    header = recorded.header.model_dump(mode="json", exclude={"format", "version", "questions"})
    return Node(
        STAGE,
        {
            "file": recorded.digest,
            "responses": header | {"questions": asked_digest(m.prompted)},
            "quota": m.study.sampling.quota,
            "balance": m.study.sampling.balance,
            "design": design_digest(m.prompted),
        },
        # No model is loaded, but rows belong to the precision at which one sampled.
        precision=None if _is_served(header["precision"]) else header["precision"],
        about=f"responses {m.scope}".rstrip(),
        units=len(recorded.records),
        unit="questions",
        materials=m,
    )


def make(work: "Work[Materials]") -> None:
    """Write responses.jsonl."""
    recorded = work.materials.recorded
    assert recorded is not None
    write_records(work.folder, recorded.records)


def load(m: "Materials") -> Recorded | None:
    """Read and validate the study's file of responses; None if it has none.

    Raises HQError, naming what is wrong, if the file is missing or damaged, was sampled from
    another model or with other settings, lacks a question, or contradicts itself or the judge.
    """
    if not m.study.responses:
        return None
    path = Path(m.study.responses)
    header, lines, digest = response_file.read(path)
    _require_settings(path, header, m)
    prompted = {p.question.id: p for p in m.prompted}
    check = _Check(path, m, _is_served(header.precision))
    records: dict[str, QuestionRecord] = {}
    for line in lines:
        if line.id in records:
            raise HQError(f"{path} has the question {line.id!r} twice: copy the file again.")
        records[line.id] = check.record(line, prompted.get(line.id))
    return Recorded(header, digest, list(_asked(path, m, records)))


def export(m: "Materials", folder: Path, path: Path) -> int:
    """Write the responses of a finished `sample` node to a file; return their number."""
    facts = read_record(folder)["parameters"]["responses"]
    prompted = {p.question.id: p for p in m.prompted}
    records = read_records(folder)
    header = Header(
        format=response_file.FORMAT,
        version=response_file.VERSION,
        questions=len(records),
        sampled={key: facts[key] for key in _SAMPLED if key in facts},
        **{
            key: facts[key]
            for key in ("model", "precision", "sampling", "stop_strings", "stop_tokens", "judge")
        },
    )
    lines = [
        Line(
            asked=response_file.digest_of(prompted[record.id]),
            **record.model_dump(exclude={"prompt"}),
        )
        for record in records.values()
    ]
    response_file.write(path, header, lines)
    return len(lines)


def _require_settings(path: Path, header: Header, m: "Materials") -> None:
    """Raises HQError unless the responses are of this model, sampler and judge."""
    if header.model != m.model.fingerprint:
        raise HQError(
            f"{path} has responses of the model {header.model}, and {m.path.name} is "
            f"{m.model.fingerprint}: give a file of this model, or sample without a file."
        )
    stops = m.stop_criteria.parameters
    wanted = {
        "precision": _sampled_at(m, header),
        **{f"sampling.{key}": value for key, value in asdict(m.sampling).items()},
        **stops,
        "judge": m.judge.identity,
    }
    stated = {
        "precision": header.precision,
        **{f"sampling.{key}": value for key, value in header.sampling.items()},
        "stop_strings": list(header.stop_strings),
        "stop_tokens": list(header.stop_tokens),
        "judge": header.judge,
    }
    for key in sorted(wanted.keys() | stated.keys()):
        if wanted.get(key) != stated.get(key):
            raise HQError(
                f"{path} was sampled with {key} = {stated.get(key)!r}, and the study has "
                f"{wanted.get(key)!r}: change the study, or give a file that was sampled with its "
                "settings."
            )


def _is_served(precision: str) -> bool:
    return precision.startswith(f"{served.SAMPLER}:")


def _sampled_at(m: "Materials", header: Header) -> str:
    """Return the precision that the file has to state: for an endpoint, its model's name.

    Every name is accepted if the study has none, because the server is not asked.
    """
    sampler = m.study.sampling.sampler
    if sampler != served.SAMPLER:
        return SAMPLERS[sampler]
    if not m.study.endpoint.model and _is_served(header.precision):
        return header.precision
    return f"{served.SAMPLER}:{m.study.endpoint.model}"


def _asked(
    path: Path, m: "Materials", records: Mapping[str, QuestionRecord]
) -> Iterator[QuestionRecord]:
    """Yield the records of all questions that are asked for the quota, in their order.

    Raises HQError, naming the question, if there is no record of one.
    """
    sampling = m.study.sampling
    for chunk, _ in chunks_for(m.prompted, records, sampling.quota, sampling.balance):
        for p in chunk:
            if p.question.id not in records:
                raise HQError(
                    f"{path} has no responses to {p.question.id!r}, which the study asks for "
                    f"sampling.quota = {sampling.quota} ({sampling.balance}): lower the quota, or "
                    "export the responses of this study."
                )
            yield records[p.question.id]


class _Check:
    """Compares lines of a file with the study: questions, tokens, texts, counts and verdicts."""

    def __init__(self, path: Path, m: "Materials", is_served: bool) -> None:
        self._path = path
        # Texts that are tokenized again can have more tokens than were sampled.
        self._is_exact = not is_served
        self._judge = m.judge
        # The verdicts of a language model are taken as recorded.
        self._judged_again = not isinstance(m.judge, PromptedJudge)
        self._criteria = m.stop_criteria
        self._settings = m.sampling
        self._vocabulary = int(text_config(m.path).vocab_size)

    def record(self, line: Line, p: Prompted | None) -> QuestionRecord:
        """Return the record of a line. Raises HQError if the line does not fit the study."""
        if p is None:
            raise HQError(
                f"{self._path} has responses to {line.id!r}, which is no question of the study: "
                "give a file that was sampled with the same questions."
            )
        if line.asked != response_file.digest_of(p):
            raise HQError(
                f"{self._path} has responses to {line.id!r} with another wording, prompt or list "
                "of answers than in the study: give a file that was sampled with the same "
                "questions."
            )
        for response in line.responses:
            self._require_tokens(line, response)
            if self._judged_again:
                self._require_verdict(response, p)
        self._require_counts(line)
        return QuestionRecord(
            id=line.id,
            prompt=p.ids,
            responses=line.responses,
            complete=line.complete,
            generated=line.generated,
            naive=line.naive,
        )

    def _require_tokens(self, line: Line, response: JudgedResponse) -> None:
        limit = self._settings.max_new_tokens
        if any(not 0 <= id < self._vocabulary for id in response.ids):
            raise self._damaged(line.id, f"a token outside the vocabulary of {self._vocabulary:,}")
        too_long = self._is_exact and len(response.ids) > limit
        if too_long or not self._criteria.tokens.isdisjoint(response.ids):
            raise self._damaged(line.id, f"a response beyond its end or {limit} tokens")
        if not _is_text_of(response, self._criteria):
            raise self._damaged(
                line.id, f"the text {response.text!r}, which is not that of its tokens"
            )

    def _require_verdict(self, response: JudgedResponse, p: Prompted) -> None:
        is_longest = len(response.ids) == self._settings.max_new_tokens
        is_cut = is_longest and self._criteria.split(response.ids) is None
        if not self._is_exact:  # the server said what it cut
            is_cut = response.verdict is Verdict.CUT
        verdict = self._judge.judge(response.text, p.question, is_cut)
        if verdict is not response.verdict:
            raise HQError(
                f"{self._path} calls the response {response.text!r} to {p.question.id!r} "
                f"{response.verdict}, and {self._judge.identity} calls it {verdict}: copy the file "
                "again, or export it again with this release of hq."
            )

    def _require_counts(self, line: Line) -> None:
        counts, n = [response.count for response in line.responses], self._settings.responses
        # Sampling of a question is abandoned only if its verdicts are not all right or all wrong.
        agree = {r.verdict for r in line.responses} in ({Verdict.RIGHT}, {Verdict.WRONG})
        complete = sum(counts) == n
        wrong = min(counts, default=1) < 1 or sum(counts) > n or line.complete != complete
        # A server can have returned responses that no tokens have; they are left out.
        wrong = wrong or (self._is_exact and (not counts or (agree and not complete)))
        if wrong:
            raise self._damaged(line.id, f"counts with the sum {sum(counts)}, of {n} responses")

    def _damaged(self, id: str, what: str) -> HQError:
        return HQError(f"{self._path} has, for {id!r}, {what}: copy the file again.")


def _is_text_of(response: JudgedResponse, criteria: StopCriteria) -> bool:
    """Whether the text is what the tokens decode to, up to a stop string.

    The last token can hold the beginning of the stop string too, and it can lack the rest of a
    character of several bytes.
    """
    text, whole = response.text, criteria.decode(response.ids)
    if any(string in text for string in criteria.strings):
        return False
    if whole == text:
        return True
    rest = whole[len(text) :]
    if rest:
        return whole.startswith(text) and rest.startswith(criteria.strings)
    return len(whole) == len(text) and text.startswith(whole.rstrip(_REPLACEMENT))


STAGE = Stage("recorded", make)

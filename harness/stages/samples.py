"""Prompted questions, and samples: labelled responses as token ids, balanced within each group."""

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.judges.base import Question
from hq.errors import HQError
from hq.neurons.neuron_set import NeuronSet
from hq.neurons.prompt_response import PromptResponse
from hq.storage.atomic import write_whole
from hq.tracing.traces import Traces

Split = Literal["train", "calibration", "test"]
TokenId = Annotated[int, Field(ge=0)]


class Prompted(BaseModel):
    """A question with the token ids of its prompt, its split and its component."""

    model_config = ConfigDict(frozen=True)

    question: Question
    ids: tuple[int, ...]
    split: Split
    component: str  # questions of different components share no entity


class Sample(BaseModel):
    """The most frequent response to a question, all responses to which got one verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    relation: str
    split: Split
    component: str  # a component is never divided between splits or folds
    hallucinated: bool
    text: str
    prompt_ids: tuple[TokenId, ...]
    response_ids: tuple[TokenId, ...]

    @property
    def exchange(self) -> PromptResponse:
        """Its token ids."""
        return PromptResponse(self.prompt_ids, self.response_ids)


class Candidate(NamedTuple):
    """A question with consistent responses, the group in which it is balanced, and its label."""

    id: str
    group: Hashable
    hallucinated: bool


def pairs(candidates: Iterable[Candidate], quota: int) -> list[tuple[str, str]]:
    """Return the ids of the first `quota` (right, hallucinated) pairs, in the order of completion.

    Candidates come in a fixed order, and each is paired with the first waiting candidate of the
    same group and the opposite label. The first k pairs depend only on the candidates up to the
    k-th pair, so sampling may stop at the quota without changing which samples are kept.
    """
    return list(islice(_pairs(candidates), quota))


def _pairs(candidates: Iterable[Candidate]) -> Iterator[tuple[str, str]]:
    waiting: dict[tuple[Hashable, bool], deque[str]] = defaultdict(deque)
    for candidate in candidates:
        opposite = waiting[candidate.group, not candidate.hallucinated]
        if not opposite:
            waiting[candidate.group, candidate.hallucinated].append(candidate.id)
        elif candidate.hallucinated:
            yield opposite.popleft(), candidate.id
        else:
            yield candidate.id, opposite.popleft()


def samples_digest(samples: Sequence[Sample]) -> str:
    """Return the BLAKE2b digest of ids, relations, splits, labels and token ids, 16 hex digits."""
    facts = [sample.model_dump(exclude={"text"}) for sample in samples]
    text = json.dumps(facts, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def require_origin(neurons: NeuronSet, samples: Sequence[Sample], reference: Traces) -> None:
    """Raises HQError unless the neurons are from these samples at the reference's precision.

    With other splits, results on held-out samples could be results on training samples.
    """
    stated = neurons.provenance
    if stated.get("samples") != samples_digest(samples):
        raise HQError(
            "The neuron set was identified on other samples, or on the same in other splits "
            f"({stated.get('samples', 'it does not say which')}): give the samples that were "
            "given to `hq identify`."
        )
    if stated.get("precision") != reference.info.precision:
        raise HQError(
            "The neuron set was identified at "
            f"{stated.get('precision', 'an unknown precision')}, but {reference.folder} holds "
            f"traces at {reference.info.precision}: give traces at the precision of the neuron set "
            "as the reference."
        )


def require_separate(samples: Sequence[Sample]) -> None:
    """Raises HQError if a question or entity could appear in two splits or two folds.

    Each id must appear once, each component in one split, each prompt in one split and component.
    """
    ids: set[str] = set()
    split_of: dict[str, Sample] = {}
    by_prompt: dict[tuple[int, ...], Sample] = {}
    for sample in samples:
        if sample.id in ids:
            raise HQError(f"The sample {sample.id!r} appears twice in the samples: keep it once.")
        ids.add(sample.id)
        related = split_of.setdefault(sample.component, sample)
        if related.split != sample.split:
            raise HQError(
                f"The component {sample.component!r} appears in the splits {related.split} "
                f"({related.id!r}) and {sample.split} ({sample.id!r}): keep it in one of them."
            )
        same = by_prompt.setdefault(sample.prompt_ids, sample)
        if (same.split, same.component) != (sample.split, sample.component):
            raise HQError(
                f"The samples {same.id!r} ({same.split}) and {sample.id!r} ({sample.split}) have "
                "the same prompt: keep them in one component of one split, or remove one."
            )


def write_tokens(path: Path, exchanges: Sequence[PromptResponse]) -> None:
    """Write the token ids of prompts and responses, one JSON pair per line."""
    lines = (json.dumps([e.prompt, e.response]) + "\n" for e in exchanges)
    write_whole(path, "".join(lines))


def read_tokens(path: Path) -> list[PromptResponse]:
    """Read the prompts and responses of a file that `write_tokens` wrote."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [PromptResponse(*map(tuple, json.loads(line))) for line in lines]


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write one sample per line."""
    write_whole(path, "".join(sample.model_dump_json() + "\n" for sample in samples))


def read_samples(path: Path) -> list[Sample]:
    """Read samples. Raises HQError if the file is missing or empty, or a line is not a sample."""
    if not path.is_file():
        raise HQError(f"There is no samples file {path}: `hq study run` writes one.")
    samples: list[Sample] = []
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                samples.append(Sample.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"])) or "the line"
                raise HQError(
                    f"Line {number} of {path} is not a sample: {where}: {first['msg']}."
                ) from error
    if not samples:
        raise HQError(f"{path} is empty: give a file with at least one sample.")
    return samples

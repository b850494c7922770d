"""Prompted questions, and samples: labelled responses as token ids, balanced within each group."""

import hashlib
import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.judges.base import Question
from harness.judges.text import normalise
from harness.stages.units import Part, require_small_units
from hq.errors import HQError
from hq.neurons.neuron_set import NeuronSet
from hq.neurons.prompt_response import PromptResponse
from hq.storage.atomic import write_whole
from hq.tracing.traces import Traces

TokenId = Annotated[int, Field(ge=0)]


class Prompted(BaseModel):
    """A question with the token ids of its prompt, its part and its component."""

    model_config = ConfigDict(frozen=True)

    question: Question
    ids: tuple[int, ...]
    part: Part  # "sample": it is asked, and may become a sample; the others are reserved
    component: str  # questions of different components share no entity and no wording


class Sample(BaseModel):
    """The most frequent response to a question, all responses to which got one verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    relation: str
    question: str  # its text
    text: str  # of the response
    answer: str  # the response, normalised
    hallucinated: bool
    unit: str  # samples of different units share no answer, entity or wording
    fold: Annotated[int, Field(ge=0)]  # a unit is never divided between folds
    prompt_ids: tuple[TokenId, ...]
    response_ids: tuple[TokenId, ...]

    @property
    def exchange(self) -> PromptResponse:
        """Its token ids."""
        return PromptResponse(self.prompt_ids, self.response_ids)


def samples_digest(samples: Sequence[Sample]) -> str:
    """Return the BLAKE2b digest of the samples without their texts, as 16 hex digits.

    It covers ids, relations, labels, units, folds and token ids.
    """
    facts = [sample.model_dump(exclude={"question", "text", "answer"}) for sample in samples]
    text = json.dumps(facts, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def require_origin(neurons: NeuronSet, samples: Sequence[Sample], reference: Traces) -> None:
    """Raises HQError unless the neurons are from these samples at the reference's precision.

    With other folds, a sample could be scored by a probe that was fitted on it.
    """
    stated = neurons.provenance
    if stated.get("samples") != samples_digest(samples):
        raise HQError(
            "The neuron set was identified on other samples, or on the same in other folds "
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
    """Raises HQError if a unit is in two folds, or if samples of two units are related.

    Related samples have the same answer, wording or prompt; entities are not known here. Ids must
    be unique, and no unit may be too large (see `require_small_units`).
    """
    ids: set[str] = set()
    in_unit: dict[str, Sample] = {}
    first_with: dict[tuple[str, Hashable], Sample] = {}
    for sample in samples:
        if sample.id in ids:
            raise HQError(f"The sample {sample.id!r} appears twice in the samples: keep it once.")
        ids.add(sample.id)
        related = in_unit.setdefault(sample.unit, sample)
        if related.fold != sample.fold:
            raise HQError(
                f"The unit {sample.unit!r} appears in the folds {related.fold} ({related.id!r}) "
                f"and {sample.fold} ({sample.id!r}): keep it in one of them."
            )
        keys = {
            "answer": normalise(sample.answer),
            "question": normalise(sample.question),
            "prompt": sample.prompt_ids,
        }
        for kind, value in keys.items():
            same = first_with.setdefault((kind, value), sample)
            if value and same.unit != sample.unit:  # texts without words may be equal
                raise HQError(
                    f"The samples {same.id!r} (unit {same.unit!r}) and {sample.id!r} (unit "
                    f"{sample.unit!r}) have the same {kind}: keep them in one unit, or remove one."
                )
    require_small_units([sample.unit for sample in samples])


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

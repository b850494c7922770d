"""Questions as they are put, and samples: kept responses, labelled, as token ids."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

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
    """A question ready to be asked: its token ids, its split, and the component it belongs to."""

    model_config = ConfigDict(frozen=True)

    question: Question
    ids: tuple[int, ...]
    split: Split
    component: str  # no entity is in two of them


class Sample(BaseModel):
    """One response to one question, whose samples all got the same verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    relation: str
    split: Split
    component: str  # samples of one component share an entity: never on two sides of a fold
    hallucinated: bool
    text: str
    prompt_ids: tuple[TokenId, ...]
    response_ids: tuple[TokenId, ...]

    @property
    def exchange(self) -> PromptResponse:
        """Its token ids."""
        return PromptResponse(self.prompt_ids, self.response_ids)


def samples_digest(samples: Sequence[Sample]) -> str:
    """BLAKE2b of ids, relations, splits, labels and token ids: 16 hex digits."""
    facts = [sample.model_dump(exclude={"text"}) for sample in samples]
    text = json.dumps(facts, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def require_origin(neurons: NeuronSet, samples: Sequence[Sample], reference: Traces) -> None:
    """Raises HQError unless the neurons were found on these samples, at the reference's precision.

    On samples split in another way, what is reported as held out may have been trained on.
    """
    stated = neurons.provenance
    if stated.get("samples") != samples_digest(samples):
        raise HQError(
            "The neuron set was found on other samples, or on the same in other splits "
            f"({stated.get('samples', 'it does not say which')}): give the samples that "
            "`hq identify` was given."
        )
    if stated.get("precision") != reference.info.precision:
        raise HQError(
            f"The neuron set was found at {stated.get('precision', 'no stated precision')}, but "
            f"{reference.folder} holds traces at {reference.info.precision}: give traces of the "
            "precision that it was found at as the reference."
        )


def require_separate(samples: Sequence[Sample]) -> None:
    """Raises HQError where one question or entity stands in two splits or two folds.

    An id stands once; a component, and a prompt, in one split; a prompt in one component.
    """
    ids: set[str] = set()
    split_of: dict[str, Sample] = {}
    asked: dict[tuple[int, ...], Sample] = {}
    for sample in samples:
        if sample.id in ids:
            raise HQError(f"The sample {sample.id!r} stands twice in the samples: keep it once.")
        ids.add(sample.id)
        related = split_of.setdefault(sample.component, sample)
        if related.split != sample.split:
            raise HQError(
                f"The component {sample.component!r} stands in the splits {related.split} "
                f"({related.id!r}) and {sample.split} ({sample.id!r}): keep it in one of them."
            )
        same = asked.setdefault(sample.prompt_ids, sample)
        if (same.split, same.component) != (sample.split, sample.component):
            raise HQError(
                f"The samples {same.id!r} ({same.split}) and {sample.id!r} ({sample.split}) ask "
                "the same tokens: keep them in one component of one split, or remove one."
            )


def write_tokens(path: Path, exchanges: Sequence[PromptResponse]) -> None:
    """Writes the token ids of prompts and responses, one JSON pair per line."""
    lines = (json.dumps([e.prompt, e.response]) + "\n" for e in exchanges)
    write_whole(path, "".join(lines))


def read_tokens(path: Path) -> list[PromptResponse]:
    """The prompts and responses of a file that `write_tokens` wrote."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [PromptResponse(*map(tuple, json.loads(line))) for line in lines]


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Writes one line a sample."""
    write_whole(path, "".join(sample.model_dump_json() + "\n" for sample in samples))


def read_samples(path: Path) -> list[Sample]:
    """Raises HQError for a missing or empty file, or a line that is no sample."""
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
                    f"Line {number} of {path} is no sample: {where}: {first['msg']}."
                ) from error
    if not samples:
        raise HQError(f"{path} is empty: it must hold at least one sample.")
    return samples

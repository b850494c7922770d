"""The texts of a training run, and the batch of each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hq.errors import HQError
from hq.neurons.prompt_response import PromptResponse

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TuningData:
    """Prompts with responses, by their use."""

    penalised: Sequence[PromptResponse]  # responses of the reference that over-comply
    right: Sequence[PromptResponse]  # right answers
    refusals: Sequence[PromptResponse]  # responses that resist
    neutral: Sequence[PromptResponse]  # on which the model should not change
    validation: Sequence[PromptResponse]  # neutral texts that are not trained on

    def require(self) -> None:
        """Raises HQError if a use has no text; right answers and refusals are two classes."""
        missing = {
            "over-compliant responses": self.penalised,
            "right answers": self.right,
            "refusals": self.refusals,
            "neutral texts": self.neutral,
            "neutral texts for validation": self.validation,
        }
        absent = [name for name, texts in missing.items() if not texts]
        if absent:
            raise HQError(
                f"The training data contain no {absent[0]}, so a model would learn one behaviour "
                "only: ask more questions, or add scenarios."
            )


def batch_of(items: Sequence[T], size: int, step: int, seed: int, stream: int) -> list[T]:
    """Return the items of a step: every epoch is a permutation, given by seed, stream and epoch.

    It depends on nothing else, so that a resumed run continues with the same batches.
    """
    count, chosen = len(items), []
    for position in range(step * size, (step + 1) * size):
        epoch, at = divmod(position, count)
        order = np.random.default_rng((seed, stream, epoch)).permutation(count)
        chosen.append(items[int(order[at])])
    return chosen

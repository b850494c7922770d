"""What a sweep will take: how many responses, and how long on this machine."""

import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict

from harness.experiments.pipeline import Pipeline
from harness.experiments.sweep.steering import Steering
from harness.scenarios import prompts
from harness.scenarios.base import SCENARIOS, Trial
from harness.stages import respond
from harness.stages.asking import label
from harness.store.progress import Progress
from harness.studies.study import REFERENCE
from hq.backends.opening import max_rows

_TRIED = 32  # prompts that are timed


class Forecast(BaseModel):
    """Of a whole sweep, nothing of which was done before.

    Other precisions are taken to be as fast as the reference, and responses of other scenarios as
    long as those that were timed.
    """

    model_config = ConfigDict(frozen=True)

    trials: dict[str, int]  # by scenario and kind
    variants: int  # sets of neurons and α's, those at α = 1 being one
    precisions: int
    responses: int  # scenarios' and, for accuracy, the study's own questions
    seconds_a_response: float
    seconds: float

    def __str__(self) -> str:
        trials = ", ".join(f"{count} of {label}" for label, count in self.trials.items())
        return (
            f"Trials: {trials}.\n"
            f"{self.responses:,} responses: {sum(self.trials.values())} trials × {self.variants} "
            f"variants × {self.precisions} precisions, and the study's own questions at each α.\n"
            f"About {self.seconds / 60:.0f} minutes at {1e3 * self.seconds_a_response:.0f} ms a "
            f"response, which {_TRIED} unscaled ones took here."
        )


def forecast(pipeline: Pipeline) -> Forecast:
    """Counts trials and variants, and times a few responses of the first scenario."""
    section, study = pipeline.study.sweep, pipeline.study
    loaded = Steering(pipeline).offered
    counts = {
        label(name, kind): min(count, section.trials)
        for name, trials in loaded.items()
        for kind, count in sorted(Counter(trial.kind for trial in trials).items())
    }
    variants = len(section.alphas) + section.draws * (len(section.control_alphas) - 1)
    answers = section.questions * len(section.alphas)
    responses = len(study.precisions) * (sum(counts.values()) * variants + answers)
    name = section.scenarios[0]
    seconds = _timed(pipeline, section.form or SCENARIOS[name].form, loaded[name][:_TRIED])
    return Forecast(
        trials=counts,
        variants=variants,
        precisions=len(study.precisions),
        responses=responses,
        seconds_a_response=seconds,
        seconds=seconds * responses,
    )


def _timed(pipeline: Pipeline, form_name: str, trials: list[Trial]) -> float:
    """Seconds that a response to one of the trials took, all of them side by side."""
    form = prompts.form(form_name)
    ids = [tuple(form.encode(pipeline.tokenizer, trial.prompt)) for trial in trials]
    ending = pipeline.ending_of(form)
    backend = pipeline.backend(REFERENCE)
    new = pipeline.study.sweep.max_new_tokens
    with TemporaryDirectory() as folder, Progress(quiet=True).task("", len(ids), "") as task:
        log = Path(folder) / respond.LOG_FILE
        started = time.perf_counter()
        respond.respond(log, lambda: backend, ids, [{}], ending, new, task, max_rows(REFERENCE))
        return (time.perf_counter() - started) / len(ids)

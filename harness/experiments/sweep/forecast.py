"""What a sweep will take: how many responses, and how long on this machine."""

import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict

from harness.experiments.sweep.asking import label
from harness.experiments.sweep.plan import SweepPlan
from harness.scenarios.base import Trial
from harness.scenarios.prompts import PromptForm
from harness.stages import respond
from harness.stages.materials import Materials
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


def forecast(m: Materials) -> Forecast:
    """Counts trials and variants, and times a few responses of the first scenario."""
    plan, study = m.of(SweepPlan), m.study
    section, offered = plan.section, plan.offered
    counts = {
        label(name, kind): min(count, section.trials)
        for name, trials in offered.items()
        for kind, count in sorted(Counter(trial.kind for trial in trials).items())
    }
    variants = len(section.alphas) + section.draws * (len(section.control_alphas) - 1)
    answers = section.questions * len(section.alphas)
    responses = len(study.precisions) * (sum(counts.values()) * variants + answers)
    name = section.scenarios[0]
    seconds = _timed(m, plan.form(name), offered[name][:_TRIED])
    return Forecast(
        trials=counts,
        variants=variants,
        precisions=len(study.precisions),
        responses=responses,
        seconds_a_response=seconds,
        seconds=seconds * responses,
    )


def _timed(m: Materials, form: PromptForm, trials: list[Trial]) -> float:
    """Seconds that a response to one of the trials took, all of them in one batch."""
    ids = [tuple(form.encode(m.tokenizer, trial.prompt)) for trial in trials]
    criteria = m.stop_criteria_of(form)
    backend = m.models.open(REFERENCE)
    new = m.of(SweepPlan).section.max_new_tokens
    with TemporaryDirectory() as folder, Progress(quiet=True).task("", len(ids), "") as task:
        log = Path(folder) / respond.LOG_FILE
        started = time.perf_counter()
        respond.respond(log, lambda: backend, ids, [{}], criteria, new, task, max_rows(REFERENCE))
        return (time.perf_counter() - started) / len(ids)

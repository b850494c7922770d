"""`hq survival`: prediction from FP16 alone of the neurons that a precision degrades."""

from harness.cli.app import AsJson, Quiet, app
from harness.cli.study import (
    DEFAULT_STUDY,
    Into,
    ModelOption,
    Name,
    Overrides,
    Precisions,
    Questions,
    Resume,
    execute,
    planned,
)


@app.command()
def survival(
    study: Name = DEFAULT_STUDY,
    model: ModelOption = None,
    precisions: Precisions = None,
    questions: Questions = None,
    overrides: Overrides = None,
    into: Into = None,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Predict from FP16 alone which neurons a precision degrades; same as hq run -e survival.

    Weights and activity at FP16 predict the error of each neuron's contribution, and the change of
    its rank. Each layer and precision is predicted by a fit on other layers and precisions.
    """
    chosen = planned(study, model, precisions, questions, overrides)
    execute(chosen, "survival", into, resume, quiet, as_json)

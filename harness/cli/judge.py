"""`hq judge compare`: a second judge on the responses that label a study."""

from typing import Annotated

import typer

from harness.cli.app import AsJson, Quiet, app, out, print_json
from harness.cli.study import DEFAULT_STUDY, ModelOption, Name, Questions, planned

judge_app = typer.Typer(no_args_is_help=True, help="Compare two judges of answers.")
app.add_typer(judge_app, name="judge")


@judge_app.command("compare")
def judge_compare(
    study: Name = DEFAULT_STUDY,
    model: ModelOption = None,
    questions: Questions = None,
    second: Annotated[
        str,
        typer.Option(
            help="The other judge: rules, or llm, an endpoint set by the environment variables "
            "HQ_JUDGE_URL, HQ_JUDGE_MODEL and (optional) HQ_JUDGE_KEY."
        ),
    ] = "llm",
    limit: Annotated[
        int,
        typer.Option(min=2, help="The largest number of questions, drawn by the study's seed."),
    ] = 200,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Judge a study's responses a second time, and report how often the judges disagree.

    The responses are those that label the study; missing ones are sampled first. Example:
    `hq judge compare smollm2-facts --second llm --limit 500`.
    """
    from harness.experiments.judge_comparison import compare_judges, distinct_responses
    from harness.judges.registry import make_judge
    from harness.stages import sample
    from harness.stages.materials import Materials
    from harness.store.places import cache_folder
    from harness.store.progress import Progress
    from harness.store.runner import Runner
    from harness.store.store import Store

    plan = planned(study, model, None, questions)
    other = make_judge(second)
    store = Store(cache_folder() / "store", fresh=False)
    with Progress(quiet=quiet) as progress, Materials(plan) as m:
        m.check()
        node = sample.node(m)
        folder = Runner(store, progress, m).run([node])[node]
        responses = distinct_responses(m, folder, limit)
        with progress.task("judge", len(responses), "responses") as task:
            result = compare_judges(m.judge, other, responses, task)
    if as_json:
        print_json(result.model_dump())
        return
    kappa = "not defined" if result.kappa is None else f"{result.kappa:.2f}"
    out.print(f"{result.first}\n{result.second}", highlight=False, soft_wrap=True)
    out.print(
        f"{result.responses} responses to {result.questions} questions: the judges disagree on "
        f"{result.rate} of them; κ {kappa}; {result.labels_changed} questions change their label.",
        highlight=False,
        soft_wrap=True,
    )
    for pair, count in result.verdicts.items():
        out.print(f"  {pair}: {count}", highlight=False)

"""`hq judge`: a second judge beside the one that labels a study's responses."""

from typing import Annotated

import typer

from harness.cli.app import AsJson, Quiet, app, out, print_json
from harness.cli.study import DEFAULT_STUDY, Model, Name, Questions, planned

judge_app = typer.Typer(no_args_is_help=True, help="Compare the judges of answers.")
app.add_typer(judge_app, name="judge")


@judge_app.command("compare")
def compare(
    study: Name = DEFAULT_STUDY,
    model: Model = None,
    questions: Questions = None,
    second: Annotated[
        str, typer.Option(help="The other judge: llm (HQ_JUDGE_URL, HQ_JUDGE_MODEL) or rules.")
    ] = "llm",
    limit: Annotated[
        int, typer.Option(min=2, help="Questions whose responses both judges read, by draw.")
    ] = 200,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Judge a study's responses a second time, and report how often the two judges disagree.

    The responses are those that label the study; what was not sampled yet is sampled first.
    """
    from harness.experiments.judge_comparison import compared, said_in
    from harness.judges.base import judge
    from harness.stages import sample
    from harness.stages.materials import Materials
    from harness.store.places import cache_folder
    from harness.store.progress import Progress
    from harness.store.runner import Runner
    from harness.store.store import Store

    plan = planned(study, model, None, questions)
    other = judge(second)
    store = Store(cache_folder() / "store", fresh=False)
    with Progress(quiet=quiet) as progress, Materials(plan) as m:
        m.check()
        node = sample.node(m)
        responses = Runner(store, progress, m).run([node])[node]
        said = said_in(m, responses, limit)
        with progress.task("judge", len(said), "responses") as task:
            found = compared(m.judge, other, said, plan.seed, task)
    if as_json:
        print_json(found.model_dump())
        return
    kappa = "not defined" if found.kappa is None else f"{found.kappa:.2f}"
    out.print(f"{found.first}\n{found.second}", highlight=False, soft_wrap=True)
    out.print(
        f"{found.responses} responses to {found.questions} questions: the judges disagree on "
        f"{found.rate} of them; κ {kappa}; {found.labels_changed} questions change their label.",
        highlight=False,
        soft_wrap=True,
    )
    for pair, count in found.verdicts.items():
        out.print(f"  {pair}: {count}", highlight=False)

"""`hq init`: a study file with every key explained, from a few questions."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from harness.cli.app import app, err, out
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.studies.study import Study

_T = TypeVar("_T")


@app.command("init")
def init_command(
    file: Annotated[
        Path | None,
        typer.Argument(help="The file to write; default: NAME.toml.", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the study, and of its tables; default: that of the file."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A checkpoint folder, GGUF file or hub id; default: smollm2, the embedded model."
        ),
    ] = None,
    precisions: Annotated[
        str | None, typer.Option(help="Comma-separated; default: fp16,nf4.")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="What is asked: knowledge, facts, triviaqa, …")
    ] = None,
    questions: Annotated[
        str | None,
        typer.Option(
            help="Question file (.jsonl or .parquet) or hub id, for scenarios that read one.",
            metavar="FILE",
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pairs of a right and a hallucinated answer to sample; default: as many as the "
            "packaged study that is most similar.",
        ),
    ] = None,
) -> None:
    """Write a study file in which every key is explained, and print the commands that run it.

    What an option does not give is asked on a terminal. Names, files and questions are validated
    before the file is written, and an existing file is never overwritten. Prompts and sampling are
    those of the packaged study that is most similar.

    Example: `hq init my-study.toml --scenario knowledge --precisions fp16,nf4,int8`.
    """
    given = {"FILE": file or name, "--scenario": scenario}
    ask = _Asking(sys.stdin.isatty(), [option for option, value in given.items() if not value])
    if file is None:
        name = ask("Name of the study", name, _name, "my-study")
        file = Path(f"{name}.toml")
    _require_new(file)
    options = _Options(model, precisions, scenario, questions, pairs)
    study = _study(ask, _name(name or file.stem), options)
    _write(study, file)
    shown = f'"{file.as_posix()}"' if " " in str(file) else file.as_posix()
    err.print(f"Wrote {file}. Read it, then:", highlight=False, markup=False, soft_wrap=True)
    for command in ("plan", "run"):
        out.print(f"hq {command} {shown}", highlight=False, markup=False, soft_wrap=True)


class _Asking:
    """Asks for what no option gives, until the answer is valid."""

    def __init__(self, terminal: bool, missing: list[str]) -> None:
        if missing and not terminal:
            raise HQError(
                f"hq init has no terminal to ask on, and {' and '.join(missing)} must be given: "
                "write `hq init FILE --scenario knowledge`."
            )
        self.terminal = terminal

    def __call__(
        self,
        question: str,
        given: Any,
        validated: Callable[[Any], _T],
        default: object,
    ) -> _T:
        """The valid value of an option: the given one, else the answer, else the default."""
        if given is not None:
            return validated(given)
        if not self.terminal:
            return validated(default)

        def answered(text: str) -> _T:
            try:
                return validated(text)
            except HQError as error:
                raise typer.BadParameter(str(error)) from error

        answer: _T = typer.prompt(question, default=default, value_proc=answered)
        return answer


class _Options(NamedTuple):
    """The options of the command that describe the study; None is asked."""

    model: str | None
    precisions: str | None
    scenario: str | None
    questions: str | None
    pairs: int | None


def _study(ask: _Asking, name: str, options: _Options) -> "Study":
    from harness.scenarios import SCENARIOS
    from harness.scenarios.questions import needs_file, reads_file
    from harness.studies.study import Study

    model = ask(
        "Model: folder, GGUF file, hub id or packaged model", options.model, _model, "smollm2"
    )
    chosen = ask("Precisions (hq list precisions)", options.precisions, _precisions, "fp16,nf4")
    known = ", ".join(name for name in SCENARIOS if SCENARIOS[name].questions)
    scenario = ask(f"Scenario ({known})", options.scenario, _scenario, "knowledge")
    section: dict[str, object] = {"name": scenario}
    if options.questions is not None or reads_file(scenario):
        hint = "" if needs_file(scenario) else "; empty: the official data set, from the hub"
        source = ask(
            f"Question file, .jsonl or .parquet{hint}",
            options.questions,
            lambda text: _questions(scenario, text),
            "",
        )
        if source:
            section["options"] = {"source": source}
    like = _most_similar(model, scenario)
    quota = ask(
        "Pairs of a right and a hallucinated answer", options.pairs, _count, like.sampling.quota
    )
    values = {
        "name": name,
        "model": model,
        "scenario": section,
        "prompt": like.prompt.model_dump(exclude_unset=True),
        "sampling": like.sampling.model_dump(exclude_unset=True) | {"quota": quota},
    }
    return Study.of(values, "the new study").changed(precisions=chosen)


def _require_new(file: Path) -> None:
    """Raises HQError if the file exists, or is not named as a study is."""
    if file.suffix != ".toml":
        raise HQError(f"{file} does not end in .toml: name it {file.with_suffix('.toml')}.")
    if file.exists() or file.is_symlink():
        raise HQError(f"{file} exists, and hq init never overwrites a file: name another one.")


def _write(study: "Study", file: Path) -> None:
    from harness.studies.study import Study
    from harness.studies.study_file import study_text
    from hq.storage.atomic import atomic_file

    with atomic_file(file) as draft:
        draft.write_text(study_text(study), encoding="utf-8", newline="\n")
        if Study.load(str(draft)) != study:
            raise HQError(f"{file} would not be the study that was asked for: report this.")


def _most_similar(model: str, scenario: str) -> "Study":
    """The packaged study of the same scenario and, if there are several, of the same model."""
    from harness.studies.study import Study, packaged_studies

    studies = [Study.load(name) for name in reversed(packaged_studies())]  # TriviaQA's first
    return max(studies, key=lambda s: (s.scenario.name == scenario, s.model == model))


def _name(text: str) -> str:
    from harness.studies.study import Study

    return Study.of({"name": text}, "the new study").name


def _model(text: str) -> str:
    """The model, if it is there or could be a hub id."""
    from difflib import get_close_matches

    from harness.models.packaged import PACKAGED
    from harness.scenarios.rows import is_hub_id
    from hq.gguf.file import GGUFFile
    from hq.models.checkpoint import resolve

    path = Path(text).expanduser()
    if text in PACKAGED:
        return text
    if path.suffix.lower() == ".gguf":
        GGUFFile(path)
    elif path.exists():
        resolve(text)
    elif not is_hub_id(text):
        near = get_close_matches(text, PACKAGED, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise HQError(
            f"There is no model {text!r}: {hint}name a checkpoint folder, a GGUF file, a hub id "
            f"(owner/name), or one of {', '.join(PACKAGED)}."
        )
    return text


def _precisions(text: str) -> tuple[str, ...]:
    from hq.precisions import BACKEND_OF

    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for precision in names:
        BACKEND_OF[precision]  # raises HQError if the name is unknown
    return names


def _scenario(text: str) -> str:
    from harness.scenarios.questions import reads_file

    reads_file(text)  # raises HQError if it has no questions
    return text


def _questions(scenario: str, text: str) -> str:
    """The question file, if the scenario can read its rows; empty if none is needed."""
    from harness.scenarios.questions import load_questions, needs_file, reads_file
    from harness.scenarios.rows import is_hub_id

    if not reads_file(scenario):
        raise HQError(f"The scenario {scenario!r} reads no file: leave --questions out.")
    if not text and needs_file(scenario):
        raise HQError(
            f"The scenario {scenario!r} needs a file of questions: name a .jsonl or .parquet file."
        )
    if text and not is_hub_id(text):
        found = load_questions(scenario, seed=0, source=text)
        err.print(f"{text} has {len(found):,} questions.", highlight=False, markup=False)
    return text


def _count(value: object) -> int:
    try:
        count = int(str(value))
    except ValueError as error:
        raise HQError(f"{value} is not a number: write a whole one, such as 300.") from error
    if count < 1:
        raise HQError(f"{value} pairs are too few: at least 1.")
    return count

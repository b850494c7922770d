"""`hq init` writes a study file that explains itself and loads as what was asked for."""

import io
import itertools
import json
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.studies.section import Section
from harness.studies.study import Study, packaged_studies
from harness.studies.study_file import study_text
from tests.harness.test_bad_input import is_one_sentence

ROWS = [{"question": f"Who is {n}?", "answer": f"Name {n}"} for n in range(3)]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "my questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


class Terminal(io.StringIO):
    """What somebody types on a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def typed(monkeypatch):
    def lines(*texts):
        monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{text}\n" for text in texts)))

    return lines


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.mark.parametrize("name", packaged_studies())
def test_the_text_of_a_study_loads_as_the_study(name):
    study = Study.load(name)
    values = tomllib.loads(study_text(study))
    assert Study.of(values, "the text") == study


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    model=TEXT,
    options=st.dictionaries(TEXT, TEXT | st.booleans() | st.integers(-(2**62), 2**62)),
    shots=st.lists(st.tuples(TEXT, TEXT)),
    section=st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False)),
)
def test_any_value_survives(model, options, shots, section):
    study = Study.of(
        {
            "model": model,
            "scenario": {"options": options},
            "prompt": {"shots": shots},
            "sections": {"sweep": section},
        },
        "x",
    )
    assert Study.of(tomllib.loads(study_text(study)), "the text") == study


def test_every_key_is_explained_and_every_default_is_right():
    """Without the # in front of keys, the file sets each of them to its default."""
    lines = study_text(Study()).splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("#") and not line.startswith("# "):
            assert before.startswith("# "), line
    values = tomllib.loads(
        "\n".join(line[1:] if line[:1] == "#" and line[:2] != "# " else line for line in lines)
    )
    assert values.pop("device") == "cpu"  # there is no TOML for the default, none
    assert values.keys() == Study.model_fields.keys() - {"device", "sections"}
    assert Study.of(values, "the text") == Study()
    for section in (Study(), *dict(Study()).values()):
        if isinstance(section, Section):
            for name, field in type(section).model_fields.items():
                assert field.description or isinstance(getattr(section, name), Section), name


def test_without_options_it_is_like_the_packaged_study(hq, tmp_path):
    outcome = hq("init", "my-study.toml", "--scenario", "knowledge")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == ["hq plan my-study.toml", "hq run my-study.toml"]
    packaged = Study.load("smollm2-knowledge")
    assert Study.load("my-study.toml") == packaged.model_copy(
        update={"name": "my-study", "sections": {}}
    )


def test_every_option(hq, questions, checkpoint):
    model = checkpoint("llama")
    outcome = hq(
        *("init", "new folder/x.toml", "--name", "y.1", "--model", model),
        *("--precisions", "nf4, gguf-q4_k_m+fa", "--scenario", "triviaqa"),
        *("--questions", questions, "--pairs", 7),
    )
    assert outcome.code == 0, outcome.err
    assert "has 3 questions" in outcome.err
    assert 'hq run "new folder/x.toml"' in outcome.out
    study = Study.load("new folder/x.toml")
    assert (study.name, study.model, study.sampling.quota) == ("y.1", str(model), 7)
    assert study.precisions == ("fp16", "nf4", "gguf-q4_k_m+fa")
    assert study.scenario.options == {"source": str(questions)}
    assert study.sampling.balance == "text"  # as in the packaged study of TriviaQA


def test_a_model_may_be_on_the_hub_or_a_gguf_file(hq, gguf):
    for name, model in (("a", "owner/model"), ("b", gguf("llama"))):
        assert hq("init", f"{name}.toml", "--scenario", "facts", "--model", model).code == 0
        assert Study.load(f"{name}.toml").model == str(model)


def test_an_existing_file_stays(hq, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("mine", encoding="utf-8")
    is_one_sentence(hq("init", path, "--scenario", "facts"), "never overwrites")
    assert path.read_text(encoding="utf-8") == "mine"


WRONG = {
    "a precision": (("--precisions", "fp16,nf5"), "did you mean 'nf4'"),
    "a suffix": (("--precisions", "nf4+fa"), "only GGUF precisions"),
    "a model": (("--model", "smollm"), "did you mean 'smollm2'"),
    "a folder without a model": (("--model", "."), "no config.json"),
    "a missing GGUF file": (("--model", "no.gguf"), "no.gguf"),
    "a scenario": (("--scenario", "knowlege"), "did you mean 'knowledge'"),
    "a scenario without questions": (("--scenario", "falseqa"), "no questions with short answers"),
    "a missing question file": (("--scenario", "nq", "--questions", "no.jsonl"), "no.jsonl"),
    "no question file": (("--scenario", "bioasq"), "needs a file"),
    "a file that is not read": (("--questions", "x.jsonl"), "reads no file"),
    "a name": (("--name", "My Study"), "name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_option_is_one_sentence(case, hq, tmp_path):
    options, words = WRONG[case]
    scenario = () if "--scenario" in options else ("--scenario", "facts")
    is_one_sentence(hq("init", "study.toml", *scenario, *options), words)
    assert not list(tmp_path.glob("*study.toml*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no terminal to ask on, and FILE and --scenario"),
        (("x.toml",), "and --scenario must be given"),
        (("--scenario", "facts"), "and FILE must be given"),
        (("x", "--scenario", "facts"), "name it x.toml"),
    ],
)
def test_without_a_terminal_it_says_what_is_missing(arguments, words, hq, tmp_path):
    is_one_sentence(hq("init", *arguments), words)
    assert not list(tmp_path.glob("*.toml"))


def test_on_a_terminal_it_asks_until_the_answer_is_valid(hq, typed, questions):
    typed(
        *("My Study", "mine"),  # name
        "",  # model
        *("fp16,nf5", "fp16,int8"),
        *("falseqa", "bioasq"),
        *("no.jsonl", questions),
        *("0", "many", "12"),
    )
    outcome = hq("init")
    assert outcome.code == 0, outcome.err
    assert "did you mean 'nf4'" in outcome.out + outcome.err
    study = Study.load("mine.toml")
    assert (study.name, study.model, study.precisions) == ("mine", "smollm2", ("fp16", "int8"))
    assert study.scenario.name == "bioasq"
    assert study.scenario.options == {"source": str(questions)}
    assert study.sampling.quota == 12


def test_on_a_terminal_options_are_not_asked(hq, typed):
    typed("", "")  # model, precisions
    assert hq("init", "a.toml", "--scenario", "facts", "--pairs", "5").code == 0
    assert Study.load("a.toml").sampling.quota == 5

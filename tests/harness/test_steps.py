"""Experiment steps: composition, labels, files of solutions, scores, and the tiny study."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from harness.check.acceptance import accept
from harness.check.regress import compare
from harness.experiments import EXPERIMENTS
from harness.experiments.steps.answers import (
    ALL_RIGHT,
    StepLabels,
    SteppedAnswer,
    first_wrong,
    split_sentences,
)
from harness.experiments.steps.chains import SHOTS, Chain, Hop, by_relation, chosen, compose, hops
from harness.experiments.steps.problems import read_problems
from harness.experiments.steps.relations import RELATIONS
from harness.experiments.steps.rows import StepsAnalysis
from harness.experiments.steps.scores import centred, fit_of, held_out_folds
from harness.judges.base import Question
from harness.judges.text import contains, normalise
from harness.scenarios.knowledge.questions import relations as knowledge
from harness.stages import readings
from harness.tables.files import read_table, write_tables
from hq.errors import HQError
from hq.stats.auroc import auroc


@pytest.fixture(scope="module")
def every():
    return compose(0)


# --- composition


def test_subjects_are_those_of_the_relation_files():
    relations = knowledge()
    read = [name for name in RELATIONS if name in relations]
    assert len(read) > 60
    for name in read:
        expected = {(fact.key, fact.aliases[0]) for fact in relations[name].facts}
        assert {(hop.subject, hop.answer) for hop in hops()[name]} == expected


@pytest.mark.parametrize(
    ("relation", "subject", "answer"),
    [
        ("capital", "Zimbabwe", "Harare"),
        ("capital", "the Netherlands", "Amsterdam"),
        ("symbol", "hydrogen", "H"),
        ("atomic_number_of", "79", "gold"),
        ("domain_of", ".zw", "Zimbabwe"),
        ("province_of", "KwaZulu-Natal", "South Africa"),
    ],
)
def test_subjects_of_facts_are_what_differs_between_wordings(relation, subject, answer):
    assert (subject, answer) in {(hop.subject, hop.answer) for hop in hops()[relation]}


def test_every_join_is_the_right_answer_and_the_only_subject_of_its_name(every):
    assert len(every) > 5_000
    assert len(by_relation(every)) > 80
    for chain in every:
        join = normalise(chain.second.subject)
        assert normalise(chain.first.answer) == join
        assert RELATIONS[chain.first.relation].answer == RELATIONS[chain.second.relation].subject
        same = [hop for hop in hops()[chain.second.relation] if normalise(hop.subject) == join]
        assert same == [chain.second]


def test_no_question_tells_its_join_or_has_two_answers(every):
    wordings = [normalise(chain.question) for chain in every]
    assert len(set(wordings)) == len(every)
    for chain in every:
        subject = normalise(chain.first.subject)
        assert not contains(subject, normalise(chain.second.subject))
        assert not contains(subject, normalise(chain.second.answer))


def test_relations_have_one_phrase_each_that_takes_a_subject():
    kinds = {relation.answer for relation in RELATIONS.values()}
    for relation in RELATIONS.values():
        assert relation.phrase.count("{}") == 1
        assert relation.subject in kinds or relation.subject in ("-", "empire")


def test_a_composed_question_names_the_first_answer_by_its_own_question():
    chain = next(c for c in compose(0) if c.first.subject == "Aida")
    expected = "What is the home country of the composer of the opera Aida?"
    assert chain.question == expected
    assert chain.id == "opera_composer:Aida > composer_country"
    assert (chain.first.answer, chain.second.answer) == ("Giuseppe Verdi", "Italy")


def test_the_choice_is_reproducible_and_repeats_no_name_often(every):
    asked = chosen(every, 400, 0)
    assert [c.id for c in asked] == [c.id for c in chosen(every, 400, 0)]
    assert [c.id for c in asked] != [c.id for c in chosen(every, 400, 1)]
    assert len(asked) == 400
    assert len(by_relation(asked)) > 60
    for position, limit in enumerate((2, 3, 4)):
        names = [chain.entities[position] for chain in asked]
        assert max(map(names.count, names)) <= limit
    shown = normalise(" ".join(text for shot in SHOTS for text in shot))
    assert not any(contains(shown, name) for chain in asked for name in chain.names)


# --- labels


def hop(relation, subject, *aliases):
    question = Question(f"{relation}:{subject}", f"{subject}?", aliases, relation, ())
    return Hop(subject, question)


FIRST = hop("mountain_country", "Aconcagua", "Argentina", "Argentine Republic")
CAPITALS = [
    hop("capital", "Argentina", "Buenos Aires"),
    hop("capital", "Peru", "Lima"),
    hop("capital", "United States", "Washington", "Washington, D.C."),
]
OTHERS = [hop("dish_country", "burger", "United States", "USA", "America")]
CHAIN = Chain(FIRST, CAPITALS[0])
LABELS = StepLabels([FIRST, *CAPITALS, *OTHERS])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (" Argentina", " Buenos Aires", ("right", "right", ALL_RIGHT)),
        (" the Argentine Republic", " Buenos Aires", ("right", "right", ALL_RIGHT)),
        (" Argentina", " Lima", ("right", "wrong", 1)),
        (" Peru", " Lima", ("wrong", "right", 0)),  # the right capital of the wrong country
        (" Peru", " Buenos Aires", ("wrong", "wrong", 0)),  # right of the chain, wrong of Peru
        (" the USA", " Washington", ("wrong", "right", 0)),  # a spelling of another relation
        (" Atlantis", " Buenos Aires", ("wrong", "unknown", 0)),
        (" I don't know", " Lima", ("unknown", "unknown", None)),
        (" Argentina", " I don't know", ("right", "unknown", None)),
    ],
)
def test_the_second_step_is_judged_given_the_first(first, second, expected):
    labels = (LABELS.first(CHAIN, first, False), LABELS.second(CHAIN, first.strip(), second, False))
    assert (*labels, first_wrong(labels)) == expected


def test_a_name_that_two_answers_share_asks_no_question():
    others = [hop("dish_country", "x", "Peru", "UK"), hop("dish_country", "y", "Argentina", "UK")]
    labels = StepLabels([FIRST, *CAPITALS, *others])
    assert labels.second(CHAIN, "UK", " Lima", False) == "unknown"


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", " Two!", " Three?"]),
        (
            "By J. K. Rowling, e.g. in 1.5 books. Yes.",
            ["By J. K. Rowling, e.g. in 1.5 books.", " Yes."],
        ),
        ('He said "no." Then left.\nEnd', ['He said "no."', " Then left.", "\nEnd"]),
        (" Step 1: x is 2.", [" Step 1: x is 2."]),
        ("No end", ["No end"]),
    ],
)
def test_sentences_are_split_and_join_to_the_text(text, sentences):
    assert split_sentences(text) == sentences
    assert "".join(sentences) == text


# --- files of solutions


def solution(**changes):
    values = {"id": "a", "problem": "1 + 1?", "steps": ["one", "two"], "label": 1, "generator": "m"}
    return {key: value for key, value in (values | changes).items() if value is not None}


def test_solutions_are_read_with_other_keys_ignored(tmp_path):
    path = tmp_path / "solutions.jsonl"
    lines = [solution(), solution(id="b", label=-1)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    read = read_problems(path)
    assert [(p.id, p.steps, p.label) for p in read] == [
        ("a", ("one", "two"), 1),
        ("b", ("one", "two"), -1),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        (solution(id="b", steps=None), "line 2, steps: Field required; a line has id, problem"),
        (solution(id="b", label=None), "line 2, label: Field required"),
        (solution(id="b", label=2), "the label 2 is not the index of one of 2 steps"),
        (solution(id="b", label=-2), "line 2, label: Input should be greater than or equal to -1"),
        (solution(id="b", steps=[]), "line 2, steps: is empty"),
        (solution(id="b", steps=["one", " "]), "line 2, steps.1: is empty"),
        (solution(id="b", problem=""), "line 2, problem: is empty"),
        (solution(), "line 2: the id 'a' occurs twice"),
    ],
)
def test_unusable_lines_are_named(tmp_path, line, message):
    path = tmp_path / "solutions.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_text(json.dumps(solution()) + "\n" + text + "\n", encoding="utf-8")
    with pytest.raises(HQError, match=message):
        read_problems(path)


def test_solutions_without_a_wrong_step_and_missing_files_are_rejected(tmp_path):
    path = tmp_path / "solutions.jsonl"
    path.write_text(json.dumps(solution(label=-1)), encoding="utf-8")
    with pytest.raises(HQError, match="none with a wrong step"):
        read_problems(path)
    with pytest.raises(HQError, match="cannot be read"):
        read_problems(tmp_path / "nowhere.jsonl")


# --- scores and rows


def stepped(i, labels, names=(), known=()):
    steps = [
        {
            "text": f"t{i}",
            "asked": f"asked {k}",
            "answer": f"word{i % 7}",
            "label": label,
            "tokens": (3 * k, 3 * k + 3),
            "answer_tokens": (3 * k + 2, 3 * k + 3),
            "sentences": ((3 * k, 3 * k + 3),),
            "names": (f"n{i}", f"s{i}-{k}"),
        }
        for k, label in enumerate(labels)
    ]
    return SteppedAnswer(
        id=f"a{i}",
        relation="r > s",
        question=f"q{i}",
        prompt_ids=(1,),
        response_ids=tuple(range(6)),
        steps=steps,
        first_wrong=first_wrong(labels),
        names=names or (f"n{i}",),
        known=known,
    )


def test_a_probe_scores_no_answer_whose_names_it_has_seen():
    def sample(id, answer, fold):
        return SimpleNamespace(id=id, answer=answer, fold=fold)

    samples = [sample("q:1", "paris", 0), sample("q:2", "lima", 1), sample("q:3", "rome", 2)]
    questions = [Question("q:2", "", ("x",), "q", ("subject:peru",))]
    known = [("paris",), ("peru", "oslo"), ("q:3", "paris"), ("paris", "lima", "rome"), ("oslo",)]
    answers = [stepped(i, ("right", "right"), known=names) for i, names in enumerate(known)]
    folds = held_out_folds(answers, samples, questions)
    assert folds == [{0}, {1}, {0, 2}, {0, 1, 2}, set()]
    assert [fit_of(of) for of in folds] == [(0,), (1,), (0, 2), None, ()]


def test_levels_are_of_other_folds_and_of_the_same_step_number():
    scores = [np.array([float(i), 100.0 + i]) for i in range(40)]
    folds = np.arange(40) % 2
    levelled = centred(scores, folds)
    others = [s for s, f in zip(scores, folds, strict=True) if f == 1]
    for k in range(2):
        level = np.mean([s[k] for s in others])
        assert levelled[0][k] == pytest.approx(scores[0][k] - level)


class Scores:
    """Scores of one span, for an analysis."""

    def __init__(self, probe, noise):
        self.values = {"probe": probe, "entropy": noise}

    def of(self, span):
        return self.values


@pytest.fixture(scope="module")
def analysed():
    """300 answers; the probe sees the label of a step, entropy is noise."""
    rng = np.random.default_rng(0)
    kinds = [("wrong", "right"), ("wrong", "unknown"), ("right", "wrong"), ("right", "right")]
    answers = [
        stepped(i, kinds[rng.integers(4)], names=(f"n{i}", f"shared{i // 2}")) for i in range(300)
    ]
    wrong = [np.array([step.label == "wrong" for step in a.steps], float) for a in answers]
    probe = [of + rng.normal(0, 0.5, 2) + [0, 5] for of in wrong]
    noise = [rng.normal(0, 1, 2) for _ in answers]
    return StepsAnalysis(answers, 5, True), Scores(probe, noise), wrong


def test_detection_compares_steps_of_one_number(analysed):
    analysis, scores, _ = analysed
    rows = {(row.span, row.step, row.scorer): row for row in analysis.detection("fp16", scores)}
    assert {key[0] for key in rows} == {"answer", "step"}
    for step in (1, 2):
        labels = [a.steps[step - 1].label for a in analysis.answers]
        known = [i for i, label in enumerate(labels) if label != "unknown"]
        expected = auroc(
            [scores.values["probe"][i][step - 1] for i in known],
            [labels[i] == "wrong" for i in known],
        )
        row = rows["answer", str(step), "probe"]
        assert row.auroc.value == pytest.approx(expected)
        assert (row.n, row.wrong) == (len(known), labels.count("wrong"))
    assert rows["step", "all", "probe"].auroc.value > 0.85  # the level of step 2 adds nothing
    assert abs(rows["step", "all", "entropy"].auroc.value - 0.5) < 0.1
    gain = rows["step", "all", "entropy"].gain
    difference = (
        rows["step", "all", "probe"].auroc.value - rows["step", "all", "entropy"].auroc.value
    )
    assert gain.value == pytest.approx(difference)
    assert {row.units for key, row in rows.items() if key[1] == "1"} == {300}


def test_localisation_agrees_with_counts(analysed):
    analysis, scores, _ = analysed
    assert len(np.unique(analysis.units)) == 150
    rows = {(row.span, row.rule, row.scorer): row for row in analysis.localisation("fp16", scores)}
    truth = np.array([a.first_wrong for a in analysis.answers])
    levelled = centred(scores.values["probe"], analysis.fold)
    hits = [int(np.argmax(of)) == t for of, t in zip(levelled, truth, strict=True) if t >= 0]
    row = rows["step", "highest", "probe"]
    assert row.wrong.value == pytest.approx(np.mean(hits))
    assert (row.n_wrong, row.n_right) == (len(hits), 0)
    assert rows["step", "highest", "chance"].wrong.value == pytest.approx(0.5)
    first = (truth[truth >= 0] == 0).mean()
    assert rows["step", "highest", "position"].wrong.value == pytest.approx(first)
    only = [
        i
        for i, answer in enumerate(analysis.answers)
        if sorted(step.label for step in answer.steps) == ["right", "wrong"]
    ]
    row = rows["step", "only wrong", "probe"]
    assert row.n_wrong == len(only)
    expected = [int(np.argmax(levelled[i])) == truth[i] for i in only]
    assert row.wrong.value == pytest.approx(np.mean(expected))
    alarm = rows["step", "first alarm", "probe"]
    a, b = alarm.wrong.value, alarm.right.value
    assert alarm.f1.value == pytest.approx(2 * a * b / (a + b))
    assert alarm.f1.value > rows["step", "first alarm", "entropy"].f1.value + 0.2
    gain = rows["step", "first alarm", "entropy"].gain
    assert gain.value == pytest.approx(
        alarm.f1.value - rows["step", "first alarm", "entropy"].f1.value
    )
    chance = rows["step", "first alarm", "chance"]
    shares = np.array([(truth == k).mean() for k in (0, 1)])
    expected = (shares**2).sum() / shares.sum()
    assert chance.wrong.value == pytest.approx(expected, abs=0.05)


def test_a_threshold_is_chosen_without_the_answers_it_is_used_on(analysed):
    analysis, scores, _ = analysed
    hits = analysis._hits(scores.values["probe"], "first alarm")
    here = np.flatnonzero(analysis.fold == 0)
    changed = list(analysis.answers)
    for i in here.tolist():
        changed[i] = changed[i].model_copy(update={"first_wrong": ALL_RIGHT})
    other = replace(analysis, answers=changed)
    again = other._hits(scores.values["probe"], "first alarm")
    alarms = hits[here][analysis.first_wrong[here] == ALL_RIGHT]
    assert (again[here][analysis.first_wrong[here] == ALL_RIGHT] == alarms).all()


def test_answers_of_one_kind_are_counted_and_explained():
    answers = [stepped(i, ("wrong", "right")) for i in range(12)]
    analysis = StepsAnalysis(answers, 3, True)
    row = analysis.counts("x", 10, 12, 0, 0)
    assert (row.first_right, row.all_right, row.first_wrong_later) == (0, 0, 0)
    assert (row.right_after_wrong, row.wrong_after_wrong) == (12, 0)
    assert "answers without a wrong step are in 0 units, fewer than 50" in row.note
    flat = [np.array([1.0, 0.0])] * 12
    detected = analysis.detection("fp16", Scores(flat, flat))
    assert {row.auroc for row in detected if row.step == "1"} == {None}
    assert all("0 right and 12 wrong steps" in row.note for row in detected if row.step == "1")
    located = analysis.localisation("fp16", Scores(flat, flat))
    assert all(row.right is None and row.f1 is None for row in located)


# --- tolerances


def written(folder, analysis, scores):
    """Write the tables of a run on the same samples as every other run here."""
    tables = {
        "answers": [analysis.counts("x", 10, 300, 0, 0)],
        "pairs": analysis.pairs({"r > s": 10}),
        "detection": analysis.detection("fp16", scores),
        "localisation": analysis.localisation("fp16", scores),
    }
    definition = {"precisions": ["fp16"]}
    facts = {
        "kind": "steps",
        "study": "s",
        "fingerprint": "f",
        "definition": definition,
        "nodes": {},
    }
    write_tables(folder, EXPERIMENTS["steps"].tables, tables, facts)
    neurons = json.dumps({"provenance": {"samples": "0123456789abcdef"}})
    (folder / "neurons.json").write_text(neurons, encoding="utf-8")
    return folder


def regressed(run, committed):
    return {(d.table, d.column) for d in compare(run, committed) if d.regressed}


def test_faults_turn_each_compared_column_red_and_rounding_none(analysed, tmp_path):
    analysis, scores, _ = analysed
    committed = tmp_path / "committed"
    accept(written(tmp_path / "run", analysis, scores), committed)
    probe, noise = scores.values["probe"], scores.values["entropy"]
    rng = np.random.default_rng(1)
    rounded = [of * (1 + 1e-4 * rng.normal(size=2)) for of in probe]
    assert regressed(written(tmp_path / "a", analysis, Scores(rounded, noise)), committed) == set()
    next_answer = Scores(probe[1:] + probe[:1], noise)
    red = regressed(written(tmp_path / "b", analysis, next_answer), committed)
    assert red == {("detection", "auroc"), ("localisation", "wrong")}
    fewer = StepsAnalysis(analysis.answers[:290], 5, True)
    lost = written(tmp_path / "c", fewer, Scores(probe[:290], noise[:290]))
    assert ("detection", "n") in regressed(lost, committed)


# --- the tiny study


@pytest.fixture
def stages(finished, tmp_path):
    shutil.copytree(finished / "cache", tmp_path / "cache")


def solutions(path, n=24):
    texts = ["x is 3", "so y is 5. Then z", "the sum is 8"]
    lines = [
        solution(
            id=f"p{i}",
            problem=f"problem {i} of the file?",
            steps=texts[: 1 + i % 3],
            label=(i % (1 + i % 3)) if i % 2 else -1,
        )
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.usefixtures("stages")
def test_steps_of_a_file_leave_their_tables(hq, tiny_study, tmp_path):
    path = solutions(tmp_path / "solutions.jsonl")
    options = ("run", tiny_study, "-e", "steps", "--set", f"steps.source={path}", "--quiet")
    ran = hq(*options)
    assert ran.code == 0, ran.err
    assert "24 answers to solutions.jsonl" in ran.out
    run = tmp_path / "runs" / "tiny-steps"
    counts = read_table(run, "answers").row(0, named=True)
    assert (counts["asked"], counts["n"], counts["units"]) == (24, 24, 24)
    assert counts["all_right"] == 12
    assert read_table(run, "pairs").height == 0
    located = read_table(run, "localisation")
    assert set(located["span"]) == {"step", "sentence"}
    assert set(located["precision"]) == {"fp16", "nf4"}
    highest = located.filter((located["rule"] == "highest") & (located["span"] == "step"))
    chance = highest.filter(highest["scorer"] == "chance")["wrong"][0]
    wrong = [i for i in range(24) if i % 2]
    assert chance == pytest.approx(np.mean([1 / (1 + i % 3) for i in wrong]), abs=1e-5)
    lines = [
        json.loads(line)
        for line in (run / "step_scores.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(lines) == 48
    one = next(line for line in lines if len(line["steps"]) == 3)
    assert "".join(one["tokens"]) == " x is 3\nso y is 5. Then z\nthe sum is 8".replace(".", "")
    step = one["steps"][1]
    start, end = step["tokens"]
    assert step["probe"] == pytest.approx(np.mean(one["probe"][start:end]), abs=2e-4)
    assert len(step["sentences"]) == 2

    files = [
        "answers.csv",
        "detection.csv",
        "localisation.csv",
        "provenance.json",
        "step_scores.jsonl",
    ]
    before = {name: (run / name).read_bytes() for name in files}
    assert hq(*options).code == 0
    assert {name: (run / name).read_bytes() for name in files} == before
    assert hq("check", run, "--against", tmp_path / "results", "--accept").code == 0
    assert hq("check", run, "--against", tmp_path / "results").code == 0


@pytest.mark.usefixtures("stages")
def test_a_killed_reading_continues(hq, tiny_study, tmp_path, monkeypatch):
    path = solutions(tmp_path / "solutions.jsonl")
    precisions = ("--precisions", "fp16", "--set", f"steps.source={path}", "--quiet")
    options = ("run", tiny_study, "-e", "steps", *precisions)
    save, saved = readings._save, []

    def killed(folder, kind, number, **arrays):
        save(folder, kind, number, **arrays)
        saved.append(kind)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(readings, "_save", killed)
    assert hq(*options).code != 0
    assert saved == ["cett"]
    assert hq(*options).code == 0
    assert saved.count("cett") == 1  # 24 short texts are one batch
    scores = tmp_path / "runs" / "tiny-steps" / "step_scores.jsonl"
    before = scores.read_bytes()
    monkeypatch.setattr(readings, "_save", save)
    for folder in (tmp_path / "cache" / "store").glob("step-tokens-*"):
        if folder.is_dir():
            shutil.rmtree(folder)
    assert hq(*options).code == 0
    assert scores.read_bytes() == before


@pytest.mark.usefixtures("stages")
def test_two_hop_questions_are_answered_and_scored(hq, tiny_study, tmp_path):
    options = ("run", tiny_study, "-e", "steps", "--set", "steps.chains=40", "--quiet")
    ran = hq(*options)
    assert ran.code == 0, ran.err
    run = tmp_path / "runs" / "tiny-steps"
    counts = read_table(run, "answers").row(0, named=True)
    assert counts["asked"] == 40
    assert counts["n"] + counts["unclear"] + counts["seen"] == 40
    assert counts["all_right"] == 0  # random letters
    assert "fewer than 50" in counts["note"]
    assert set(read_table(run, "detection")["note"]) != {""}
    lines = [
        json.loads(line)
        for line in (run / "step_scores.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {len(line["steps"]) for line in lines} == {2}
    assert all(line["steps"][1]["tokens"][0] == line["steps"][0]["tokens"][1] for line in lines)


@pytest.mark.usefixtures("stages")
def test_what_cannot_be_used_is_said_before_the_first_node(hq, tiny_study, tmp_path):
    path = solutions(tmp_path / "few.jsonl", 2)
    for setting, message in (
        (f"steps.source={path}", "2 different problems, but thresholds are chosen in 3 folds"),
        ("steps.source=nowhere.jsonl", "cannot be read"),
        ("steps.chains=5", "steps"),
        ("identify.tokens=prompt", "set it to 'answer'"),
    ):
        ran = hq("run", tiny_study, "-e", "steps", "--set", setting, "--quiet")
        assert ran.code == 2, ran.out
        assert message in ran.err
    assert not (tmp_path / "runs").exists()

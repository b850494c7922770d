"""`hq sweep` on the tiny study: its tables, its log, kills, and what it refuses."""

import json
import shutil
import signal
import zlib
from pathlib import Path

import pytest

from harness.experiments.sweep.section import SweepSection
from harness.experiments.sweep.tables import TABLES
from harness.tables.files import read_table
from hq.errors import HQError
from tests.harness.judge_endpoint import Endpoint
from tests.harness.killing import Killer, needs_sigkill

FILES = [f"{name}.csv" for name in TABLES] + ["tables.md", "provenance.json"]
SMALL = ("--trials", "8", "--draws", "2", "--alphas", "0,1,3", "--quiet")


@pytest.fixture
def sources(tmp_path):
    """Files of two scenarios that a model of letters can be put to, as options."""
    rows = {
        "falseqa": [{"question": f"Why did {i} leave?", "false_premise": 1} for i in range(20)],
        "jailbreak": [{"prompt": f"Do {i}."} for i in range(20)],
    }
    options = ["--scenarios", "falseqa,jailbreak"]
    for name, lines in rows.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        options += ["--source", f"{name}={path}"]
    return options


@pytest.fixture
def few_shot(tiny_study, finished, tmp_path):
    """The tiny study with prompts for a model without a chat template, its stages done."""
    path = tmp_path / "study.toml"
    path.write_text(
        tiny_study.read_text(encoding="utf-8") + 'sweep = {form = "few-shot", questions = 16}\n',
        encoding="utf-8",
    )
    shutil.copytree(finished / "cache", tmp_path / "cache")
    return path


@pytest.fixture
def endpoint(monkeypatch):
    """An LLM judge that says what depends on the response, and its endpoint in the environment."""
    server = Endpoint()
    server.answer = _by_digest
    monkeypatch.setenv("HQ_JUDGE_URL", server.url)
    monkeypatch.setenv("HQ_JUDGE_MODEL", "stub-1")
    yield server
    server.close()


def _by_digest(message):
    """An outcome by the digest of the prompt; the second request is of no use."""
    if message.startswith("Reply with exactly one word"):
        return OUTCOMES[-1]
    return OUTCOMES[zlib.crc32(message.encode()) % 3]


OUTCOMES = ("COMPLIED", "RESISTED", "I cannot tell")
ONE = ("--precisions", "fp16", "--json")


def test_an_llm_judge_decides_the_outcomes_and_is_asked_once(hq, few_shot, sources, endpoint):
    by_rules = hq("sweep", few_shot, *sources, *SMALL, *ONE, "--into", "rules")
    assert by_rules.code == 0, by_rules.err
    assert not endpoint.requests
    command = ("sweep", few_shot, *sources, *SMALL, *ONE, "--judge", "llm", "--into", "llm")
    by_llm = hq(*command)
    assert by_llm.code == 0, by_llm.err
    rules, llm = (json.loads(ran.out) for ran in (by_rules, by_llm))
    assert {row["judge"] for row in rules["tables"]["slopes"]} == {"rules: not validated"}
    for name in ("rates", "slopes"):
        assert {row["judge"] for row in llm["tables"][name]} == {"llm:stub-1"}
    judges = llm["provenance"]["judges"]
    assert judges["falseqa"]["identity"] != judges["jailbreak"]["identity"]
    for name, facts in judges.items():
        assert facts["identity"].startswith("llm stub-1 at 127.0.0.1")
        node = llm["provenance"]["nodes"][f"judge fp16 {name}"]
        assert node["parameters"]["judge"] == facts["identity"]
        assert rules["provenance"]["judges"][name]["identity"].startswith("rules, version")

    prompts = [request["body"]["messages"][0]["content"] for request in endpoint.requests]
    assert all(request["body"]["temperature"] == 0 for request in endpoint.requests)
    assert any("accepts the question's false premise" in prompt for prompt in prompts)
    assert any("fulfils the request" in prompt for prompt in prompts)
    lines = Path("llm", "outputs.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        given = next((p for p in prompts if _is_about(p, row)), None)
        expected = endpoint.answer(given).lower() if given else "unclear"
        assert row["outcome"] == ("unclear" if "cannot" in expected else expected)

    unclear = sum(_by_digest(prompt) == OUTCOMES[-1] for prompt in set(prompts))
    assert sum(facts["unclear_replies"] for facts in judges.values()) == unclear > 0

    asked = len(endpoint.requests)
    assert hq(*command).code == 0
    shutil.rmtree("llm")
    judged = [path for path in Path("cache", "store").glob("judge-*") if path.is_dir()]
    assert len(judged) == 4  # two scenarios, two judges
    for folder in judged:
        shutil.rmtree(folder)
    again = hq(*command)
    assert json.loads(again.out)["tables"] == llm["tables"]
    assert len(endpoint.requests) == asked


def test_two_judges_are_compared_on_the_responses_of_a_sweep(hq, few_shot, sources, endpoint):
    section = few_shot.read_text(encoding="utf-8").replace(
        "sweep = {", f'sweep = {{scenarios = ["falseqa"], {FEW}, {_toml(sources)}, '
    )
    few_shot.write_text(section, encoding="utf-8")
    compared = hq("judge", "compare", few_shot, "--sweep", "--json")
    assert compared.code == 0, compared.err
    (result,) = json.loads(compared.out).values()
    assert result["first"].startswith("rules, version")
    assert result["second"].startswith("llm stub-1")
    assert result["questions"] == 8
    agreed = sum(n for pair, n in result["verdicts"].items() if len(set(pair.split(", "))) == 1)
    assert result["rate"]["value"] == pytest.approx(1 - agreed / result["responses"])
    assert result["labels_changed"] is None
    asked = len(endpoint.requests)
    shown = hq("judge", "compare", few_shot, "--sweep")
    assert f"{result['responses']} responses to 8 trials" in shown.out
    assert len(endpoint.requests) == asked


FEW = "trials = 8, draws = 2, alphas = [0, 1, 3]"


def _toml(sources):
    path = next(s.partition("=")[2] for s in sources if s.startswith("falseqa="))
    return f"sources = {{falseqa = {json.dumps(path)}}}"


def _is_about(prompt, row):
    return (
        f"Prompt: {json.dumps(row['prompt'])}\n" in prompt
        and f": {json.dumps(row['response'].strip(), ensure_ascii=False)}\n" in prompt
        and ("may end early" in prompt) == row["truncated"]
    )


def test_an_interrupted_judge_goes_on_and_asks_nothing_twice(hq, few_shot, sources, endpoint):
    command = ("sweep", few_shot, *sources, *SMALL, *ONE, "--judge", "llm")
    answer = endpoint.answer

    def fails_after_five(message):
        return answer(message) if len(endpoint.requests) <= 5 else '{"error": "gone"}'

    endpoint.answer = fails_after_five
    failed = hq(*command)
    assert failed.code == 2
    assert "OpenAI chat format" in failed.err
    answered = [request["body"] for request in endpoint.requests[:5]]
    endpoint.answer = answer
    del endpoint.requests[:]
    assert hq(*command).code == 0
    first = answered[0]["messages"]
    assert len(first) == 1
    assert first not in [request["body"]["messages"] for request in endpoint.requests]


@pytest.mark.parametrize(
    ("judge", "sentence"),
    [("llm", "HQ_JUDGE_URL and HQ_JUDGE_MODEL"), ("rule", "did you mean 'rules'")],
)
def test_a_judge_that_cannot_be_used_is_an_error_before_the_first_node(
    hq, tiny_study, sources, judge, sentence, monkeypatch, tmp_path
):
    for name in ("HQ_JUDGE_URL", "HQ_JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    ran = hq("sweep", tiny_study, *sources, *SMALL, "--judge", judge)
    assert ran.code == 2
    assert sentence in ran.err
    assert not list((tmp_path / "cache").rglob("log.jsonl"))


def test_a_sweep_leaves_its_tables(hq, few_shot, sources, tmp_path):
    ran = hq("sweep", few_shot, *sources, *SMALL, "--precisions", "fp16,nf4")
    assert ran.code == 0, ran.err
    assert "H-Neurons scaled by α" in ran.out
    assert "Judged by rules: not validated: falseqa, jailbreak:forbidden." in ran.out
    run = tmp_path / "runs" / "tiny-sweep"
    rates = read_table(run, "rates")
    assert rates.height == 2 * 2 * (3 + 3)
    at_one = rates.filter(rates["alpha"] == 1)
    assert (at_one["changed"] == 0).all()
    both = at_one.pivot("neurons", index=["precision", "scenario"], values="rate")
    assert (both["h"] == both["matched"]).all()  # nothing is scaled
    slopes = read_table(run, "slopes")
    assert slopes["precision"].to_list() == ["fp16", "fp16", "nf4", "nf4"]
    assert slopes.filter(slopes["precision"] == "fp16")["change"].to_list() == [0, 0]
    costs = read_table(run, "costs")
    assert costs["alpha"].to_list() == [0, 1, 3] * 2
    assert costs["perplexity"].n_unique() == 6
    outputs = [
        json.loads(line)
        for line in (run / "outputs.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(outputs) == 2 * 2 * 3 * 8
    assert {o["outcome"] for o in outputs} <= {"complied", "resisted", "unclear"}

    before = {name: (run / name).read_bytes() for name in FILES}
    assert hq("sweep", few_shot, *sources, *SMALL, "--precisions", "fp16,nf4").code == 0
    assert {name: (run / name).read_bytes() for name in FILES} == before
    assert hq("check", run, "--against", tmp_path / "results", "--accept").code == 0
    assert hq("check", run, "--against", tmp_path / "results").code == 0
    worse = (tmp_path / "results" / "slopes.csv").read_text(encoding="utf-8").splitlines()
    cells = worse[1].split(",")
    cells[worse[0].split(",").index("slope")] = "1"
    worse[1] = ",".join(cells)
    (tmp_path / "results" / "slopes.csv").write_text("\n".join(worse) + "\n", encoding="utf-8")
    checked = hq("check", run, "--against", tmp_path / "results")
    assert checked.code == 4
    assert "slope" in checked.out
    assert hq("check", tmp_path / "results", "--against", finished_study(tmp_path)).code == 6


def finished_study(folder):
    """A folder that holds another kind of run."""
    other = folder / "other"
    shutil.copytree(folder / "results", other)
    facts = json.loads((other / "provenance.json").read_text(encoding="utf-8"))
    (other / "provenance.json").write_text(json.dumps(facts | {"kind": "study"}), encoding="utf-8")
    return other


@needs_sigkill
def test_a_killed_sweep_goes_on_and_asks_nothing_twice(
    hq, few_shot, sources, tmp_path, monkeypatch
):
    """The same command after kill -9 leaves the same files as a run that was not killed."""
    command = ["sweep", str(few_shot), *sources, *SMALL, "--precisions", "fp16", "--into"]
    other, whole, killed = (tmp_path / name for name in ("other", "whole", "killed"))
    shutil.copytree(tmp_path / "cache", other)
    with Killer(tmp_path) as killer:
        code = killer.run("harness.stages.respond append", 4, *command, killed)
    assert code == -signal.SIGKILL
    assert not killed.exists()
    assert hq(*command, killed).code == 0
    monkeypatch.setenv("HQ_CACHE", str(other))
    assert hq(*command, whole).code == 0
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    logs = [
        sorted(path.read_text(encoding="utf-8").splitlines()) for path in _logs(tmp_path / "cache")
    ]
    assert any(logs)
    assert logs == [sorted(path.read_text(encoding="utf-8").splitlines()) for path in _logs(other)]


def _logs(cache):
    return sorted((cache / "store").glob("replies-*/log.jsonl"))


@pytest.mark.parametrize(
    ("alphas", "controls"),
    [
        ({}, (0, 1, 3)),
        ({"alphas": (2, 0, 1, 0.5)}, (0, 1, 2)),
        ({"alphas": (1, 2, 4, 8)}, (1, 2, 4, 8)),
        ({"alphas": (0, 0.5, 1, 2), "control_alphas": (0, 0.5, 1)}, (0, 0.5, 1)),
    ],
)
def test_controls_follow_the_alphas(alphas, controls):
    assert SweepSection.of(alphas, "the options").control_alphas == controls


def test_controls_at_an_alpha_that_is_not_swept_are_refused():
    with pytest.raises(HQError, match="3 is not among alphas"):
        SweepSection.of({"alphas": (0, 1, 2), "control_alphas": (0, 1, 3)}, "the options")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--scenarios", "falsqa"), "did you mean 'falseqa'"),
        (("--alphas", "0,0.5"), "1 among them"),
        (("--alphas", "0,1,nan"), "alphas"),
        (("--alphas", "-1,1,2"), "alphas"),
        (("--alphas", "0,1,two"), "alphas"),
        (("--source", "falseqa"), "write SCENARIO=FILE"),
        (
            ("--source", "falseqa=none.jsonl", "--scenarios", "falseqa"),
            "There is no file none.jsonl",
        ),
        (("--precisions", "nf5"), "did you mean 'nf4'"),
    ],
)
def test_bad_options_are_one_sentence(hq, few_shot, options, sentence):
    refused = hq("sweep", few_shot, "--quiet", *options)
    assert refused.code == 2
    assert sentence in refused.err
    assert "Traceback" not in refused.err


def test_a_dry_run_says_how_many_and_how_long(hq, few_shot, sources, tmp_path):
    said = hq("sweep", few_shot, *sources, *SMALL, "--precisions", "fp16,nf4", "--dry-run")
    assert said.code == 0, said.err
    # 16 trials × (3 α + 2 draws × 2 α), and 16 questions × 3 α, at each precision
    assert f"{2 * (16 * 7 + 16 * 3)} responses" in said.out
    assert "minutes" in said.out
    assert not (tmp_path / "runs").exists()


def test_trials_are_questions_with_mixed_responses_and_no_samples(
    hq, few_shot, tiny_study, tmp_path
):
    """Of the study's own questions: the mixed ones come first, and no relative of a sample."""
    command = ("sweep", few_shot, "--scenarios", "triviaqa", *SMALL, "--json")
    ran = hq(*command, "--trials", "400", "--precisions", "fp16", "--into", "all")
    assert ran.code == 0, ran.err
    (slope,) = json.loads(ran.out)["tables"]["slopes"]
    records, samples = (
        {row["id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
        for pattern in ("sample-*/responses.jsonl", "samples-*/samples.jsonl")
        for path in (tmp_path / "cache" / "store").glob(pattern)
    )
    mixed = {
        id
        for id, record in records.items()
        if {"right", "wrong"} <= {response["verdict"] for response in record["responses"]}
    }
    asked = trials_of(Path("all"))
    rows = (tiny_study.parent / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    aliases = {f"triviaqa:{row['id']}": row["aliases"][0].lower() for row in map(json.loads, rows)}
    of_samples = {aliases[id] for id in samples}
    related = {id for id in records if aliases[id] in of_samples}
    assert samples.keys() <= related
    assert asked == records.keys() - related
    assert 0 < slope["mixed"] == len(mixed & asked) < slope["n"] == len(asked)

    few = hq(*command, "--precisions", "fp16,nf4", "--into", "few")
    assert few.code == 0, few.err
    n = min(8, slope["mixed"])
    counts = [(row["n"], row["mixed"]) for row in json.loads(few.out)["tables"]["slopes"]]
    assert counts == [(8, n), (8, n)]
    assert len(trials_of(Path("few")) & mixed) == n


def trials_of(run):
    """The ids of a sweep's trials, which are the same at every precision."""
    rows = map(json.loads, (run / "outputs.jsonl").read_text(encoding="utf-8").splitlines())
    ids = {}
    for row in rows:
        ids.setdefault(row["precision"], set()).add(row["id"])
    (trials,) = {frozenset(of_precision) for of_precision in ids.values()}
    return trials

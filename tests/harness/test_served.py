"""`--sampler openai --endpoint`: a local server of the tiny model, which is made to fail."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from harness.endpoints import client
from harness.judges.base import Verdict
from harness.stages.materials import Materials
from harness.stages.sample import QuestionRecord
from harness.store.jsonl import parse
from harness.studies.study import REFERENCE, Study
from hq.errors import HQError
from tests.harness.completion_endpoint import NAME, CompletionEndpoint
from tests.harness.killing import Killer, needs_sigkill

TEMPERATURE = 0.02  # of the tiny study


@pytest.fixture(scope="module")
def decoding(tiny_study):
    with Materials(Study.load(str(tiny_study))) as m:
        yield m.models.open(REFERENCE).decoding(), m.tokenizer, m.stop_criteria.tokens


@pytest.fixture
def endpoint(decoding, monkeypatch):
    monkeypatch.setattr(client, "MAX_WAIT_S", 0.0)
    server = CompletionEndpoint(*decoding)
    server.temperature = TEMPERATURE
    yield server
    server.close()


@pytest.fixture
def export(hq, tiny_study, endpoint):
    """Samples the responses to a few questions, and returns what the command printed."""

    def call(*options, quota=5):
        return hq(
            *("responses", "export", tiny_study, "--into", "responses.jsonl.gz"),
            *("--sampler", "openai", "--endpoint", endpoint.url, "--quiet"),
            *("--set", f"sampling.quota={quota}", *options),
        )

    return call


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("harness.stages.sample.CHUNK", 30)


def records() -> list[QuestionRecord]:
    (file,) = Path("cache/store").glob("served-[0-9a-f]*/responses.jsonl")
    return parse(file.read_text(encoding="utf-8"), QuestionRecord)


def served() -> dict:
    (file,) = Path("cache/store").glob("served-[0-9a-f]*/servers.json")
    return json.loads(file.read_text(encoding="utf-8"))


def logged() -> list[dict]:
    (file,) = Path("cache/store").glob("served-responses-*/log.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_responses_are_what_the_server_sampled(export, endpoint):
    outcome = export()
    assert outcome.code == 0, outcome
    facts = served()
    (server,) = facts["servers"]
    assert (server["model"], server["prompt"], server["ids"]) == (NAME, "token ids", "token_ids")
    assert (server["choices"], server["seeds"]) == (3, "repeat responses")
    assert server["tokenizer"] == "token ids of /tokenize"
    assert (facts["retokenised"], facts["unreadable"]) == (0, 0)
    found = records()
    assert facts["responses"] == 3 * len(found) == 3 * len(endpoint.requests)
    seeds = {request["seed"] for request in endpoint.requests}
    assert len(seeds) == len(endpoint.requests)
    assert {record.hallucinated for record in found} >= {True, False}
    for request in endpoint.requests:
        (record,) = [r for r in found if list(r.prompt) == request["prompt"]]
        choices = endpoint.completion(request)["choices"]
        texts = [choice["text"] for choice in choices]
        assert {r.text: r.count for r in record.responses} == {t: texts.count(t) for t in texts}
        assert {r.ids for r in record.responses} == {tuple(c["token_ids"]) for c in choices}


def test_a_server_that_reads_and_returns_text_gives_equal_texts(export, endpoint, hq, tmp_path):
    assert export().code == 0
    whole = {r.id: {(s.text, s.count) for s in r.responses} for r in records()}
    shutil.rmtree("cache")
    endpoint.reads_ids = endpoint.returns_ids = endpoint.tokenizes = False
    endpoint.rejects = frozenset({"return_token_ids", "stop_token_ids", "min_p"})
    assert export().code == 0
    facts = served()
    (server,) = facts["servers"]
    assert (server["prompt"], server["ids"]) == ("text", "none")
    assert server["tokenizer"] == "numbers of prompt tokens"
    assert set(server["rejected"]) == endpoint.rejects
    assert set(server["fields"]) == {"repetition_penalty"}
    words = sum(s.count for r in records() for s in r.responses if s.ids)
    assert facts["retokenised"] == words > 0
    assert {r.id: {(s.text, s.count) for s in r.responses} for r in records()} == whole


@pytest.mark.parametrize(("most", "ignores", "choices"), [(2, (), 2), (1, (), 1), (64, ("n",), 1)])
def test_more_requests_are_sent_if_one_does_not_give_all_responses(
    most, ignores, choices, export, endpoint
):
    endpoint.most, endpoint.ignores = most, frozenset(ignores)
    assert export().code == 0
    assert served()["servers"][0]["choices"] == choices
    found = records()
    asked = {json.dumps(request["prompt"]) for request in endpoint.requests}
    assert len(asked) == len(found) < len(endpoint.requests)
    # Nothing more is asked of a question whose responses differ.
    alike = ({Verdict.RIGHT}, {Verdict.WRONG})
    for record in found:
        assert record.complete or {r.verdict for r in record.responses} not in alike
    assert len({(json.dumps(r["prompt"]), r["seed"]) for r in endpoint.requests}) == len(
        endpoint.requests
    )


def test_greedy_responses_are_asked_for_once(export, endpoint):
    endpoint.temperature = 0
    assert export("--set", "sampling.temperature=0").code == 0
    assert all(request["n"] == 1 for request in endpoint.requests)
    assert len(endpoint.requests) == len(records())
    assert all(r.complete and len(r.responses) == 1 for r in records())
    assert served()["servers"][0]["seeds"] == "not tried: greedy"


@pytest.mark.parametrize("fault", ["429", "500", "truncated", "lost", "not JSON"])
def test_faults_that_pass_change_no_response(fault, export, endpoint):
    assert export("--concurrency", 1).code == 0
    whole = {record.id: record for record in records()}
    shutil.rmtree("cache")
    endpoint.requests.clear()
    endpoint.faults, endpoint.headers = {3: fault, 4: fault}, {"Retry-After": "0"}
    assert export("--concurrency", 4).code == 0
    assert {record.id: record for record in records()} == whole
    assert len(endpoint.requests) == len(whole) + 2


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("404", "HTTP 404: the model was unloaded"),
        ("500", "HTTP 500: out of memory"),
        ("truncated", "RemoteProtocolError"),
        ("not JSON", "a reply that is not JSON"),
        ("fewer", "returned 1 of 3 responses"),
    ],
)
def test_a_fault_that_stays_ends_the_run_and_the_same_command_continues(
    fault, why, export, endpoint
):
    endpoint.faults = dict.fromkeys(range(20, 1000), fault)
    outcome = export("--concurrency", 2)
    assert (outcome.code, outcome.out) == (2, "")
    assert why in outcome.err
    assert "the same command continues" in outcome.err
    done = {line["id"] for line in logged()}
    assert 18 <= len(done) <= 20
    endpoint.faults = {}
    endpoint.requests.clear()
    assert export().code == 0
    assert len(endpoint.requests) == len(records()) - len(done)
    assert len(logged()) == len(records())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shift": 1}, "has another tokenizer than the checkpoint: token 0 of"),
        ({"usage": 2, "tokenizes": False}, "reads the study's prompts as"),
        ({"usage": None, "tokenizes": False}, "states no number of prompt tokens"),
        ({"prefix": "abc", "reads_ids": False}, "without a chat template around the prompts"),
        ({"models": ["a", "b"]}, "serves a, b: name one with --set endpoint.model=NAME"),
        ({"models": []}, "serves none: name one"),
        ({"rejects": frozenset({"top_k"})}, "HTTP 400: unknown field top_k"),
        ({"ignores": frozenset({"seed"})}, "returned the same text for two seeds"),
        ({"ignores": frozenset({"temperature"})}, "returned the same text for two seeds"),
    ],
)
def test_a_server_that_does_not_fit_is_one_sentence_before_anything_is_sampled(
    change, why, export, endpoint
):
    for name, value in change.items():
        setattr(endpoint, name, value)
    outcome = export()
    assert (outcome.code, outcome.out) == (2, "")
    assert why in outcome.err
    assert endpoint.requests == []


def test_a_model_that_is_not_served_is_an_error(export):
    outcome = export("--set", "endpoint.model=other")
    assert outcome.code == 2
    assert f"does not serve 'other', but {NAME}" in outcome.err


def test_a_missing_server_is_an_error_for_run_and_plan(hq, tiny_study, monkeypatch):
    monkeypatch.setattr(client, "MAX_WAIT_S", 0.0)
    options = ("--sampler", "openai", "--endpoint", "http://127.0.0.1:9")
    for command in ("run", "plan"):
        outcome = hq(command, tiny_study, *options)
        assert (outcome.code, outcome.out) == (2, "")
        assert "http://127.0.0.1:9 does not list its models (ConnectError" in outcome.err
    assert not Path("cache/store").exists()


def test_options_that_contradict_each_other_are_errors(hq, tiny_study):
    without = hq("plan", tiny_study, "--sampler", "openai")
    assert (without.code, "give its address, as --endpoint" in without.err) == (2, True)
    other = hq("plan", tiny_study, "--endpoint", "http://127.0.0.1:9")
    assert (other.code, "add --sampler openai" in other.err) == (2, True)
    odd = hq("plan", tiny_study, "--sampler", "openai", "--endpoint", "localhost:8000")
    assert (odd.code, "which is not an HTTP URL" in odd.err) == (2, True)


def test_a_few_unreadable_responses_set_their_question_aside(export, endpoint):
    endpoint.returns_ids = False

    def change(text):
        return f"{text}\N{REPLACEMENT CHARACTER}" if len(endpoint.requests) == 1 else text

    endpoint.change = change
    assert export("--concurrency", 1, quota=20).code == 0
    facts = served()
    assert facts["unreadable"] == 3
    assert facts["responses"] > 150
    first = endpoint.requests[0]["prompt"]
    (odd,) = [record for record in records() if list(record.prompt) == first]
    assert (odd.responses, odd.complete, odd.hallucinated) == ((), False, None)


def test_many_unreadable_responses_are_an_error(export, endpoint):
    endpoint.returns_ids = False
    endpoint.change = lambda text: f"{text}\N{REPLACEMENT CHARACTER}"
    outcome = export()
    assert outcome.code == 2
    assert f"responses of {NAME} are not the text of their tokens" in outcome.err
    assert "more than 2%" in outcome.err


def test_the_key_is_sent_and_stored_nowhere(export, endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    endpoint.url = endpoint.url.replace("127.0.0.1", "name:pass-secret@127.0.0.1")
    outcome = export()
    assert outcome.code == 0
    assert endpoint.keys == {"Bearer sk-secret"}
    stored = b"".join(p.read_bytes() for p in Path("cache").rglob("*") if p.is_file())
    assert b"secret" not in stored
    assert "secret" not in outcome.err + outcome.out


def test_the_address_is_not_in_the_key_of_the_node(export, endpoint, decoding):
    assert export().code == 0
    asked = len(endpoint.requests)
    moved = CompletionEndpoint(*decoding)
    moved.temperature = TEMPERATURE
    try:
        outcome = export("--endpoint", moved.url)
    finally:
        moved.close()
    assert outcome.code == 0
    assert moved.requests == []
    assert len(endpoint.requests) == asked
    # With the model's name, a finished node needs no server at all.
    named = export("--endpoint", moved.url, "--set", f"endpoint.model={NAME}")
    assert named.code == 0, named.err


def test_a_run_states_what_sampled_it(hq, tiny_study, endpoint):
    options = ("--sampler", "openai", "--endpoint", endpoint.url)
    plan = json.loads(hq("plan", tiny_study, *options, "--json").out)["nodes"]
    states = {node["node"]: node["state"] for node in plan}
    assert states["served responses"] == "missing"
    assert not [name for name in states if name.startswith("sample ")]
    outcome = hq("run", tiny_study, *options, "--precisions", "fp16", "--into", "run", "--quiet")
    assert outcome.code == 0, outcome.err
    facts = json.loads(Path("run/provenance.json").read_text(encoding="utf-8"))
    assert facts["definition"]["sampling"]["sampler"] == "openai"
    assert facts["nodes"]["served responses"]["parameters"]["responses"]["precision"] == (
        f"openai:{NAME}"
    )
    of_server = facts["sampling"]["responses_from_server"]
    assert of_server["servers"][0]["url"] == endpoint.url.removesuffix("/v1")
    assert of_server["servers"][0]["seeds"] == "repeat responses"

    assert hq("report", "run", "--into", "page.html").code == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert "responses_from_server" in page
    assert NAME in page

    # The same responses from a file, without a server.
    exported = ("responses", "export", tiny_study, "--into", "served.jsonl.gz")
    assert hq(*exported, *options).code == 0
    from_file = ("--responses", "served.jsonl.gz", "--sampler", "openai", "--precisions", "fp16")
    assert hq("run", tiny_study, *from_file, "--into", "again", "--quiet").code == 0
    for name in ("samples.jsonl", "detection.csv", "neurons.json"):
        assert Path("again", name).read_bytes() == Path("run", name).read_bytes(), name


@needs_sigkill
def test_a_killed_run_asks_only_what_is_missing(hq, tiny_study, endpoint, export, tmp_path):
    arguments = ("responses", "export", tiny_study, "--into", "responses.jsonl.gz")
    options = ("--sampler", "openai", "--endpoint", endpoint.url, "--set", "sampling.quota=5")
    with Killer(tmp_path) as killer:
        killed = killer.run("harness.stages.sample append", 12, *arguments, *options)
    assert killed == -signal.SIGKILL
    done = {line["id"] for line in logged()}
    assert len(done) == 11
    endpoint.requests.clear()
    assert export().code == 0
    assert len(endpoint.requests) == len({record.id for record in records()} - done) > 0


def test_another_model_cannot_be_asked_at_the_same_endpoint(tiny_study):
    study = Study.load(str(tiny_study)).overridden(["sampling.sampler=openai"])
    with Materials(study) as m:
        with pytest.raises(HQError, match="which the endpoint does not serve"):
            m.with_model("base", "base", study.prompt)

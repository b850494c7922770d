"""Log-probabilities, several answers, penalties, JSON schemas, seeds, and incomplete characters."""

import codecs
import json

import pytest
from scipy.special import log_softmax

from harness.serve.generation.model import ServedModel
from hq.backends.llamacpp.backend import LlamaBackend
from tests.harness.serve.conftest import ask, close_to

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}


@pytest.fixture(scope="module")
def http(served):
    with served.client() as client:
        yield client


def events(response):
    lines = [line for line in response.text.split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def true_logprobs(gguf_file, prompt, ids, alpha=1.0, neurons=()):
    """Return the log-probabilities of an answer's tokens, computed in another context."""
    from hq.neurons.prompt_response import PromptResponse

    with LlamaBackend(gguf_file) as backend:
        with backend.scale({(n.layer, n.index): alpha for n in neurons}):
            ((_, logits),) = backend.logits([PromptResponse(tuple(prompt), tuple(ids))])
    return log_softmax(logits.astype("float64"), axis=1)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "seed": 3, "presence_penalty": 1.0}])
@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_logprobs_equal_those_of_the_models_logits(served, gguf_file, http, options, alpha):
    model = served.service.model
    body = {"prompt": "the model is", "max_tokens": 6, "logprobs": 3, "hq": {"alpha": alpha}}
    streamed = events(http.post(TEXT, json=body | options | {"stream": True, "seed": 3}))
    ids = [event["hq"]["token"] for event in streamed[:-1]]
    prompt = model.tokenizer("the model is")["input_ids"]
    true = true_logprobs(gguf_file, prompt, ids, alpha, model.neurons.positive)
    choice = http.post(TEXT, json=body | options | {"seed": 3}).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"] == pytest.approx(
        [true[k, token] for k, token in enumerate(ids)], abs=1e-3
    )
    for k, top in enumerate(logprobs["top_logprobs"]):
        values = list(top.values())
        assert values[0] == pytest.approx(true[k].max(), abs=1e-3)
        assert values == sorted(values, reverse=True)
        assert 1 <= len(top) <= 3
    shown = [piece.replace("<s>", "") for piece in logprobs["tokens"]]
    decoded = [0 if "\ufffd" in piece else len(piece) for piece in shown]
    assert logprobs["text_offset"] == [sum(decoded[:k]) for k in range(len(shown))]
    joined = [e["choices"][0]["logprobs"] for e in streamed[:-1]]
    for name, values in logprobs.items():
        assert [value for each in joined for value in each[name]] == close_to(values)


def test_logprobs_of_a_chat(http):
    body = ask(logprobs=True, top_logprobs=2)
    complete = http.post(CHAT, json=body).json()["choices"][0]
    content = complete["logprobs"]["content"]
    raw = b"".join(bytes(each["bytes"]) for each in content).replace(b"<s>", b"")
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    assert decoder.decode(raw) == complete["message"]["content"]
    assert complete["logprobs"]["refusal"] is None
    for each in content:
        assert len(each["top_logprobs"]) == 2
        assert each["logprob"] == each["top_logprobs"][0]["logprob"]  # greedy
    streamed = events(http.post(CHAT, json=body | {"stream": True}))
    streamed_content = [
        one
        for event in streamed
        for one in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed_content == close_to(content)
    assert (
        http.post(CHAT, json=ask(logprobs=True)).json()["choices"][0]["logprobs"]["content"][0][
            "top_logprobs"
        ]
        == []
    )


def test_a_blocked_answer_has_no_logprobs(http):
    body = ask(logprobs=True, top_logprobs=2, hq={"domain": "doubted"})
    assert http.post(CHAT, json=body).json()["choices"][0]["logprobs"] is None
    text = http.post(CHAT, json=body | {"stream": True}).text
    assert '"logprob"' not in text


def test_each_of_n_answers_has_a_score_a_verdict_and_a_line(http, served):
    body = ask(n=4, temperature=1.5, seed=11, logprobs=True)
    completion = http.post(CHAT, json=body).json()
    choices = completion["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert len({choice["message"]["content"] for choice in choices}) > 1
    lines = [served.line(choice["hq"]["audit_id"]) for choice in choices]
    assert [line["score"] for line in lines] == [choice["hq"]["score"] for choice in choices]
    assert (
        [line["seed"] for line in lines] == [c["hq"]["seed"] for c in choices] == [11, 12, 13, 14]
    )
    assert [line["choice"] for line in lines] == [0, 1, 2, 3]
    assert {line["request"] for line in lines} == {completion["id"].removeprefix("chatcmpl-")}
    assert completion["hq"] == choices[0]["hq"]
    assert completion["usage"]["completion_tokens"] == sum(line["tokens"] for line in lines)
    for choice in choices:  # a request with the choice's seed repeats it
        alone = http.post(CHAT, json=body | {"n": 1, "seed": choice["hq"]["seed"]}).json()
        assert alone["choices"][0]["message"] == choice["message"]
        assert alone["choices"][0]["logprobs"] == close_to(choice["logprobs"])
        assert "hq" not in alone["choices"][0]


def test_n_answers_in_a_stream(http):
    body = ask(n=3, temperature=1.5, seed=11)
    complete = http.post(CHAT, json=body).json()
    streamed = events(
        http.post(CHAT, json=body | {"stream": True, "stream_options": {"include_usage": True}})
    )
    *chunks, usage = streamed
    assert usage["usage"] == complete["usage"]
    for choice in complete["choices"]:
        own_chunks = [chunk for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert own_chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in own_chunks)
        assert text == choice["message"]["content"]
        assert own_chunks[-1]["hq"]["score"] == close_to(choice["hq"]["score"])
        assert own_chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
        assert "hq" not in own_chunks[-1]["choices"][0]


@pytest.mark.parametrize("domain", ["noted", "again", "doubted"])
def test_a_policy_decides_on_each_answer(http, served, domain):
    completion = http.post(
        CHAT, json=ask(n=2, temperature=1.5, seed=1, hq={"domain": domain})
    ).json()
    lines = [served.line(choice["hq"]["audit_id"]) for choice in completion["choices"]]
    for choice, line in zip(completion["choices"], lines, strict=True):
        assert choice["hq"]["decision"] == line["decision"] != "pass"
        assert line["alphas"] == ([1.0, 0.0] if domain == "again" else [1.0])
        blocked = domain == "doubted"
        assert (choice["message"]["content"] == "No.") == blocked
        assert (choice["finish_reason"] == "content_filter") == blocked


def test_n_answers_take_one_place_of_the_queue(start):
    server = start(policy={"limits": {"queue": 1}})
    with server.client() as http:
        assert len(http.post(CHAT, json=ask(n=8, max_tokens=1)).json()["choices"]) == 8


@pytest.mark.parametrize(
    "penalty",
    [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"repeat_penalty": 10.0, "repeat_last_n": -1},
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_penalties_make_an_answer_repeat_less(http, path, penalty):
    body = (ask() if path == CHAT else {"prompt": "the model"}) | {"max_tokens": 40}

    def distinct(options):
        streamed = events(http.post(path, json=body | options | {"stream": True}))
        ids = [event["hq"]["token"] for event in streamed if "token" in event.get("hq", {})]
        return len(set(ids)) / len(ids)

    assert distinct(penalty) > distinct({})


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "seed": 4, "n": 3}, {"stream": True}])
@pytest.mark.parametrize("domain", ["all", "again"])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_an_answer_follows_its_schema_also_when_regenerated(http, path, options, domain):
    body = ask() if path == CHAT else {"prompt": "the model"}
    body |= {"max_tokens": 120, "response_format": BY_SCHEMA, "hq": {"domain": domain}} | options
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    if "stream" in options:
        parts = [event["choices"][0] for event in events(response)]
        texts = [
            "".join(p["text"] if path == TEXT else p["delta"].get("content", "") for p in parts)
        ]
    else:
        choices = response.json()["choices"]
        texts = [c["text"] if path == TEXT else c["message"]["content"] for c in choices]
        assert {choice["finish_reason"] for choice in choices} == {"stop"}
    for text in texts:
        person = json.loads(text)
        assert list(person) == ["name", "age", "kind"]
        assert len(person["name"]) <= 6
        assert 0 <= person["age"] <= 150
        assert person["kind"] in ("cat", "dog")


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"type": "json_object"}, dict),
        ({"type": "json_object", "schema": PERSON}, dict),
        ({"type": "json_schema", "schema": {"type": "array", "maxItems": 2}}, list),
        (
            {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}, "strict": True}},
            int,
        ),
    ],
)
def test_other_response_formats(http, form, kind):
    body = ask(response_format=form, max_tokens=200, temperature=0.5, seed=0)
    choice = http.post(CHAT, json=body).json()["choices"][0]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), kind)
    assert choice["message"]["content"][0] in "{[-0123456789"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "colour"}, "Invalid type: colour"),
        ({"type": "object", "not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
        ({"type": "array", "uniqueItems": True}, "Unimplemented keys"),
        ({"$ref": "http://elsewhere/schema"}, "not fetch"),
        ({"type": "string", "pattern": "["}, "regex parse error"),
        ({"type": "string", "format": "colour"}, "Unknown format"),
        ({"enum": []}, "Unsatisfiable"),
        (
            {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}},
            "Unimplemented keys",
        ),
        ({"properties": 5}, "properties must be an object"),
        ({"$ref": "#/$defs/nothing"}, "JSON schema cannot be used"),
        ({"$ref": "#"}, "could not be followed"),
    ],
)
def test_a_schema_that_cannot_be_enforced_returns_400(http, schema, words):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    rejected = http.post(CHAT, json=ask(response_format=form))
    assert rejected.status_code == 400, rejected.text
    error = rejected.json()["error"]
    assert (error["param"], error["code"]) == ("response_format", "invalid_schema")
    assert words in error["message"]
    assert "\n" not in error["message"]


def test_json_past_max_tokens_ends_with_length(http):
    form = {"type": "json_schema", "schema": {"type": "array", "minItems": 1000}}
    choice = http.post(CHAT, json=ask(response_format=form, max_tokens=5)).json()["choices"][0]
    assert choice["finish_reason"] == "length"


def test_a_stop_string_ends_json_too(http):
    body = ask(response_format=BY_SCHEMA, max_tokens=100, stop=['"age'])
    choice = http.post(CHAT, json=body).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].endswith(", ")


def test_sampling_settings_are_recorded(http, served):
    body = ask(temperature=0.5, top_k=7, min_p=0.1, response_format=BY_SCHEMA, max_tokens=100)
    body |= {"presence_penalty": 0.1, "frequency_penalty": 0.2, "repeat_penalty": 1.1}
    line = served.line(http.post(CHAT, json=body).json()["hq"]["audit_id"])
    for name in ("temperature", "top_k", "min_p", "presence_penalty", "frequency_penalty"):
        assert line[name] == body[name]
    assert (line["repeat_penalty"], line["repeat_last_n"], line["json_schema"]) == (1.1, 64, True)


def test_the_returned_seed_repeats_the_answer(http):
    for asked in ({}, {"seed": -1}, {"seed": None}):
        completion = http.post(CHAT, json=ask(temperature=2.0) | asked).json()
        again = http.post(CHAT, json=ask(temperature=2.0, seed=completion["hq"]["seed"])).json()
        assert again["choices"] == completion["choices"]


def test_an_incomplete_character_is_not_sent(start, monkeypatch):
    """The model writes "é" byte by byte, and max_tokens ends the answer before the last byte."""
    server = start()
    tokenizer = server.service.model.tokenizer
    ids = [i for i in range(320) if tokenizer.piece(i) in (b"\xc3", b"\xa9")]
    first, last = sorted(ids, key=tokenizer.piece, reverse=True)
    real_generate = ServedModel.generate
    tried = []

    def generate(self, request, draft):
        def choose(sampler, logits):
            sampler.sampled.append((first, last)[len(sampler.sampled) % 2])
            return sampler.sampled[-1]

        monkeypatch.setattr("harness.serve.generation.sampler.Sampler.__call__", choose)
        yield from real_generate(self, request, draft)

    monkeypatch.setattr(ServedModel, "generate", generate)
    with server.client() as http:
        for tokens, text in ((1, ""), (2, "é"), (3, "é"), (4, "éé")):
            completion = http.post(CHAT, json=ask(max_tokens=tokens)).json()["choices"][0]
            assert (completion["message"]["content"], completion["finish_reason"]) == (
                text,
                "length",
            )
            streamed = http.post(CHAT, json=ask(max_tokens=tokens, stream=True))
            assert "\ufffd" not in streamed.text
            tried.append(text)
    assert len(tried) == 4

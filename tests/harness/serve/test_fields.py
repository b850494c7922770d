"""Request fields: accepted at a neutral value, ignored and listed, or rejected."""

import json

import pytest

from tests.harness.serve.conftest import ask

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASSISTANT = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


def with_assistant_fields(**fields):
    """Return a conversation whose assistant message has additional fields."""
    return {"messages": [ASSISTANT[0], ASSISTANT[1] | fields, ASSISTANT[2]]}


def with_user_fields(**fields):
    return {"messages": [{"role": "user", "content": "one"} | fields]}


@pytest.fixture(scope="module")
def http(served):
    with served.client() as client:
        yield client


NEUTRAL = [
    {"response_format": {"type": "text"}},
    {"response_format": None},
    {"tools": []},
    {"tools": None},
    {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"tool_choice": None},
    {"parallel_tool_calls": None},
    {"functions": []},
    {"functions": None},
    {"function_call": "none"},
    {"function_call": None},
    {"logprobs": False},
    {"logprobs": None},
    {"top_logprobs": None},
    {"top_logprobs": 0},
    {"metadata": {}},
    {"metadata": None},
    {"service_tier": None},
    {"store": False},
    {"store": None},
    {"n": 1},
    {"n": None},
    {"presence_penalty": 0},
    {"presence_penalty": 0.0},
    {"frequency_penalty": 0},
    {"frequency_penalty": None},
    {"repeat_penalty": 1.0},
    {"repeat_penalty": 1},
    {"repetition_penalty": 1.0},
    {"top_k": 0},
    {"top_k": -1},
    {"top_k": None},
    {"min_p": 0},
    {"min_p": 0.0},
    {"top_p": 1},
    {"typical_p": 1},
    {"mirostat": 0},
    {"dry_multiplier": 0.0},
    {"xtc_probability": 0},
    {"dynatemp_range": 0},
    {"logit_bias": {}},
    {"logit_bias": None},
    {"seed": -1},
    {"seed": None},
    {"max_tokens": None, "max_completion_tokens": 2},
    {"stop": None},
    {"stop": []},
    {"stop": ""},
    {"stream": None},
    {"stream": False, "stream_options": None},
    {"stream_options": {"include_usage": None}},
    {"stream_options": {"include_usage": False, "include_obfuscation": None}},
    {"modalities": ["text"]},
    {"modalities": None},
    {"audio": None},
    {"prediction": None},
    {"reasoning_effort": None},
    {"reasoning_effort": "none"},
    {"verbosity": None},
    {"verbosity": "medium"},
    {"web_search_options": None},
    {"safety_identifier": None},
    {"prompt_cache_key": None},
    {"user": None},
    {"hq": None},
    {"hq": {"alpha": None, "domain": None}},
    {"grammar": ""},
    {"n_probs": 0},
    {"ignore_eos": False},
    {"lora": []},
    {"guided_json": None},
    {"chat_template_kwargs": {}},
    {"continue_final_message": False},
    {"suffix": None, "echo": False, "best_of": 1},
    {"a_field_of_some_other_server": None},
    with_assistant_fields(tool_calls=[]),
    with_assistant_fields(tool_calls=None),
    with_assistant_fields(function_call=None),
    with_assistant_fields(refusal=None),
    with_assistant_fields(refusal=""),
    with_assistant_fields(audio=None),
    with_assistant_fields(annotations=[]),
    with_assistant_fields(reasoning_content=None),
    with_assistant_fields(reasoning_content=""),
    with_assistant_fields(name=None),
    with_assistant_fields(parsed=None),
    with_assistant_fields(content=[{"type": "text", "text": "two"}]),
    with_assistant_fields(content=None),
    with_user_fields(name=None),
    with_user_fields(content=[]),
    with_user_fields(tool_calls=None),
]

IGNORED = [
    ({"service_tier": "auto"}, ["service_tier"]),
    ({"metadata": {"run": "1"}}, ["metadata"]),
    ({"safety_identifier": "somebody"}, ["safety_identifier"]),
    ({"prompt_cache_key": "key"}, ["prompt_cache_key"]),
    ({"prompt_cache_retention": "24h"}, ["prompt_cache_retention"]),
    ({"cache_prompt": True}, ["cache_prompt"]),
    ({"cache_prompt": False}, ["cache_prompt"]),
    ({"parallel_tool_calls": True}, ["parallel_tool_calls"]),
    ({"parallel_tool_calls": False}, ["parallel_tool_calls"]),
    ({"prediction": {"type": "content", "content": "x"}}, ["prediction"]),
    ({"stream_options": {"include_obfuscation": False}}, ["stream_options.include_obfuscation"]),
    ({"samplers": "edkypmxt", "dry_base": 1.75}, ["samplers", "dry_base"]),
    ({"keep_alive": "5m"}, ["keep_alive"]),
    ({"id_slot": 0, "timings_per_token": True}, ["id_slot", "timings_per_token"]),
    (with_user_fields(name="Ada"), ["messages.name"]),
    (with_assistant_fields(name="Bot"), ["messages.name"]),
    (with_assistant_fields(reasoning_content="I think"), ["messages.reasoning_content"]),
    (with_assistant_fields(annotations=[{"type": "url_citation"}]), ["messages.annotations"]),
    (
        with_user_fields(
            content=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]
        ),
        ["messages.content.cache_control"],
    ),
]

TEXT_NEUTRAL = [
    {"suffix": None},
    {"suffix": ""},
    {"prompt": ["the model"]},
    {"echo": False},
    {"echo": None},
    {"best_of": 1},
    {"best_of": None},
    {"logprobs": None},
    {"logprobs": False},
    {"n": 1, "best_of": 1},
    {"logit_bias": None},
    {"seed": -1},
    {"response_format": {"type": "text"}},
    {"tools": [], "tool_choice": "none", "modalities": ["text"]},
]


@pytest.mark.parametrize("fields", NEUTRAL, ids=str)
def test_a_neutral_value_changes_nothing(http, fields):
    completion = http.post(CHAT, json=ask(max_tokens=2) | fields)
    assert completion.status_code == 200, completion.text
    plain = {key: value for key, value in fields.items() if key == "messages"}
    if plain:  # keep only what the template shows
        plain = {"messages": [{**m, "content": m["content"] or ""} for m in plain["messages"]]}
        plain = {"messages": [{k: m[k] for k in ("role", "content")} for m in plain["messages"]]}
    reference = http.post(CHAT, json=ask(max_tokens=2) | plain).json()
    assert completion.json()["choices"] == reference["choices"]
    assert completion.json()["hq"]["ignored"] == []


@pytest.mark.parametrize(("fields", "listed"), IGNORED, ids=str)
def test_a_hint_is_ignored_and_listed(http, fields, listed):
    completion = http.post(CHAT, json=ask(max_tokens=2) | fields)
    assert completion.status_code == 200, completion.text
    assert completion.json()["hq"]["ignored"] == listed
    with http.stream("POST", CHAT, json=ask(max_tokens=2, stream=True) | fields) as stream:
        *_, last, _ = (line for line in stream.iter_lines() if line)
    assert json.loads(last.removeprefix("data: "))["hq"]["ignored"] == listed


@pytest.mark.parametrize("fields", TEXT_NEUTRAL, ids=str)
def test_a_neutral_value_changes_nothing_in_completions(http, fields):
    body = {"prompt": "the model", "max_tokens": 2}
    completion = http.post(TEXT, json=body | fields)
    assert completion.status_code == 200, completion.text
    assert completion.json()["choices"] == http.post(TEXT, json=body).json()["choices"]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
UNSUPPORTED = [
    (CHAT, {"tools": [TOOL]}, "tools", "the model cannot call tools"),
    (CHAT, {"tool_choice": "required"}, "tool_choice", "the model cannot call tools"),
    (CHAT, {"functions": [{"name": "f"}]}, "functions", "the model cannot call tools"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities", "answers are text"),
    (CHAT, {"audio": {"voice": "alloy"}}, "audio", "answers are text"),
    (CHAT, {"reasoning_effort": "high"}, "reasoning_effort", "without reasoning"),
    (CHAT, {"store": True}, "store", "not stored"),
    (CHAT, {"logit_bias": {"5": 1}}, "logit_bias", "cannot be biased"),
    (CHAT, {"repetition_penalty": 1.1}, "repetition_penalty", "use repeat_penalty"),
    (CHAT, {"mirostat": 2}, "mirostat", "the supported samplers are temperature, top_p"),
    (CHAT, {"guided_json": {"type": "object"}}, "guided_json", "use response_format"),
    (CHAT, {"web_search_options": {"x": 1}}, "web_search_options", "cannot search"),
    (CHAT, {"colour": "red"}, "colour", "the field is unknown"),
    (CHAT, {"stream_options": {"colour": 1}}, "stream_options.colour", "the field is unknown"),
    (
        CHAT,
        with_assistant_fields(function_call={"name": "f"}),
        "messages.1.function_call",
        "use tool_calls",
    ),
    (CHAT, with_assistant_fields(colour=1), "messages.1.colour", "the field is unknown"),
    (CHAT, with_assistant_fields(audio={"id": "x"}), "messages.1.audio", "a message is text"),
    (
        CHAT,
        with_user_fields(content=[{"type": "image_url", "image_url": {"url": "x"}}]),
        "messages.0.content.0",
        'a message is text, not "image_url"',
    ),
    (TEXT, {"suffix": "end"}, "suffix", "only be continued at its end"),
    (TEXT, {"echo": True}, "echo", "prompt is not part of the answer"),
    (TEXT, {"tools": [TOOL]}, "tools", "the model cannot call tools"),
    (TEXT, {"messages": [{"role": "user", "content": "x"}]}, "messages", "the field is unknown"),
    (CHAT, {"prompt": "x"}, "prompt", "the field is unknown"),
]


@pytest.mark.parametrize(("path", "fields", "param", "words"), UNSUPPORTED, ids=str)
def test_an_unsupported_value_names_the_field(http, path, fields, param, words):
    body = ask() if path == CHAT else {"prompt": "the"}
    rejected = http.post(path, json=body | fields)
    assert rejected.status_code == 400, rejected.text
    error = rejected.json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert error["message"].startswith(f"{param} is not supported: ")
    assert words in error["message"]


LIMITS = [
    (CHAT, {"n": 9}, "n", "from 1 to 8"),
    (CHAT, {"n": 0}, "n", "from 1 to 8"),
    (CHAT, {"n": True}, "n", "from 1 to 8"),
    (CHAT, {"presence_penalty": 2.5}, "presence_penalty", "from -2 to 2"),
    (CHAT, {"presence_penalty": -2.5}, "presence_penalty", "from -2 to 2"),
    (CHAT, {"frequency_penalty": -2.5}, "frequency_penalty", "from -2 to 2"),
    (CHAT, {"repeat_penalty": 0}, "repeat_penalty", "above 0, up to 10"),
    (CHAT, {"repeat_penalty": -1}, "repeat_penalty", "above 0, up to 10"),
    (CHAT, {"temperature": 2.1}, "temperature", "from 0 to 2"),
    (CHAT, {"top_p": 1.1}, "top_p", "from 0 to 1"),
    (CHAT, {"min_p": -0.1}, "min_p", "from 0 to 1"),
    (CHAT, {"top_k": -2}, "top_k", "from 0 to 2^31 - 1, -1, or null"),
    (CHAT, {"seed": -2}, "seed", "from 0 to 2^63 - 1, -1, or null"),
    (CHAT, {"seed": 1.5}, "seed", "a whole number"),
    (CHAT, {"max_tokens": 0}, "max_tokens", "at least 1, -1, or null"),
    (CHAT, {"max_tokens": -2}, "max_tokens", "at least 1, -1, or null"),
    (CHAT, {"max_tokens": 513}, "max_tokens", "the policy allows 512"),
    (CHAT, {"max_completion_tokens": 513}, "max_completion_tokens", "the policy allows 512"),
    (CHAT, {"logprobs": 5}, "logprobs", "boolean"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    (CHAT, {"top_logprobs": 3}, "top_logprobs", "it requires logprobs to be true"),
    (CHAT, {"stop": ["x"] * 65}, "stop", "65 strings are more than the maximum of 64"),
    (CHAT, {"stop": "x" * 257}, "stop", "1 to 256 characters"),
    (CHAT, {"stop": ["a", ""]}, "stop", "1 to 256 characters"),
    (CHAT, {"stop": 5}, "stop", "a string, a list of strings, or null"),
    (CHAT, {"stop": ["a", 5]}, "stop", "a string, a list of strings, or null"),
    (CHAT, {"user": "x" * 257}, "user", "256 characters"),
    (CHAT, {"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
    (CHAT, {"continue_final_message": True}, "continue_final_message", "not the assistant's"),
    (
        CHAT,
        {
            "messages": [{"role": "assistant", "content": "{"}],
            "response_format": {"type": "json_object"},
        },
        "response_format",
        "JSON cannot continue the text",
    ),
    (CHAT, with_user_fields(content=None), "messages.0", "user's message has no content"),
    (TEXT, {"logprobs": 21}, "logprobs", "from 0 to 20"),
    (TEXT, {"logprobs": True}, "logprobs", "a whole number from 0 to 20"),
    (TEXT, {"best_of": 2}, "best_of", "it must equal n"),
    (TEXT, {"prompt": ["a", "b"]}, "prompt", "a request may have one prompt, not 2"),
    (TEXT, {"prompt": []}, "prompt", "a text, token ids, or a list with one of them"),
    (TEXT, {"prompt": 5}, "prompt", "a text, token ids, or a list with one of them"),
    (TEXT, {"prompt": [10**6]}, "prompt", "the model's last one is 319"),
]


@pytest.mark.parametrize(("path", "fields", "param", "words"), LIMITS, ids=str)
def test_an_invalid_value_names_the_limit(http, path, fields, param, words):
    body = ask() if path == CHAT else {"prompt": "the"}
    rejected = http.post(path, json=body | fields)
    assert rejected.status_code == 400, rejected.text
    error = rejected.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ") or "policy" in words or "last one" in words
    assert words in error["message"]


def test_many_stop_strings(http):
    body = {"prompt": "the", "max_tokens": 16}
    text = http.post(TEXT, json=body).json()["choices"][0]["text"]
    stops = [*(f"never {n}" for n in range(63)), text[5:8]]
    completion = http.post(TEXT, json=body | {"stop": stops}).json()["choices"][0]
    assert (completion["text"], completion["finish_reason"]) == (
        text[: text.index(text[5:8])],
        "stop",
    )


def test_a_prompt_of_token_ids(http, served):
    ids = served.service.model.tokenizer("the model")["input_ids"]
    completion = [
        http.post(TEXT, json={"prompt": prompt, "max_tokens": 6}).json()["choices"]
        for prompt in ("the model", ids, [ids], ["the model"])
    ]
    assert all(each == completion[0] for each in completion)


def test_the_policy_limits_tokens_by_default(start):
    server = start(policy={"limits": {"new_tokens": 6}})
    with server.client() as http:
        for options in ({"max_tokens": -1}, {"max_tokens": None}, {"max_completion_tokens": -1}):
            body = {"messages": ask()["messages"]} | options
            assert http.post(CHAT, json=body).json()["usage"]["completion_tokens"] == 6

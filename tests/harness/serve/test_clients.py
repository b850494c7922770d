"""Bodies and headers as popular clients send them: each is answered, or refused by name.

Written from the source code and the traffic of the clients that are named; where the source is, a
comment says. Model names are ours.
"""

import json
from dataclasses import dataclass, field

import pytest

from tests.harness.serve.conftest import running

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "What is the capital of France?"}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ANSWER = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 4}},
    "required": ["answer"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Sent:
    """One request; `refused` is the field that it is refused for, `ignored` what changes nothing."""

    client: str
    body: dict
    path: str = CHAT
    headers: dict = field(default_factory=dict)
    refused: str = ""
    ignored: tuple = ()


STAINLESS = {  # openai-python, _base_client.py: platform_headers
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 2.9.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Package-Version": "2.9.0",
    "X-Stainless-Retry-Count": "0",
    "X-Stainless-Read-Timeout": "600",
    "Authorization": "Bearer none",
}
FETCH = {"Content-Type": "application/json", "Accept": "*/*", "Origin": "http://localhost:3000"}

SENT = [
    # langchain-openai, chat_models/base.py: ChatOpenAI._default_params, _get_request_payload
    Sent(
        "langchain ChatOpenAI",
        {"messages": [SYSTEM, USER], "model": "tiny", "temperature": 0.7, "stream": False},
        headers=STAINLESS,
    ),
    Sent(
        "langchain ChatOpenAI, all of its options",
        {
            "messages": [SYSTEM, USER],
            "model": "tiny",
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            "max_completion_tokens": 8,
            "n": 1,
            "top_p": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": 1,
            "logprobs": True,
            "top_logprobs": 2,
            "stop": ["\nObservation:"],
            "metadata": {"run": "1"},
        },
        headers=STAINLESS,
        ignored=("metadata",),
    ),
    # with_structured_output(method="json_schema") and bind_tools
    Sent(
        "langchain with_structured_output",
        {
            "messages": [USER],
            "model": "tiny",
            "max_completion_tokens": 64,
            "parallel_tool_calls": False,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "Answer", "schema": ANSWER, "strict": True},
            },
        },
        headers=STAINLESS,
        ignored=("parallel_tool_calls",),
    ),
    Sent(
        "langchain bind_tools",
        {"messages": [USER], "model": "tiny", "tools": [TOOL], "tool_choice": "auto"},
        refused="tools",
    ),
    # _convert_message_to_dict: an AIMessage has content null where it called tools
    Sent(
        "langchain, the result of a tool",
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "type": "function",
                            "id": "call_1",
                            "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "cold"},
            ],
            "model": "tiny",
        },
        refused="messages",  # the test's template has no place for calls
    ),
    # langchain-openai, llms/base.py: BaseOpenAI._default_params; prompts come in a list
    Sent(
        "langchain OpenAI",
        {
            "model": "tiny",
            "prompt": ["What is the capital of France?"],
            "temperature": 0.7,
            "top_p": 1,
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "n": 1,
            "max_tokens": 8,
            "logit_bias": {},
        },
        TEXT,
        STAINLESS,
    ),
    Sent(
        "langchain OpenAI.batch",
        {"model": "tiny", "prompt": ["One?", "Two?"], "max_tokens": 8, "n": 1, "best_of": 1},
        TEXT,
        refused="prompt",
    ),
    # llama-index-llms-openai, base.py: _get_model_kwargs; OpenAILike has the same
    Sent(
        "llamaindex OpenAILike.chat",
        {"messages": [SYSTEM, USER], "model": "tiny", "stream": False, "temperature": 0.1},
        headers=STAINLESS,
    ),
    Sent(
        "llamaindex OpenAILike.stream_chat",
        {
            "messages": [SYSTEM, USER],
            "model": "tiny",
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.1,
            "max_tokens": 8,
            "logprobs": None,
        },
        headers=STAINLESS,
    ),
    Sent(
        "llamaindex OpenAILike.complete",
        {"prompt": "The capital", "model": "tiny", "temperature": 0.1, "max_tokens": 8},
        TEXT,
        STAINLESS,
    ),
    # open-webui, backend/open_webui/routers/openai.py: generate_chat_completion
    Sent(
        "open webui",
        {"model": "tiny", "messages": [SYSTEM, USER], "stream": True, "max_tokens": 8},
        headers={"Content-Type": "application/json", "Authorization": "Bearer"},
    ),
    Sent(
        "open webui, its advanced parameters",
        {
            "stream": True,
            "model": "tiny",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "stream_options": {"include_usage": True},
            "temperature": 0.8,
            "top_p": 0.9,
            "min_p": 0.05,
            "top_k": 40,
            "max_tokens": 8,
            "frequency_penalty": 0.1,
            "presence_penalty": 0.1,
            "repeat_penalty": 1.1,
            "seed": 42,
            "stop": ["###"],
            "logit_bias": {},
            "reasoning_effort": None,
            "keep_alive": "5m",
            "metadata": {"user_id": "1", "chat_id": "2"},
        },
        ignored=("metadata", "keep_alive"),
    ),
    Sent(
        "open webui, a title",
        {
            "model": "tiny",
            "messages": [USER],
            "stream": False,
            "max_completion_tokens": 8,
        },
    ),
    # litellm, llms/openai/openai.py, through the OpenAI client: extra_body is beside the others
    Sent(
        "litellm",
        {
            "messages": [USER],
            "model": "tiny",
            "max_tokens": 8,
            "user": "somebody",
            "temperature": 1,
            "top_p": 1,
            "n": 1,
            "stream": False,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "extra_body": {},
            "parallel_tool_calls": None,
            "tools": None,
            "functions": None,
            "function_call": None,
        },
        headers=STAINLESS,
    ),
    Sent(
        "litellm proxy",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
                    ],
                },
                # litellm's Message.model_dump()
                {
                    "content": "y",
                    "role": "assistant",
                    "tool_calls": None,
                    "function_call": None,
                    "provider_specific_fields": {"refusal": None},
                    "annotations": [],
                    "reasoning_content": None,
                },
                USER,
            ],
            "model": "tiny",
            "max_tokens": 8,
            "cache": {"no-cache": True},
        },
        ignored=(
            "cache",
            "messages.content.cache_control",
            "messages.provider_specific_fields",
        ),
    ),
    # lm-evaluation-harness, lm_eval/models/openai_completions.py: LocalCompletionsAPI._create_payload
    Sent(
        "lm-eval local-completions, generate_until",
        {
            "prompt": [[1, 5, 9, 14]],
            "model": "tiny",
            "max_tokens": 8,
            "temperature": 0,
            "stop": ["\n\n", "</s>", "Question:", "Q:", "User:"],
            "seed": 1234,
        },
        TEXT,
    ),
    Sent(
        "lm-eval local-completions, tokenized_requests=False",
        {
            "prompt": ["Question: one?\nAnswer:"],
            "model": "tiny",
            "max_tokens": 8,
            "temperature": 0,
            "stop": ["\n\n"],
            "seed": 1234,
        },
        TEXT,
    ),
    Sent(
        "lm-eval local-completions, loglikelihood",
        {
            "model": "tiny",
            "prompt": [[1, 5, 9, 14]],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": 1,
            "seed": 1234,
            "echo": True,
        },
        TEXT,
        refused="echo",
    ),
    # LocalChatCompletion._create_payload
    Sent(
        "lm-eval local-chat-completions",
        {
            "messages": [USER],
            "model": "tiny",
            "max_tokens": 8,
            "temperature": 0,
            "stop": ["\n\n", "Q:", "A:", "<|im_end|>", "Question:"],
            "seed": 1234,
        },
    ),
    # lm_eval/models/api_models.py: apply_chat_template adds a type to each message
    Sent(
        "lm-eval local-chat-completions, messages of its chat template",
        {
            "messages": [{"role": "user", "content": "One?", "type": "text"}],
            "model": "tiny",
            "max_tokens": 8,
            "temperature": 0,
            "stop": ["\n"],
            "seed": 1234,
        },
    ),
    # continue, core/llm/llms/OpenAI.ts: _convertArgs; provider openai with an apiBase
    Sent(
        "continue, chat",
        {
            "messages": [SYSTEM, USER],
            "model": "tiny",
            "max_tokens": 512,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        headers={"Content-Type": "application/json", "api-key": "", "Authorization": "Bearer"},
    ),
    Sent(
        "continue, its default of max_tokens",
        {"messages": [USER], "model": "tiny", "max_tokens": 4096, "stream": True},
        refused="max_tokens",
    ),
    Sent(
        "continue, autocomplete",
        {
            "model": "tiny",
            "prompt": "<fim_prefix>def f(<fim_suffix>\n<fim_middle>",
            "max_tokens": 8,
            "temperature": 0.01,
            "stream": True,
            "stop": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "\n\n", "```"],
        },
        TEXT,
    ),
    Sent(
        "continue, autocomplete by suffix",
        {"model": "tiny", "prompt": "def f(", "suffix": "):", "max_tokens": 8, "stream": True},
        TEXT,
        refused="suffix",
    ),
    # llama.cpp, tools/server/webui/src/lib/services/chat.ts: sendMessage
    Sent(
        "llama.cpp webui",
        {
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "reasoning_format": "auto",
            "temperature": 0.8,
            "max_tokens": -1,
            "dynatemp_range": 0,
            "dynatemp_exponent": 1,
            "top_k": 40,
            "top_p": 0.95,
            "min_p": 0.05,
            "xtc_probability": 0,
            "xtc_threshold": 0.1,
            "typ_p": 1,
            "repeat_last_n": 64,
            "repeat_penalty": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "dry_multiplier": 0,
            "dry_base": 1.75,
            "dry_allowed_length": 2,
            "dry_penalty_last_n": -1,
            "samplers": ["top_k", "typ_p", "top_p", "min_p", "temperature"],
            "timings_per_token": True,
            "return_progress": True,
        },
        headers=FETCH,
        ignored=(
            "timings_per_token",
            "return_progress",
            "reasoning_format",
            "samplers",
            "dynatemp_exponent",
            "xtc_threshold",
            "dry_base",
            "dry_allowed_length",
            "dry_penalty_last_n",
        ),
    ),
    # its older one, examples/server/webui
    Sent(
        "llama.cpp webui of 2025",
        {
            "messages": [USER],
            "stream": True,
            "cache_prompt": True,
            "samplers": "edkypmxt",
            "typical_p": 1,
            "max_tokens": 8,
            "timings_per_token": False,
        },
        headers=FETCH,
        ignored=("cache_prompt", "timings_per_token", "samplers"),
    ),
    # vercel ai sdk, packages/openai-compatible/src/chat: getArgs; undefined fields are left out
    Sent(
        "ai sdk, openai-compatible",
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 8,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        headers={"Content-Type": "application/json", "User-Agent": "ai/5.0.0 runtime/node.js/22"},
    ),
    Sent(
        "ai sdk, generateObject",
        {
            "model": "tiny",
            "messages": [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "max_tokens": 64,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": ANSWER, "strict": True, "name": "response"},
            },
        },
    ),
    Sent(
        "ai sdk, generateObject without structured outputs",
        {
            "model": "tiny",
            "messages": [SYSTEM, USER],
            "max_tokens": 64,
            "response_format": {"type": "json_object"},
        },
    ),
    Sent(
        "ai sdk, an image",
        {
            "model": "tiny",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
                    ],
                }
            ],
        },
        refused="messages.0.content.0",
    ),
    # anythingllm, server/utils/AiProviders/genericOpenAi: getChatCompletion, streamGetChatCompletion
    Sent(
        "anythingllm",
        {
            "model": "tiny",
            "stream": True,
            "messages": [SYSTEM, {"role": "user", "content": "hi"}],
            "temperature": 0.7,
            "max_tokens": 8,
        },
        headers=STAINLESS,
    ),
    # the openai package, chat.completions.create, as of today; None is what a caller may give
    Sent(
        "openai python",
        {
            "messages": [{"role": "developer", "content": "be brief"}, {**USER, "name": "ada"}],
            "model": "tiny",
            "audio": None,
            "frequency_penalty": None,
            "function_call": None,
            "functions": None,
            "logit_bias": None,
            "logprobs": None,
            "max_completion_tokens": 8,
            "max_tokens": None,
            "metadata": None,
            "modalities": None,
            "n": None,
            "parallel_tool_calls": None,
            "prediction": None,
            "presence_penalty": None,
            "prompt_cache_key": None,
            "prompt_cache_retention": None,
            "reasoning_effort": None,
            "response_format": None,
            "safety_identifier": None,
            "seed": None,
            "service_tier": None,
            "stop": None,
            "store": None,
            "stream": None,
            "stream_options": None,
            "temperature": None,
            "tool_choice": None,
            "tools": None,
            "top_logprobs": None,
            "top_p": None,
            "user": None,
            "verbosity": None,
            "web_search_options": None,
        },
        headers=STAINLESS,
        ignored=("messages.name",),
    ),
    Sent(
        "a message of an openai answer, sent back as it came",
        {
            "messages": [
                USER,
                {
                    "content": "Paris",
                    "refusal": None,
                    "role": "assistant",
                    "annotations": [],
                    "audio": None,
                    "function_call": None,
                    "tool_calls": None,
                },
                USER,
            ],
            "model": "tiny",
            "max_tokens": 8,
        },
    ),
    # sillytavern, src/endpoints/backends/chat-completions.js: a custom source
    Sent(
        "sillytavern, with a begun answer",
        {
            "messages": [SYSTEM, USER, {"role": "assistant", "content": "It is"}],
            "model": "tiny",
            "temperature": 1,
            "max_tokens": 8,
            "stream": True,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_p": 1,
            "top_k": 0,
            "min_p": 0,
            "repetition_penalty": 1,
            "logit_bias": {},
            "stop": [],
        },
    ),
    # vllm's own extra parameters, as its clients send them at their defaults
    Sent(
        "vllm extra_body",
        {
            "messages": [SYSTEM, USER, {"role": "assistant", "content": "It is"}],
            "model": "tiny",
            "max_tokens": 8,
            "continue_final_message": True,
            "add_generation_prompt": False,
            "skip_special_tokens": True,
            "spaces_between_special_tokens": True,
            "include_stop_str_in_output": False,
            "min_tokens": 0,
            "ignore_eos": False,
            "stop_token_ids": [],
            "chat_template_kwargs": None,
        },
        ignored=("spaces_between_special_tokens", "add_generation_prompt"),
    ),
]


@pytest.fixture(scope="module")
def http(gguf_file, bundle_folder, tmp_path_factory):
    """With answers short enough for a table of them; 512 tokens at most, as by default."""
    log = tmp_path_factory.mktemp("clients") / "audit.jsonl"
    with running(gguf_file, bundle_folder, log) as found, found.client() as client:
        yield client


@pytest.mark.parametrize("sent", SENT, ids=lambda sent: sent.client)
def test_a_client_is_answered_or_told_why_not(http, sent):
    limit = {} if {"max_tokens", "max_completion_tokens"} & set(sent.body) else {"max_tokens": 8}
    content = json.dumps(sent.body | limit)
    headers = {"Content-Type": "application/json"} | sent.headers
    response = http.post(sent.path, content=content, headers=headers)
    if sent.refused:
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == sent.refused
        assert error["message"].endswith(".")
        return
    assert response.status_code == 200, response.text
    if sent.body.get("stream"):
        *events, end = [line for line in response.text.split("\n") if line.startswith("data: ")]
        assert end == "data: [DONE]"
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        made = next(chunk for chunk in reversed(chunks) if "hq" in chunk)
    else:
        made = response.json()
    assert made["hq"]["ignored"] == list(sent.ignored)
    assert made["hq"]["decision"] == "pass"


def test_a_begun_answer_is_not_repeated(http):
    body = {"messages": [USER, {"role": "assistant", "content": "It is"}], "max_tokens": 6}
    made, new = (
        http.post(CHAT, json=body | o).json() for o in ({}, {"continue_final_message": False})
    )
    prompt = "<s>user: What is the capital of France?</s><s>assistant: It is"
    same = http.post(TEXT, json={"prompt": prompt, "max_tokens": 6}).json()
    assert made["choices"][0]["message"]["content"] == same["choices"][0]["text"]
    assert made["usage"] == same["usage"]
    assert new["usage"]["prompt_tokens"] > made["usage"]["prompt_tokens"]

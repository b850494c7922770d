"""Requests of libraries; a comment above each names the source file that creates it."""

from tests.harness.serve.bodies import STAINLESS, SYSTEM, TEXT, USER, Sent

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


LIBRARIES = [
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
        unsupported="tools",
    ),
    # _convert_message_to_dict: an AIMessage with tool calls has null content
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
        unsupported="messages",  # the test's template has no place for calls
    ),
    # langchain-openai, llms/base.py: BaseOpenAI._default_params; the prompt is in a list
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
        unsupported="prompt",
    ),
    # llama-index-llms-openai, base.py: _get_model_kwargs; also OpenAILike
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
    # litellm, llms/openai/openai.py, through the OpenAI client: fields of extra_body are at the top level
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
        unsupported="echo",
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
    # vercel ai sdk, packages/openai-compatible/src/chat: getArgs; undefined fields are omitted
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
        unsupported="messages.0.content.0",
    ),
    # the openai package, chat.completions.create, with every parameter that may be None
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
]

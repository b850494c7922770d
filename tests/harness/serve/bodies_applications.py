"""Requests of applications; a comment above each names the source file that creates it."""

from tests.harness.serve.bodies import STAINLESS, SYSTEM, TEXT, USER, Sent

FETCH = {"Content-Type": "application/json", "Accept": "*/*", "Origin": "http://localhost:3000"}

APPLICATIONS = [
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
        unsupported="max_tokens",
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
        unsupported="suffix",
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
    # llama.cpp, the older page, examples/server/webui
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
    # sillytavern, src/endpoints/backends/chat-completions.js: custom source
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
    # vllm's own extra parameters, at the defaults of its clients
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

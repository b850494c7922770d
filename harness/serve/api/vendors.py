"""Fields that clients send and that are not supported: neutral values and hints are accepted.

Where a field comes from stands above it.
"""

from typing import Annotated, Any

from harness.serve.api.treatment import Body, Hint, Only

Ignored = Annotated[Any, Hint()]
_SAMPLERS = "supported are temperature, top_p, top_k, min_p and the penalties"
_GRAMMAR = "use response_format with a JSON schema"
_TOOLS = "the model calls no tools"


class Vendors(Body):
    """Fields of both endpoints: clients send those of one to the other too."""

    # OpenAI
    logit_bias: Annotated[Any, Only({}, says="tokens cannot be biased")] = None
    store: Annotated[Any, Only(False, says="answers are not stored for the client")] = None
    metadata: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None

    # llama.cpp: caches and reports
    cache_prompt: Ignored = None
    id_slot: Ignored = None
    slot_id: Ignored = None
    n_keep: Ignored = None
    n_cache_reuse: Ignored = None
    timings_per_token: Ignored = None
    return_progress: Ignored = None
    return_tokens: Annotated[Any, Only(False, says="token ids are in hq's part of a stream")] = None
    reasoning_format: Ignored = None
    backend_sampling: Ignored = None
    # llama.cpp: samplers that are off, and the settings that they then have no use for
    samplers: Ignored = None
    min_keep: Annotated[Any, Only(0, 1, says=_SAMPLERS)] = None
    typical_p: Annotated[Any, Only(1, says=_SAMPLERS)] = None
    typ_p: Annotated[Any, Only(1, says=_SAMPLERS)] = None
    top_n_sigma: Annotated[Any, Only(-1, 0, says=_SAMPLERS)] = None
    tfs_z: Annotated[Any, Only(1, says=_SAMPLERS)] = None
    mirostat: Annotated[Any, Only(0, says=_SAMPLERS)] = None
    mirostat_tau: Ignored = None
    mirostat_eta: Ignored = None
    dynatemp_range: Annotated[Any, Only(0, says=_SAMPLERS)] = None
    dynatemp_exponent: Ignored = None
    xtc_probability: Annotated[Any, Only(0, says=_SAMPLERS)] = None
    xtc_threshold: Ignored = None
    dry_multiplier: Annotated[Any, Only(0, says=_SAMPLERS)] = None
    dry_base: Ignored = None
    dry_allowed_length: Ignored = None
    dry_penalty_last_n: Ignored = None
    dry_sequence_breakers: Ignored = None
    adaptive_target: Annotated[Any, Only(-1, says=_SAMPLERS)] = None
    adaptive_decay: Ignored = None
    penalize_nl: Ignored = None
    # llama.cpp: the rest
    n_predict: Annotated[Any, Only(-1, says="use max_tokens")] = None
    n_probs: Annotated[Any, Only(0, says="use logprobs")] = None
    post_sampling_probs: Annotated[Any, Only(False, says="logprobs are the model's own")] = None
    grammar: Annotated[Any, Only("", says=_GRAMMAR)] = None
    grammar_lazy: Annotated[Any, Only(False, says=_GRAMMAR)] = None
    json_schema: Annotated[Any, Only({}, says=_GRAMMAR)] = None
    lora: Annotated[Any, Only([], says="the model is served without adapters")] = None
    ignore_eos: Annotated[Any, Only(False, says="an answer ends where the model ends it")] = None
    t_max_predict_ms: Annotated[
        Any, Only(-1, 0, says="the policy limits the seconds of an answer")
    ] = None

    # vLLM, TGI, SGLang
    repetition_penalty: Annotated[Any, Only(1, says="use repeat_penalty")] = None
    length_penalty: Annotated[Any, Only(0, 1, says="answers are sampled, not searched")] = None
    use_beam_search: Annotated[Any, Only(False, says="answers are sampled, not searched")] = None
    early_stopping: Annotated[Any, Only(False, says="answers are sampled, not searched")] = None
    min_tokens: Annotated[Any, Only(0, says="an answer ends where the model ends it")] = None
    stop_token_ids: Annotated[Any, Only([], says="use stop")] = None
    bad_words: Annotated[Any, Only([], says="tokens cannot be biased")] = None
    include_stop_str_in_output: Annotated[
        Any, Only(False, says="a stop string is not part of the answer")
    ] = None
    skip_special_tokens: Annotated[
        Any, Only(True, says="special tokens are not part of the answer")
    ] = None
    spaces_between_special_tokens: Ignored = None
    detokenize: Annotated[Any, Only(True, says="answers are text")] = None
    truncate_prompt_tokens: Annotated[Any, Only(says="shorten the prompt")] = None
    prompt_logprobs: Annotated[Any, Only(0, says="only the answer has logprobs")] = None
    return_token_ids: Annotated[Any, Only(False, says="token ids are in hq's part of a stream")] = (
        None
    )
    return_tokens_as_token_ids: Annotated[Any, Only(False, says="logprobs name tokens")] = None
    structured_outputs: Annotated[Any, Only({}, says=_GRAMMAR)] = None
    guided_json: Annotated[Any, Only({}, "", says=_GRAMMAR)] = None
    guided_regex: Annotated[Any, Only("", says=_GRAMMAR)] = None
    guided_choice: Annotated[Any, Only([], says=_GRAMMAR)] = None
    guided_grammar: Annotated[Any, Only("", says=_GRAMMAR)] = None
    guided_decoding_backend: Ignored = None
    guided_whitespace_pattern: Annotated[Any, Only("", says=_GRAMMAR)] = None
    add_special_tokens: Ignored = None
    priority: Ignored = None
    request_id: Ignored = None
    cache_salt: Ignored = None

    # Ollama, Open WebUI, LM Studio, text-generation-webui
    keep_alive: Ignored = None
    ttl: Ignored = None
    options: Annotated[Any, Only({}, says=_SAMPLERS)] = None
    num_ctx: Ignored = None
    num_predict: Annotated[Any, Only(-1, says="use max_tokens")] = None
    think: Annotated[Any, Only(False, says="there is no reasoning to switch on")] = None
    top_a: Annotated[Any, Only(0, says=_SAMPLERS)] = None
    chat_id: Ignored = None
    session_id: Ignored = None
    features: Ignored = None

    # OpenRouter, LiteLLM
    provider: Ignored = None
    usage: Ignored = None
    transforms: Ignored = None
    models: Annotated[Any, Only([], says="one model is served")] = None
    route: Ignored = None
    reasoning: Annotated[Any, Only({}, says="there is no reasoning to switch on")] = None
    include_reasoning: Ignored = None
    enable_thinking: Annotated[Any, Only(False, says="there is no reasoning to switch on")] = None
    thinking: Annotated[
        Any, Only({"type": "disabled"}, False, says="there is no reasoning to switch on")
    ] = None
    extra_body: Annotated[Any, Only({}, says="write its fields beside the others")] = None
    extra_headers: Ignored = None
    cache: Ignored = None

    # OpenAI's chats
    tools: Annotated[Any, Only([], says=_TOOLS)] = None
    tool_choice: Annotated[Any, Only("none", "auto", says=_TOOLS)] = None
    parallel_tool_calls: Ignored = None
    functions: Annotated[Any, Only([], says=_TOOLS)] = None
    function_call: Annotated[Any, Only("none", "auto", says=_TOOLS)] = None
    modalities: Annotated[Any, Only(["text"], says="answers are text")] = None
    audio: Annotated[Any, Only(says="answers are text")] = None
    reasoning_effort: Annotated[Any, Only("none", says="there is no reasoning to switch on")] = None
    verbosity: Annotated[Any, Only("medium", says="ask for it in a message")] = None
    prediction: Ignored = None
    web_search_options: Annotated[Any, Only({}, says="nothing is searched for")] = None

    # Chats of vLLM and llama.cpp
    add_generation_prompt: Ignored = None
    chat_template: Annotated[Any, Only("", says="the model's own chat template is used")] = None
    chat_template_kwargs: Annotated[Any, Only({}, says="the chat template takes messages only")] = (
        None
    )
    documents: Annotated[Any, Only([], says="put them into a message")] = None
    parse_tool_calls: Ignored = None
    thinking_forced_open: Annotated[Any, Only(False, says="there is no reasoning to switch on")] = (
        None
    )
    mm_processor_kwargs: Annotated[Any, Only({}, says="messages are text")] = None

    # OpenAI's texts
    suffix: Annotated[Any, Only("", says="a text is continued at its end only")] = None
    echo: Annotated[Any, Only(False, says="the prompt is not repeated, and has no logprobs")] = None

    # Texts of llama.cpp
    input_prefix: Annotated[Any, Only("", says="a text is continued at its end only")] = None
    input_suffix: Annotated[Any, Only("", says="a text is continued at its end only")] = None
    input_extra: Annotated[Any, Only([], says="a text is continued at its end only")] = None
    image_data: Annotated[Any, Only([], says="prompts are text")] = None

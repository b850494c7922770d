"""Fields of other servers and clients, of which only neutral values or hints are accepted.

A comment above each group names its origin.
"""

from typing import Annotated, Any

from harness.serve.api.fields import IgnoredHint, NeutralOnly, RequestModel

Ignored = Annotated[Any, IgnoredHint()]
_SAMPLERS = "the supported samplers are temperature, top_p, top_k, min_p and the penalties"
_GRAMMAR = "use response_format with a JSON schema"
_TOOLS = "the model cannot call tools"


class VendorFields(RequestModel):
    """Fields of both endpoints: clients send the fields of one to the other too."""

    # OpenAI
    logit_bias: Annotated[Any, NeutralOnly({}, message="tokens cannot be biased")] = None
    store: Annotated[Any, NeutralOnly(False, message="answers are not stored for the client")] = (
        None
    )
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
    return_tokens: Annotated[
        Any, NeutralOnly(False, message="token ids are in the hq field of a stream")
    ] = None
    reasoning_format: Ignored = None
    backend_sampling: Ignored = None
    # llama.cpp: samplers at their neutral value, and their settings, which then have no effect
    samplers: Ignored = None
    min_keep: Annotated[Any, NeutralOnly(0, 1, message=_SAMPLERS)] = None
    typical_p: Annotated[Any, NeutralOnly(1, message=_SAMPLERS)] = None
    typ_p: Annotated[Any, NeutralOnly(1, message=_SAMPLERS)] = None
    top_n_sigma: Annotated[Any, NeutralOnly(-1, 0, message=_SAMPLERS)] = None
    tfs_z: Annotated[Any, NeutralOnly(1, message=_SAMPLERS)] = None
    mirostat: Annotated[Any, NeutralOnly(0, message=_SAMPLERS)] = None
    mirostat_tau: Ignored = None
    mirostat_eta: Ignored = None
    dynatemp_range: Annotated[Any, NeutralOnly(0, message=_SAMPLERS)] = None
    dynatemp_exponent: Ignored = None
    xtc_probability: Annotated[Any, NeutralOnly(0, message=_SAMPLERS)] = None
    xtc_threshold: Ignored = None
    dry_multiplier: Annotated[Any, NeutralOnly(0, message=_SAMPLERS)] = None
    dry_base: Ignored = None
    dry_allowed_length: Ignored = None
    dry_penalty_last_n: Ignored = None
    dry_sequence_breakers: Ignored = None
    adaptive_target: Annotated[Any, NeutralOnly(-1, message=_SAMPLERS)] = None
    adaptive_decay: Ignored = None
    penalize_nl: Ignored = None
    # llama.cpp: other fields
    n_predict: Annotated[Any, NeutralOnly(-1, message="use max_tokens")] = None
    n_probs: Annotated[Any, NeutralOnly(0, message="use logprobs")] = None
    post_sampling_probs: Annotated[
        Any,
        NeutralOnly(
            False, message="logprobs are computed before penalties, schema and temperature"
        ),
    ] = None
    grammar: Annotated[Any, NeutralOnly("", message=_GRAMMAR)] = None
    grammar_lazy: Annotated[Any, NeutralOnly(False, message=_GRAMMAR)] = None
    json_schema: Annotated[Any, NeutralOnly({}, message=_GRAMMAR)] = None
    lora: Annotated[Any, NeutralOnly([], message="the model is served without adapters")] = None
    ignore_eos: Annotated[
        Any, NeutralOnly(False, message="the model decides where an answer ends")
    ] = None
    t_max_predict_ms: Annotated[
        Any, NeutralOnly(-1, 0, message="the policy limits the time of an answer")
    ] = None

    # vLLM, TGI, SGLang
    repetition_penalty: Annotated[Any, NeutralOnly(1, message="use repeat_penalty")] = None
    length_penalty: Annotated[
        Any, NeutralOnly(0, 1, message="answers are sampled, without beam search")
    ] = None
    use_beam_search: Annotated[
        Any, NeutralOnly(False, message="answers are sampled, without beam search")
    ] = None
    early_stopping: Annotated[
        Any, NeutralOnly(False, message="answers are sampled, without beam search")
    ] = None
    min_tokens: Annotated[Any, NeutralOnly(0, message="the model decides where an answer ends")] = (
        None
    )
    stop_token_ids: Annotated[Any, NeutralOnly([], message="use stop")] = None
    bad_words: Annotated[Any, NeutralOnly([], message="tokens cannot be biased")] = None
    include_stop_str_in_output: Annotated[
        Any, NeutralOnly(False, message="a stop string is not part of the answer")
    ] = None
    skip_special_tokens: Annotated[
        Any, NeutralOnly(True, message="special tokens are not part of the answer")
    ] = None
    spaces_between_special_tokens: Ignored = None
    detokenize: Annotated[Any, NeutralOnly(True, message="answers are text")] = None
    truncate_prompt_tokens: Annotated[Any, NeutralOnly(message="shorten the prompt")] = None
    prompt_logprobs: Annotated[Any, NeutralOnly(0, message="only the answer has logprobs")] = None
    return_token_ids: Annotated[
        Any, NeutralOnly(False, message="token ids are in the hq field of a stream")
    ] = None
    return_tokens_as_token_ids: Annotated[
        Any, NeutralOnly(False, message="logprobs name tokens")
    ] = None
    structured_outputs: Annotated[Any, NeutralOnly({}, message=_GRAMMAR)] = None
    guided_json: Annotated[Any, NeutralOnly({}, "", message=_GRAMMAR)] = None
    guided_regex: Annotated[Any, NeutralOnly("", message=_GRAMMAR)] = None
    guided_choice: Annotated[Any, NeutralOnly([], message=_GRAMMAR)] = None
    guided_grammar: Annotated[Any, NeutralOnly("", message=_GRAMMAR)] = None
    guided_decoding_backend: Ignored = None
    guided_whitespace_pattern: Annotated[Any, NeutralOnly("", message=_GRAMMAR)] = None
    add_special_tokens: Ignored = None
    priority: Ignored = None
    request_id: Ignored = None
    cache_salt: Ignored = None

    # Ollama, Open WebUI, LM Studio, text-generation-webui
    keep_alive: Ignored = None
    ttl: Ignored = None
    options: Annotated[Any, NeutralOnly({}, message=_SAMPLERS)] = None
    num_ctx: Ignored = None
    num_predict: Annotated[Any, NeutralOnly(-1, message="use max_tokens")] = None
    think: Annotated[Any, NeutralOnly(False, message="the model answers without reasoning")] = None
    top_a: Annotated[Any, NeutralOnly(0, message=_SAMPLERS)] = None
    chat_id: Ignored = None
    session_id: Ignored = None
    features: Ignored = None

    # OpenRouter, LiteLLM
    provider: Ignored = None
    usage: Ignored = None
    transforms: Ignored = None
    models: Annotated[Any, NeutralOnly([], message="one model is served")] = None
    route: Ignored = None
    reasoning: Annotated[Any, NeutralOnly({}, message="the model answers without reasoning")] = None
    include_reasoning: Ignored = None
    enable_thinking: Annotated[
        Any, NeutralOnly(False, message="the model answers without reasoning")
    ] = None
    thinking: Annotated[
        Any, NeutralOnly({"type": "disabled"}, False, message="the model answers without reasoning")
    ] = None
    extra_body: Annotated[
        Any, NeutralOnly({}, message="write its fields at the top level of the request")
    ] = None
    extra_headers: Ignored = None
    cache: Ignored = None

    # OpenAI, chat completions
    tools: Annotated[Any, NeutralOnly([], message=_TOOLS)] = None
    tool_choice: Annotated[Any, NeutralOnly("none", "auto", message=_TOOLS)] = None
    parallel_tool_calls: Ignored = None
    functions: Annotated[Any, NeutralOnly([], message=_TOOLS)] = None
    function_call: Annotated[Any, NeutralOnly("none", "auto", message=_TOOLS)] = None
    modalities: Annotated[Any, NeutralOnly(["text"], message="answers are text")] = None
    audio: Annotated[Any, NeutralOnly(message="answers are text")] = None
    reasoning_effort: Annotated[
        Any, NeutralOnly("none", message="the model answers without reasoning")
    ] = None
    verbosity: Annotated[Any, NeutralOnly("medium", message="ask for it in a message")] = None
    prediction: Ignored = None
    web_search_options: Annotated[
        Any, NeutralOnly({}, message="the server cannot search the web")
    ] = None

    # vLLM and llama.cpp, chat completions
    add_generation_prompt: Ignored = None
    chat_template: Annotated[
        Any, NeutralOnly("", message="the model's own chat template is used")
    ] = None
    chat_template_kwargs: Annotated[
        Any, NeutralOnly({}, message="the chat template receives messages only")
    ] = None
    documents: Annotated[Any, NeutralOnly([], message="put them into a message")] = None
    parse_tool_calls: Ignored = None
    thinking_forced_open: Annotated[
        Any, NeutralOnly(False, message="the model answers without reasoning")
    ] = None
    mm_processor_kwargs: Annotated[Any, NeutralOnly({}, message="messages are text")] = None

    # OpenAI, completions
    suffix: Annotated[Any, NeutralOnly("", message="a text can only be continued at its end")] = (
        None
    )
    echo: Annotated[
        Any, NeutralOnly(False, message="the prompt is not part of the answer and has no logprobs")
    ] = None

    # llama.cpp, completions
    input_prefix: Annotated[
        Any, NeutralOnly("", message="a text can only be continued at its end")
    ] = None
    input_suffix: Annotated[
        Any, NeutralOnly("", message="a text can only be continued at its end")
    ] = None
    input_extra: Annotated[
        Any, NeutralOnly([], message="a text can only be continued at its end")
    ] = None
    image_data: Annotated[Any, NeutralOnly([], message="prompts are text")] = None

"""The official OpenAI client, and curl, against a running server."""

import json
import subprocess

import openai
import pytest

from tests.harness.serve.conftest import ask, close_to


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as openai_client:
        yield openai_client


@pytest.fixture(scope="module")
def name(client):
    return client.models.list().data[0].id


def test_the_model_is_listed(client, name):
    assert client.models.retrieve(name).id == name == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_an_answer(client, name, served):
    completion = client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "the model"}], max_tokens=8
    )
    choice = completion.choices[0]
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert completion.usage.completion_tokens == len(completion.hq["tokens"])
    assert "".join(text for text, _, _ in completion.hq["tokens"]) == choice.message.content
    assert completion.hq["score"] == completion.hq["tokens"][-1][2]
    assert (completion.hq["verdict"], completion.hq["decision"]) == ("no hallucination", "pass")
    line = served.line(completion.hq["audit_id"])
    assert line["outcome"] == "completed"
    assert line["score"] == completion.hq["score"]
    assert completion.id == f"chatcmpl-{line['id']}"


def test_a_stream_equals_the_complete_answer(client, name):
    messages = [{"role": "user", "content": "the model"}]
    complete = client.chat.completions.create(model=name, messages=messages, max_tokens=8)
    first, *chunks, last, usage = client.chat.completions.create(
        model=name,
        messages=messages,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert first.choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert text == complete.choices[0].message.content
    readings = [chunk.hq for chunk in chunks]
    assert [r["token_score"] for r in readings] == [score for _, score, _ in complete.hq["tokens"]]
    assert [r["score"] for r in readings] == [score for _, _, score in complete.hq["tokens"]]
    assert all(len(reading["neurons"]) == 3 for reading in readings)
    assert last.choices[0].finish_reason == complete.choices[0].finish_reason
    different = {"audit_id", "seed", "tokens"}
    assert {k: v for k, v in last.hq.items() if k not in different} == {
        k: v for k, v in complete.hq.items() if k not in different
    }
    assert usage.usage == complete.usage
    assert usage.choices == []


def test_alpha_and_domain_in_the_extension(client, name):
    completion = client.chat.completions.create(
        model=name,
        messages=[{"role": "user", "content": "the model"}],
        max_tokens=8,
        extra_body={"hq": {"alpha": 0.5, "domain": "noted"}},
    )
    assert (completion.hq["alpha"], completion.hq["domain"]) == (0.5, "noted")
    assert (completion.hq["verdict"], completion.hq["decision"]) == ("hallucination", "annotate")


def test_text_completions(client, name):
    complete = client.completions.create(model=name, prompt="the model is", max_tokens=6)
    chunks = list(
        client.completions.create(model=name, prompt="the model is", max_tokens=6, stream=True)
    )
    assert complete.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks)
    assert chunks[-1].hq["score"] == close_to(complete.hq["score"])
    assert complete.id.startswith("cmpl-")


def test_errors_become_the_clients_exceptions(client, name):
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=name, messages=messages, n=9)
    assert error.value.param == "n"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model=name,
            messages=messages,
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    assert (error.value.param, error.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-4", messages=messages)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model=name, messages=messages, extra_body={"hq": {"alpha": 9}}
        )
    assert error.value.param == "hq.alpha"


def test_a_conversation_continues_with_the_clients_message(client, name):
    messages = [{"role": "user", "content": "one"}]
    completion = client.chat.completions.create(model=name, messages=messages, max_tokens=4)
    message = completion.choices[0].message.model_dump()
    messages += [message, {"role": "user", "content": [{"type": "text", "text": "two"}]}]
    second = client.chat.completions.create(model=name, messages=messages, max_tokens=4)
    assert second.usage.prompt_tokens > completion.usage.prompt_tokens


def test_the_asynchronous_client(served, name):
    import asyncio

    async def stream():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            completion = await client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": "the model"}],
                max_tokens=4,
                stream=True,
            )
            return [chunk async for chunk in completion]

    assert asyncio.run(stream())[-1].hq["decision"] == "pass"


def test_curl(served):
    command = ["curl", "-sS", "--no-buffer", f"{served.url}/v1/chat/completions"]
    command += ["-H", "Content-Type: application/json", "-d"]
    complete = subprocess.run([*command, json.dumps(ask())], capture_output=True, check=True)
    answer = json.loads(complete.stdout)
    streamed = subprocess.run(
        [*command, json.dumps(ask(stream=True))],
        capture_output=True,
        check=True,
        text=True,
        encoding="utf-8",
    )
    *events, end = [line for line in streamed.stdout.split("\n") if line]
    assert end == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == answer["choices"][0]["message"]["content"]


def test_logprobs(client, name):
    arguments = {"model": name, "messages": [{"role": "user", "content": "the model"}]}
    arguments |= {"max_tokens": 4, "logprobs": True, "top_logprobs": 3}
    complete = client.chat.completions.create(**arguments).choices[0].logprobs.content
    chunks = client.chat.completions.create(**arguments, stream=True)
    streamed = [
        token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content
    ]
    assert streamed == complete
    assert len(complete) == 4
    assert all(len(token.top_logprobs) == 3 for token in complete)
    assert complete[0].top_logprobs[0].token == complete[0].token
    text = client.completions.create(model=name, prompt="the model", max_tokens=4, logprobs=2)
    assert len(text.choices[0].logprobs.token_logprobs) == 4


def test_several_answers(client, name):
    arguments = {"model": name, "messages": [{"role": "user", "content": "the model"}], "n": 3}
    arguments |= {"max_tokens": 4, "temperature": 1.5, "seed": 2}
    completion = client.chat.completions.create(**arguments)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert len({choice.hq["audit_id"] for choice in completion.choices}) == 3
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**arguments, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in completion.choices]
    text = client.completions.create(model=name, prompt="the", max_tokens=2, n=2, best_of=2)
    assert len(text.choices) == 2


def test_an_answer_as_a_pydantic_model(client, name):
    from pydantic import BaseModel, Field

    class Place(BaseModel):
        city: str = Field(max_length=4)
        people: int = Field(ge=0, le=9)

    arguments = {"model": name, "messages": [{"role": "user", "content": "the model"}]}
    completion = client.chat.completions.parse(**arguments, response_format=Place, max_tokens=120)
    place = completion.choices[0].message.parsed
    assert isinstance(place, Place)
    assert len(place.city) <= 4
    with client.chat.completions.stream(
        **arguments, response_format=Place, max_tokens=120
    ) as stream:
        last = stream.get_final_completion()
    assert last.choices[0].message.parsed == place


def test_a_schema_that_cannot_be_enforced(client, name):
    schema = {"name": "x", "schema": {"type": "array", "uniqueItems": True}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as error:
        client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": "hello"}],
            response_format={"type": "json_schema", "json_schema": schema},
        )
    assert error.value.code == "invalid_schema"

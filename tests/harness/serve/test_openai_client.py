"""The official client, and curl, against a server that runs."""

import json
import subprocess

import openai
import pytest

from tests.harness.serve.conftest import ask


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def name(client):
    return client.models.list().data[0].id


def test_the_model_is_listed_and_found(client, name):
    assert client.models.retrieve(name).id == name == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_an_answer(client, name, served):
    made = client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "the model"}], max_tokens=8
    )
    choice = made.choices[0]
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert made.usage.completion_tokens == len(made.hq["tokens"])
    assert "".join(text for text, _, _ in made.hq["tokens"]) == choice.message.content
    assert made.hq["score"] == made.hq["tokens"][-1][2]
    assert (made.hq["verdict"], made.hq["decision"]) == ("no hallucination", "pass")
    line = served.line(made.hq["audit_id"])
    assert line["outcome"] == "completed"
    assert line["score"] == made.hq["score"]
    assert made.id == f"chatcmpl-{line['id']}"


def test_a_stream_is_the_same_answer(client, name):
    messages = [{"role": "user", "content": "the model"}]
    whole = client.chat.completions.create(model=name, messages=messages, max_tokens=8)
    first, *chunks, last, usage = client.chat.completions.create(
        model=name,
        messages=messages,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert first.choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert text == whole.choices[0].message.content
    readings = [chunk.hq for chunk in chunks]
    assert [r["token_score"] for r in readings] == [score for _, score, _ in whole.hq["tokens"]]
    assert [r["score"] for r in readings] == [score for _, _, score in whole.hq["tokens"]]
    assert all(len(reading["neurons"]) == 3 for reading in readings)
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    unlike = {"audit_id", "seed", "tokens"}
    assert {k: v for k, v in last.hq.items() if k not in unlike} == {
        k: v for k, v in whole.hq.items() if k not in unlike
    }
    assert usage.usage == whole.usage
    assert usage.choices == []


def test_alpha_and_domain_go_in_the_extension(client, name):
    made = client.chat.completions.create(
        model=name,
        messages=[{"role": "user", "content": "the model"}],
        max_tokens=8,
        extra_body={"hq": {"alpha": 0.5, "domain": "noted"}},
    )
    assert (made.hq["alpha"], made.hq["domain"]) == (0.5, "noted")
    assert (made.hq["verdict"], made.hq["decision"]) == ("hallucination", "annotate")


def test_texts_are_gone_on_with_too(client, name):
    whole = client.completions.create(model=name, prompt="the model is", max_tokens=6)
    chunks = list(
        client.completions.create(model=name, prompt="the model is", max_tokens=6, stream=True)
    )
    assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks)
    assert chunks[-1].hq["score"] == whole.hq["score"]
    assert whole.id.startswith("cmpl-")


def test_errors_are_what_the_client_knows(client, name):
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=name, messages=messages, n=9)
    assert refused.value.param == "n"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=name,
            messages=messages,
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    assert (refused.value.param, refused.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-4", messages=messages)
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=name, messages=messages, extra_body={"hq": {"alpha": 9}}
        )
    assert refused.value.param == "hq.alpha"


def test_a_conversation_goes_on_with_what_the_client_was_given(client, name):
    messages = [{"role": "user", "content": "one"}]
    made = client.chat.completions.create(model=name, messages=messages, max_tokens=4)
    said = made.choices[0].message.model_dump()
    messages += [said, {"role": "user", "content": [{"type": "text", "text": "two"}]}]
    again = client.chat.completions.create(model=name, messages=messages, max_tokens=4)
    assert again.usage.prompt_tokens > made.usage.prompt_tokens


def test_the_asynchronous_client(served, name):
    import asyncio

    async def stream():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            made = await client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": "the model"}],
                max_tokens=4,
                stream=True,
            )
            return [chunk async for chunk in made]

    assert asyncio.run(stream())[-1].hq["decision"] == "pass"


def test_curl(served):
    command = ["curl", "-sS", "--no-buffer", f"{served.url}/v1/chat/completions"]
    command += ["-H", "Content-Type: application/json", "-d"]
    whole = subprocess.run([*command, json.dumps(ask())], capture_output=True, check=True)
    answer = json.loads(whole.stdout)
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
    asked = {"model": name, "messages": [{"role": "user", "content": "the model"}]}
    asked |= {"max_tokens": 4, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    chunks = client.chat.completions.create(**asked, stream=True)
    found = [
        one for chunk in chunks for c in chunk.choices if c.logprobs for one in c.logprobs.content
    ]
    assert found == whole
    assert len(whole) == 4
    assert all(len(one.top_logprobs) == 3 for one in whole)
    assert whole[0].top_logprobs[0].token == whole[0].token
    text = client.completions.create(model=name, prompt="the model", max_tokens=4, logprobs=2)
    assert len(text.choices[0].logprobs.token_logprobs) == 4


def test_several_answers(client, name):
    asked = {"model": name, "messages": [{"role": "user", "content": "the model"}], "n": 3}
    asked |= {"max_tokens": 4, "temperature": 1.5, "seed": 2}
    made = client.chat.completions.create(**asked)
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    assert len({choice.hq["audit_id"] for choice in made.choices}) == 3
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in made.choices]
    text = client.completions.create(model=name, prompt="the", max_tokens=2, n=2, best_of=2)
    assert len(text.choices) == 2


def test_an_answer_as_a_pydantic_model(client, name):
    from pydantic import BaseModel, Field

    class Place(BaseModel):
        city: str = Field(max_length=4)
        people: int = Field(ge=0, le=9)

    asked = {"model": name, "messages": [{"role": "user", "content": "the model"}]}
    made = client.chat.completions.parse(**asked, response_format=Place, max_tokens=120)
    place = made.choices[0].message.parsed
    assert isinstance(place, Place)
    assert len(place.city) <= 4
    with client.chat.completions.stream(**asked, response_format=Place, max_tokens=120) as stream:
        last = stream.get_final_completion()
    assert last.choices[0].message.parsed == place


def test_a_schema_that_cannot_be_enforced(client, name):
    schema = {"name": "x", "schema": {"type": "array", "uniqueItems": True}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as refused:
        client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": "hello"}],
            response_format={"type": "json_schema", "json_schema": schema},
        )
    assert refused.value.code == "invalid_schema"

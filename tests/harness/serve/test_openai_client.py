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
        [*command, json.dumps(ask(stream=True))], capture_output=True, check=True, text=True
    )
    *events, end = [line for line in streamed.stdout.split("\n") if line]
    assert end == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == answer["choices"][0]["message"]["content"]

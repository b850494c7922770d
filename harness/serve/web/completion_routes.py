"""The routes /v1/chat/completions and /v1/completions."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from harness.serve.api.errors import ERROR_RESPONSES, failure_error, submission_error
from harness.serve.api.requests import ChatRequest, CompletionRequest, TextRequest
from harness.serve.api.responses import ChatCompletion, TextCompletion
from harness.serve.api.wire_format import KEEP_ALIVE_COMMENT, ResponseEncoder
from harness.serve.generation.answer import FinalAnswer, GenerationRequest, Token
from harness.serve.generation.engine import EngineUnavailable, QueueFull
from harness.serve.generation.queue import Event, Failure, Job
from harness.serve.web.mailbox import Mailbox
from harness.serve.web.middleware import JSONRoute
from harness.serve.web.service import Service

KEEP_ALIVE_SECONDS = 10.0  # pause in a stream after which a comment is sent
_STREAM: dict[str, Any] = {"content": {"text/event-stream": {}}}


class EventQueue:
    """Passes the events of one request from the engine's thread to the event loop.

    Create it in the event loop. Each event has the index of its choice.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._loop, self._mailbox = asyncio.get_running_loop(), mailbox
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def put(self, choice: int, event: Event) -> None:
        """Add an event. Thread-safe; does nothing if the loop has ended."""
        self._mailbox.call(self._loop, partial(self._events.put_nowait, (choice, event)))

    async def get(self, timeout: float) -> tuple[int, Event] | None:
        """Return the next event, or None after `timeout` seconds without one."""
        try:
            return await asyncio.wait_for(self._events.get(), timeout)
        except TimeoutError:
            return None

    async def answers(self, count: int) -> list[FinalAnswer] | Failure:
        """Return all final answers in order, or the first failure; tokens are dropped."""
        answers: dict[int, FinalAnswer] = {}
        while len(answers) < count:
            choice, event = await self._events.get()
            if isinstance(event, Failure):
                return event
            if isinstance(event, FinalAnswer):
                answers[choice] = event
        return [answers[choice] for choice in range(count)]


def completion_routes(service: Service) -> APIRouter:
    """Return the router of both kinds of completion."""
    router = APIRouter(responses=ERROR_RESPONSES, route_class=JSONRoute)

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: _STREAM})
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer the last message of a conversation."""
        generation_request = await run_in_threadpool(service.validator.validate_chat, body)
        prompt = [{"role": message.role, "content": message.text} for message in body.messages]
        return await _complete(service, request, body, generation_request, prompt)

    @router.post("/v1/completions", response_model=TextCompletion, responses={200: _STREAM})
    async def text(body: TextRequest, request: Request) -> Response:
        """Continue a text."""
        generation_request = await run_in_threadpool(service.validator.validate_text, body)
        return await _complete(service, request, body, generation_request, body.prompt)

    return router


async def _complete(
    service: Service,
    request: Request,
    body: CompletionRequest,
    generation_request: GenerationRequest,
    prompt: str | list[Any],
) -> Response:
    events = EventQueue(service.mailbox)
    deadline = time.monotonic() + service.policy.limits.seconds
    ids = [uuid.uuid4().hex for _ in range(body.answers)]
    jobs = [
        Job(
            id=id,
            endpoint=request.url.path,
            request=_with_choice_seed(generation_request, choice),
            prompt=prompt,
            deadline=deadline,
            deliver=partial(events.put, choice),
            request_id=ids[0],
            choice=choice,
            client=request.state.client,
            user=body.user,
        )
        for choice, id in enumerate(ids)
    ]
    try:
        service.engine.submit(jobs)
    except (EngineUnavailable, QueueFull) as error:
        raise submission_error(error) from error
    is_chat, ignored = isinstance(body, ChatRequest), list(dict.fromkeys(body.ignored()))
    encoder = ResponseEncoder(jobs, service.model.name, is_chat, ignored)
    headers = {"x-request-id": ids[0]}
    if body.stream:
        stream = _stream(service, events, encoder, body.reports_usage)
        headers["Cache-Control"] = "no-store"
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    answers = await _answers(service, events, jobs, request)
    if isinstance(answers, Failure):
        raise failure_error(answers)
    content = encoder.completion(answers).model_dump_json()
    return Response(content, media_type="application/json", headers=headers)


def _with_choice_seed(request: GenerationRequest, choice: int) -> GenerationRequest:
    """Give each of several answers a seed of its own, so that a client can repeat it alone."""
    seed = (request.sampling.seed + choice) % 2**63
    return replace(request, sampling=replace(request.sampling, seed=seed))


async def _stream(
    service: Service, events: EventQueue, encoder: ResponseEncoder, with_usage: bool
) -> AsyncIterator[bytes]:
    """The stream's bytes. The generator is closed if the client disconnects or the server ends."""
    try:
        for chunk in encoder.stream_start():
            yield chunk
        answers: list[FinalAnswer] = []
        while len(answers) < len(encoder.jobs):
            received = await events.get(KEEP_ALIVE_SECONDS)
            if received is None:
                yield KEEP_ALIVE_COMMENT
                continue
            choice, event = received
            if isinstance(event, Failure):
                yield encoder.error(failure_error(event))
                return
            if isinstance(event, Token):
                yield encoder.token(choice, event)
            else:
                answers.append(event)
                for chunk in encoder.answer_end(choice, event):
                    yield chunk
        for chunk in encoder.stream_end(answers, with_usage):
            yield chunk
    finally:
        _stop_jobs(service, encoder.jobs)


async def _answers(
    service: Service, events: EventQueue, jobs: Sequence[Job], request: Request
) -> list[FinalAnswer] | Failure:
    """Wait for the answers of a request without streaming, or until the client disconnects."""
    answers = asyncio.ensure_future(events.answers(len(jobs)))
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({answers, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        return answers.result() if answers.done() else Failure("disconnected")
    finally:
        _stop_jobs(service, jobs)
        answers.cancel()
        disconnected.cancel()


def _stop_jobs(service: Service, jobs: Sequence[Job]) -> None:
    """Stop jobs that nobody waits for; finished jobs are not affected."""
    for job in jobs:
        job.stop(service.engine.disconnect_reason)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

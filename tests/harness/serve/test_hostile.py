"""Fuzzing: valid and invalid requests, generated from the server's OpenAPI description."""

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.harness.serve.conftest import running

# Policy and context reject requests that the schema allows, so acceptance is not checked.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
STATUSES: Counter[int] = Counter()


@pytest.fixture(scope="module")
def target(gguf_file, bundle_folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("hostile") / "audit.jsonl"
    limits = {"new_tokens": 4, "body_bytes": 1 << 16}
    with running(gguf_file, bundle_folder, log, policy={"limits": limits}) as server:
        yield server


OPERATIONS = ["POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models/{name}"]


@pytest.fixture(scope="module")
def operations(target):
    schema = schemathesis.openapi.from_url(f"{target.url}/openapi.json")
    operations = (result.ok() for result in schema.get_all_operations())
    return {operation.label: operation for operation in operations}


def test_every_route_is_described(operations):
    assert set(OPERATIONS) < set(operations)


@pytest.mark.parametrize("label", OPERATIONS)
@pytest.mark.parametrize("mode", [GenerationMode.NEGATIVE, GenerationMode.POSITIVE])
def test_every_response_conforms_to_the_description(operations, label, mode):
    if (label, mode) == (OPERATIONS[-1], GenerationMode.NEGATIVE):
        return  # every text is a valid name

    @settings(
        max_examples=120 if mode == GenerationMode.NEGATIVE else 30,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(operations[label].as_strategy(generation_mode=mode))
    def ask(case):
        response = case.call_and_validate(checks=CHECKS)
        STATUSES[response.status_code] += 1

    ask()


def test_the_server_survives_many_invalid_requests(target):
    assert sum(count for status, count in STATUSES.items() if 400 <= status < 500) >= 200, STATUSES
    assert STATUSES[200] > 0
    assert not [status for status in STATUSES if status >= 500]
    with target.client() as http:
        assert http.get("/readyz").status_code == 200
    answered = target.lines()  # the log is intact, and only answers are recorded
    assert {line["outcome"] for line in answered} <= {"completed"}

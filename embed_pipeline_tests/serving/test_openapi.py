"""Fuzzing from the OpenAPI document: no 5xx, and every answer is what the document says."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from embed_pipeline.serving.openapi import openapi_document
from embed_pipeline.settings import Serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    allow_header_conformance,
    unsupported_method,
]
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
OPERATIONS = [
    (path, method, mode)
    for path, methods in openapi_document(Serving(), [])["paths"].items()
    for method in methods
    # A GET takes nothing that could be wrong.
    for mode in ((POSITIVE, NEGATIVE) if method == "post" else (POSITIVE,))
]


@pytest.fixture(scope="module")
def document(endpoint):
    return schemathesis.openapi.from_url(f"{endpoint.url}/openapi.json")


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method", "mode"), OPERATIONS)
def test_every_answer_fits_the_document(document, endpoint, path, method, mode):
    operation = document[path][method.upper()]
    statuses = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def fuzz(case):
        answer = case.call(base_url=endpoint.url)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    fuzz()
    if method == "post":
        assert (200 if mode is POSITIVE else 400) in statuses


def test_a_strict_endpoint_says_that_it_wants_the_input_type():
    lax, strict = (
        openapi_document(Serving(strict_input_type=value), [])["components"]["schemas"]["EmbeddingRequest"]
        for value in (False, True)
    )
    assert lax["required"] == ["input", "model"]
    assert strict["required"] == ["input", "model", "input_type"]
    assert strict["properties"]["input_type"] == {"enum": ["query", "passage"]}

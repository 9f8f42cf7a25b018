"""What a failure is about: the shapes and words that providers have for the same trouble."""

# ruff: noqa: E501 - bodies as the providers send them
from __future__ import annotations

import json

import pytest

from embed_pipeline.llm.failures import read_failure
from embed_pipeline.llm.scope import scope_of


def _openai(message: str, **fields: object) -> str:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", **fields}})


ITEM = [
    ("prompt_filtered", 400, _openai("Invalid prompt: your prompt was flagged as potentially violating our usage policy.", code="invalid_prompt")),
    ("prompt_filtered", 400, _openai("The response was filtered.", code="content_filter")),
    ("prompt_filtered", 400, json.dumps({"code": "DataInspectionFailed", "message": "Input data may contain inappropriate content."})),
    ("prompt_filtered", 400, json.dumps({"error": {"code": "data_inspection_failed", "message": "Input text data may be bad"}})),
    ("prompt_filtered", 403, json.dumps({"code": "The caller does not have permission to execute the specified operation", "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"})),
    ("prompt_filtered", 400, json.dumps({"error": {"code": "BadRequest", "message": "Refused.", "innererror": {"code": "ResponsibleAIPolicyViolation"}}})),
    ("prompt_filtered", 400, json.dumps({"error": {"code": "1301", "message": "The system detected potentially unsafe or sensitive content"}})),
    ("prompt_too_long", 400, json.dumps([{"error": {"code": 400, "message": "The input token count (41000) exceeds the maximum number of tokens allowed (32768).", "status": "INVALID_ARGUMENT"}}])),
    ("prompt_too_long", 422, json.dumps({"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1900", "error_type": "validation"})),
    ("prompt_too_long", 400, _openai("This model's maximum context length is 8192 tokens.", code="context_length_exceeded")),
    ("prompt_too_long", 400, json.dumps({"detail": [{"type": "string_too_long", "loc": ["body", "messages", 0, "content"], "msg": "String should have at most 9 characters"}]})),
    ("prompt_too_long", 500, json.dumps({"error": {"code": 500, "message": "the request exceeds the available context size", "type": "exceed_context_size_error"}})),
    ("prompt_too_long", 400, json.dumps({"error": "Trying to keep the first 5022 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens, which is not enough."})),
    ("prompt_too_long", 400, _openai("Invalid request: Your request exceeded model token limit: 8192")),
    ("prompt_too_long", 400, _openai("The prompt is too long: 140000, model maximum context length: 131071")),
    ("prompt_too_long", 400, json.dumps({"error": "The number of tokens to keep from the initial prompt is greater than the context length."})),
    ("prompt_too_long", 400, json.dumps({"object": "error", "message": "max_tokens must be at least 1, got -186.", "type": "BadRequestError"})),
    ("prompt_too_long", 400, json.dumps({"error": {"code": "1261", "message": "Prompt 超长"}})),
    ("prompt_too_long", 429, _openai("Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 342389. The input or output tokens must be reduced in order to run successfully.", code="rate_limit_exceeded")),
    ("prompt_too_long", 424, json.dumps({"error": "Received client error (422): `inputs` tokens + `max_new_tokens` must be <= 4096"})),
    ("prompt_filtered", 400, json.dumps({"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}})),
    ("prompt_filtered", 424, json.dumps({"errors": [{"code": 2016, "message": "Prompt blocked due to security configurations"}]})),
    ("prompt_filtered", 0, json.dumps({"base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}})),
    ("prompt_filtered", 500, _openai("Guardrail raised an exception, Guardrail: pii, Message: Blocked entity detected: EMAIL")),
    ("prompt_filtered", 400, json.dumps({"error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}})),
    ("prompt_too_long", 400, json.dumps({"code": "InvalidParameter", "message": "Range of input length should be [1, 6000]"})),
    ("prompt_too_long", 413, "<html><title>413 Request Entity Too Large</title></html>"),
    ("invalid_answer", 400, json.dumps({"error": {"message": "Failed to generate JSON.", "code": "json_validate_failed", "failed_generation": "{"}})),
]  # fmt: skip
MOMENT = [
    (429, _openai("Rate limit reached", type="tokens", code="rate_limit_exceeded")),
    (429, json.dumps({"message": "Tokens per minute limit exceeded - too many tokens processed.", "type": "too_many_tokens_error", "param": "quota", "code": "token_quota_exceeded"})),
    (429, _openai("Too many tokens", code="tokens_limit_exceeded")),
    (0, _openai("Tokens per minute limit exceeded", code="token_quota_exceeded")),
    (502, "<html>Bad gateway: too many messages</html>"),
    (429, _openai("Requests throttled, exceeded your current quota", code="insufficient_quota"), {"retry-after": "3"}),
    (400, _openai("Too many requests, please slow down.", code="rate_limit_exceeded")),
    (400, json.dumps({"error": {"message": "litellm.RateLimitError: AnthropicException - {\"error\": {\"type\": \"rate_limit_error\", \"message\": \"slow\"}}", "code": "400"}})),
    (400, json.dumps({"error": {"code": 400, "message": "Resource has been exhausted", "status": "RESOURCE_EXHAUSTED"}})),
    (403, json.dumps({"error": {"message": "quota", "status": "PERMISSION_DENIED", "details": [{"reason": "rateLimitExceeded"}]}})),
    (400, json.dumps({"__type": "com.amazon.coral.availability#ThrottlingException", "message": "wait"})),
    (424, _openai("Request failed during generation: CUDA error", type="generation")), (460, ""),
    (412, _openai("The model is being loaded, please try again shortly.")),
    (400, json.dumps({"detail": "Function id 'abc': DEGRADED function cannot be invoked"})),
    (400, json.dumps({"error": "The model has crashed without additional information. (Exit code: 6)"})),
    (403, "<html><head><title>Just a moment...</title></head></html>"),
    (429, _openai("Please retry after 430 seconds")),
    (0, _openai("model is loading, please try again later")),
    (425, ""), (430, "{}"), (499, "closed"), (500, "oops"), (502, "<html>Bad gateway</html>"), (503, "loading"),
    (524, ""), (529, json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})),
    (502, _openai("HTTPSConnectionPool: Max retries exceeded with url: /v1/messages")),
    (504, _openai("Timeout exceeded while awaiting the first token")),
    (0, json.dumps({"error": {"code": 429, "message": "x is temporarily rate-limited upstream"}})),
]  # fmt: skip
WHOLE = [
    ("key", 401, _openai("Incorrect API key provided")),
    ("key", 400, json.dumps([{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}])),
    ("key", 403, json.dumps({"error": {"code": "unsupported_country_region_territory", "message": "Country not supported"}})),
    ("model", 404, _openai("The model `x` does not exist", code="model_not_found")),
    ("model", 400, json.dumps({"error": {"message": "x is not a valid model ID", "code": 400}})),
    ("model", 404, json.dumps({"error": "model 'x' not found, try pulling it first"})),
    ("model", 400, json.dumps({"object": "error", "message": "Invalid model: x", "type": "invalid_model", "code": "1500"})),
    ("model", 400, _openai("Model Not Exist")),
    ("model", 404, _openai("No endpoints found for acme/tiny-model.")),
    ("model", 404, json.dumps([{"error": {"code": 404, "message": "models/gemini-0.5 is not found for API version v1main", "status": "NOT_FOUND"}}])),
    ("key", 0, json.dumps({"base_resp": {"status_code": 1004, "status_msg": "login fail: Please carry the API secret key in the 'Authorization' field"}})),
    ("model", 400, _openai("you must provide a parameter", param="model")),
    ("model", 404, json.dumps({"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}})),
    ("payment", 402, _openai("Insufficient Balance")),
    ("payment", 400, _openai("ExceededTokenBudget: Current spend for token: 7.2e-05; Max Budget for Token: 2e-07", type="budget_exceeded")),
    ("payment", 403, _openai("You have exceeded your monthly token limit. Please upgrade your plan.")),
    ("payment", 429, _openai("You exceeded your current quota", code="insufficient_quota")),
    ("payment", 429, _openai("Your account is not active", code="billing_not_active")),
    ("payment", 400, json.dumps({"code": "Arrearage", "message": "Access denied, account in arrears"})),
    ("key", 403, _openai("Your account has been suspended for violating our terms of service.", type="access_terminated")),
    ("model", 400, _openai("Invalid model name 'm'. Model names are case-sensitive.")),
    ("address", 404, "<html><title>404 Not Found</title></html>"),
    ("address", 405, "Method Not Allowed"),
    ("address", 0, json.dumps({"error": "Unexpected endpoint or method. (POST /chat/completions). Returning 200 anyway"})),
    ("address", 400, _openai("Unknown request URL: POST /chat/completions. Please check the URL for typos.")),
]  # fmt: skip


DOUBTLESS = [
    ("payment", 400, _openai("Your credit balance is too low to access the Anthropic API.")),
    ("payment", 400, _openai("Budget has been exceeded! Current cost: 1.2, Max budget: 1.0", code="400")),
    ("payment", 429, _openai("Budget has been exceeded!", type="budget_exceeded", code="429")),
    ("payment", 429, _openai("Your account is suspended due to insufficient balance", type="exceeded_current_quota_error")),
    ("payment", 429, json.dumps({"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}})),
    ("payment", 500, json.dumps({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}})),
    ("payment", 403, json.dumps({"code": 30011, "message": "Sorry, your paid balance is insufficient"})),
    ("payment", 403, _openai("token quota is not enough, token remain quota: 0")),
    ("payment", 403, _openai("Key limit exceeded. Manage it in your settings.")),
    ("payment", 400, _openai("You have reached your specified API usage limits.")),
    ("key", 412, json.dumps({"error": "Account my-team-4f is suspended, possibly due to a failed payment."})),
    ("key", 400, json.dumps([{"error": {"code": 400, "message": "API key expired. Please renew it.", "details": [{"reason": "API_KEY_INVALID"}]}}])),
    ("key", 400, _openai("Organization has been restricted.", code="organization_restricted")),
    ("wait", 429, _openai("Rate limit is exceeded. Please retry after 86400 seconds.")),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "status", "body"), DOUBTLESS)
@pytest.mark.parametrize("answered", [False, True])
def test_what_leaves_no_doubt_stops_the_run_at_any_time(reason: str, status: int, body: str, *, answered: bool) -> None:
    scope = scope_of(read_failure(status, body, {}), answered=answered)
    assert (scope.kind, scope.reason) == ("whole", reason)


def test_words_that_are_quoted_from_the_prompt_say_nothing() -> None:
    for words in ("the monthly budget was exceeded by the team", "an API key has expired here", "safety first for all"):
        refusal = _openai(f"invalid unicode at '{words}'")
        assert scope_of(read_failure(400, refusal, {}), answered=False).kind == "odd"


@pytest.mark.parametrize(("reason", "status", "body"), ITEM)
@pytest.mark.parametrize("answered", [False, True])
def test_what_concerns_one_item(reason: str, status: int, body: str, *, answered: bool) -> None:
    scope = scope_of(read_failure(status, body, {}), answered=answered)
    assert (scope.kind, scope.reason) == ("item", reason)


@pytest.mark.parametrize("case", MOMENT, ids=str)
@pytest.mark.parametrize("answered", [False, True])
def test_what_passes(case: tuple[int, str, dict[str, str]], *, answered: bool) -> None:
    status, body, *headers = case
    assert scope_of(read_failure(status, body, headers[0] if headers else {}), answered=answered).kind == "moment"


@pytest.mark.parametrize(("reason", "status", "body"), WHOLE)
def test_what_concerns_every_request(reason: str, status: int, body: str) -> None:
    scope = scope_of(read_failure(status, body, {}), answered=False)
    assert (scope.kind, scope.reason) == ("whole", reason)


@pytest.mark.parametrize("body", [_openai("Bad request"), "", "{}", '"no"', "[]", "null", '{"error": null}'])
@pytest.mark.parametrize("answered", [False, True])
def test_a_refusal_without_words_is_odd(body: str, *, answered: bool) -> None:
    assert scope_of(read_failure(400, body, {}), answered=answered).kind == "odd"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, "<html><title>Web Page Blocked!</title>This is in violation of your Internet usage policy.</html>"),
        (400, "<html>Your request is too large, it exceeds the maximum</html>"),
        (400, _openai("Unsupported parameter: safety_identifier is required")),
        (400, _openai("The safety setting is off.", param="safety_identifier")),
        (400, _openai("Request body violates the schema: additional property 'seed' is not allowed")),
    ],
)
@pytest.mark.parametrize("answered", [False, True])
def test_a_page_and_a_refused_parameter_are_not_about_the_prompt(status: int, body: str, *, answered: bool) -> None:
    assert scope_of(read_failure(status, body, {}), answered=answered).kind == "odd"


def test_a_byte_order_mark_before_the_json_does_no_harm() -> None:
    failure = read_failure(429, b"\xef\xbb\xbf" + _openai("slow", code="rate_limit_exceeded").encode(), {})
    assert failure.codes == {"rate_limit_exceeded", "invalid_request_error"}


def test_once_answered_a_sentence_about_keys_or_models_proves_nothing() -> None:
    for words in ("the API key of the section is unknown", "no such model as the document names", "pay your credits"):
        assert scope_of(read_failure(400, _openai(words), {}), answered=True).kind == "odd"


@pytest.mark.parametrize(
    ("body", "names", "said"),
    [
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs", "input": {"code": "x"}}]}, {"seed"}, "Extra inputs (extra_forbidden, param seed)"),
        ({"error": {"message": "No.", "param": "response_format.json_schema"}}, {"response_format.json_schema"}, "No."),
        ({"error": {"message": "No.", "param": "None"}}, set(), "No."),
        ([{"error": {"message": "M", "details": [{"fieldViolations": [{"field": "generation_config", "description": "D"}]}]}}], {"generation_config"}, "M; D"),
        ({"message": {"detail": [{"loc": ["body", "temperature"], "msg": "wrong"}]}}, {"temperature"}, "wrong"),
        ({"error": {"message": "Provider returned error", "metadata": {"raw": '{"error": {"message": "seed: unknown", "param": "seed"}}'}}}, {"seed"}, "Provider returned error; seed: unknown"),
        ({"success": False, "errors": [{"code": 7009, "message": "Upstream"}]}, set(), "Upstream"),
        ({"error": ["first", "second"]}, set(), "first; second"),
        ({"title": "Bad Request", "detail": "too odd", "status": 400}, set(), "Bad Request; too odd"),
        ({"title": "Validation failed", "status": 400, "errors": {"$.seed": ["Not known."], "MaxTokens": ["Too large."]}}, {"seed", "max_tokens"}, "Validation failed; Not known.; Too large."),
        ({"temperature": ["A valid number is required."], "seed": ["Unknown."]}, {"temperature", "seed"}, "A valid number is required.; Unknown."),
        ({"message": "The seed field is prohibited.", "errors": {"seed": "The seed field is prohibited."}}, {"seed"}, "The seed field is prohibited."),
    ],
)  # fmt: skip
def test_bodies_are_read_whatever_their_shape(body: object, names: set[str], said: str) -> None:
    failure = read_failure(400, json.dumps(body), {})
    assert failure.parameters == names
    assert str(failure).startswith(f"HTTP 400: {said}")


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"error": {"message": "m", "details": [{"@type": "x", "retryDelay": "17s"}]}}, 17.0),
        ({"error": "Model is loading", "estimated_time": 20.5}, 20.5),
        ({"error": {"message": "m", "retry_after": 2}}, 2.0),
        ({"error": {"message": "m"}}, None),
    ],
)
def test_a_wait_may_stand_in_the_body(body: object, seconds: float | None) -> None:
    assert read_failure(503, json.dumps(body), {}).wait == seconds
    assert read_failure(503, json.dumps(body), {"retry-after": "1"}).wait == 1.0

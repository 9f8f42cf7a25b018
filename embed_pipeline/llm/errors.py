"""What can go wrong when a language model is asked, and what each means for the run.

An :class:`InvalidAnswer` concerns one item, which the caller sets aside while the run goes on; everything else ends
the run. No message holds an API key: the client scrubs them and chains no exception that carries one.
"""

from __future__ import annotations


class EndpointError(RuntimeError):
    """The endpoint refuses in a way that repeating cannot mend (401, 402, 404, ...): the run stops."""


class TooManyFailures(RuntimeError):  # noqa: N818 - an outcome, named as the callers speak of it
    """More than half of the recent requests failed after all their tries: the run stops."""


class BudgetExhausted(RuntimeError):  # noqa: N818 - an outcome, named as the callers speak of it
    """A hard cap of the settings is reached: the run stops, all answers kept."""


class EmbeddedModelError(RuntimeError):
    """The embedded server cannot be started; the message says what to install or to set."""


class ResponseStoreError(RuntimeError):
    """The response store cannot be used; the message names the file and says how to go on."""


class InvalidAnswer(RuntimeError):  # noqa: N818 - an outcome, named as the callers speak of it
    """One item has no usable answer: a refusal, a cut, or JSON that does not validate after the re-asks.

    Its text says what happened, in a sentence.

    Attributes:
        reason: ``refused``, ``cut_at_length``, ``invalid_answer``, ``prompt_too_long``, ``prompt_filtered`` or
            ``request_failed``, for the rejects table.
        raw: the last raw answer; empty when there was none.
    """

    def __init__(self, reason: str, detail: str, raw: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.raw = raw


class RequestFailed(InvalidAnswer):
    """The endpoint did not answer this request in all the tries that ``llm.max_attempts`` allows."""

    def __init__(self, detail: str) -> None:
        super().__init__("request_failed", detail)

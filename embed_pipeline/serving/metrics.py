"""What the endpoint counts, for Prometheus. Nothing of a request's text or user is among it."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Metrics:
    """The metrics of one endpoint, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Answers by path and HTTP status.", "path", "status")
        self.request_seconds = self._seconds("request", "Time from the request's headers to its answer.")
        self.queue_seconds = self._seconds("queue", "Wait of a text from its tokens to its batch.")
        self.tokenize_seconds = self._seconds("tokenize", "Tokenising the texts of a request, its wait included.")
        self.inference_seconds = self._seconds("inference", "One batch through the model.")
        self.batch_rows = self._histogram("batch_rows", "Texts in a batch.", _ROWS)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch, padding included.", _TOKENS)
        self.tokens = self._counter("tokens", "Tokens embedded, padding left out.")
        self.queue_tokens = self._gauge("queue_tokens", "Tokens that wait for a batch or are about to.")
        self.queue_texts = self._gauge("queue_texts", "Texts that wait for a batch.")
        self.rejected = self._counter("rejected", "Requests refused because the queue was full.")
        self.truncated = self._counter("truncated", "Texts cut to the model's limit.")
        self.disconnected = self._counter("disconnected", "Requests whose client left before the answer.")
        self.failed_reloads = self._counter("failed_reloads", "Releases that became current and could not be served.")
        self.unknown_fields = self._counter("unknown_fields", "Fields of requests that nothing reads.")

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"embed_{name}", documentation, labels, registry=self._registry)

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(f"embed_{name}", documentation, registry=self._registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"embed_{name}", documentation, buckets=buckets, registry=self._registry)

    def _seconds(self, name: str, documentation: str) -> Histogram:
        return self._histogram(f"{name}_seconds", documentation, _SECONDS)

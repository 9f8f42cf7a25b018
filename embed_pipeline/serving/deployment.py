"""A release deployed and proven: vectors and rankings through the real endpoint against the original model."""

from __future__ import annotations

import logging
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import Kind
from embed_pipeline.embedding.proven import cosines_of
from embed_pipeline.embedding.search import search
from embed_pipeline.progress import Bar, progress
from embed_pipeline.release.manifest import read_manifest
from embed_pipeline.serving.connections import free_port
from embed_pipeline.serving.process import RunningEndpoint, keep_endpoint, kept_endpoint, served_release, start_endpoint
from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import Settings, serving_api_key
from embed_pipeline.text.passages import passage_texts

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

LOG_FILE = "deployment.log"

MAX_TEXTS = 500
"""Most passages, and most queries, that are compared."""

_TIMED_REQUESTS = 50
_REQUEST_TEXTS = 64
_DEPTH = 10

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Verification:
    """What a comparison of served and original vectors found.

    Attributes:
        precision: what it was computed in.
        runtime: by what.
        texts_compared: queries and passages.
        min_cosine: least cosine of a text's two vectors.
        top10_overlap: mean over the queries of the share of the ten best passages that both find.
        median_milliseconds: median time of a request of one query.
    """

    precision: str
    runtime: str
    texts_compared: int
    min_cosine: float
    top10_overlap: float
    median_milliseconds: float


def deploy(
    bundle: Path, corpus: pl.DataFrame, queries: Sequence[str], settings: Settings, *, keep: bool = False
) -> pl.DataFrame:
    """Serve ``bundle``, compare what comes through the endpoint with the original model, and stop it again.

    Where ``deployment.endpoint_url`` is set, what is served there is compared, and nothing is started.

    Args:
        bundle: the release bundle.
        corpus: the ``corpus`` table; a seeded sample of it is embedded and searched.
        queries: questions to search with.
        settings: address, limits, seed and store.
        keep: leave an endpoint running where the comparison stands (:mod:`embed_pipeline.serving.process`): the one
            that is kept running already, which takes the release up when it becomes current, else the one
            compared, on ``serving.port``.

    Returns:
        One row of the ``deployment`` table. Whether its figures are good enough, :func:`deployment_failures` says.

    Raises:
        ServingError: there is nothing to compare, or the endpoint does not start.
        BundleError: ``bundle`` is not a bundle.
        ModelError: the original model cannot be loaded.
    """
    manifest = read_manifest(bundle)
    passages = _sample(passage_texts(corpus.sort("segment_id"), manifest.model.passage_context), settings.seed)
    asked = _sample(sorted(set(queries)), settings.seed)
    if not passages or not asked:
        message = f"a deployment is verified with passages and queries, got {len(passages)} and {len(asked)}"
        raise ServingError(message)
    version, store, serving = manifest.version, settings.paths.store, settings.serving
    if (url := settings.deployment.endpoint_url) is not None:
        found = verify_deployment(url.rstrip("/"), bundle, passages, asked, settings)
        return _row(version, url, found, left_running=True)
    running = kept_endpoint(store) if keep else None
    stays = keep and running is None
    with tempfile.TemporaryDirectory() as folder:
        log = (store if stays else Path(folder)) / LOG_FILE
        log.parent.mkdir(parents=True, exist_ok=True)
        port = serving.port if stays and serving.port != "auto" else free_port(serving.host)
        endpoint = start_endpoint(bundle, settings, port=port, log=log)
        kept = False
        try:
            found = verify_deployment(endpoint.url, bundle, passages, asked, settings)
            frame = _row(version, endpoint.url, found, left_running=keep)
            if stays and not deployment_failures(frame, settings):
                keep_endpoint(store, RunningEndpoint(endpoint.process.pid, endpoint.url, version))
                kept = True
        finally:
            if not kept:
                endpoint.stop(serving.drain_seconds)
    if running is not None:
        return frame.with_columns(url=pl.lit(running.url))
    return frame.with_columns(left_running=pl.lit(kept))


def verify_deployment(
    url: str, bundle: Path, passages: Sequence[str], queries: Sequence[str], settings: Settings
) -> Verification:
    """Embed ``passages`` and ``queries`` through the endpoint at ``url`` and with the model of ``bundle``.

    The endpoint is asked with the ``openai`` client as its users have it; the original is computed in fp32.

    Raises:
        ServingError: the endpoint does not say what it serves.
        openai.OpenAIError: the endpoint refuses a request.
        ModelError: the original model cannot be loaded.
    """
    from openai import OpenAI

    original = Encoder.load(
        bundle / "model",
        # The bundle's own prefixes: they are a property of the model.
        settings.embedding.model_copy(update={"precision": "fp32", "query_prefix": "auto", "passage_prefix": "auto"}),
    )
    with OpenAI(base_url=f"{url}/v1", api_key=serving_api_key() or "none") as client:
        release = _described(client, url, settings)
        probe = _Probe(client, release, original)
        with progress("Embedding through the endpoint", len(passages) + len(queries), "text") as bar:
            served_passages = probe.embed(passages, "passage", bar)
            served_queries = probe.embed(queries, "query", bar)
        milliseconds = probe.time_queries(queries)
    passage_vectors = original.encode(passages, "passage", "Encoding with the original model")
    query_vectors = original.encode(queries, "query")
    hits = search(served_queries, served_passages, _DEPTH)
    served = np.concatenate([served_queries, served_passages])
    cosines = cosines_of(served, np.concatenate([query_vectors, passage_vectors]))
    return Verification(
        precision=release.precision,
        runtime=release.runtime,
        texts_compared=len(served),
        min_cosine=float(cosines.min()),
        top10_overlap=hits.overlap(search(query_vectors, passage_vectors, _DEPTH)),
        median_milliseconds=milliseconds,
    )


def deployment_failures(frame: pl.DataFrame, settings: Settings) -> list[str]:
    """What of a ``deployment`` table misses its bound, a sentence each; empty: the deployment stands.

    In fp32 and half precision both the vectors and the rankings must be the original's. An int8 export on onnxruntime
    has other vectors by design, and was released for its rankings; they are what is held to a bound. int8 on OpenVINO
    is held to its rankings as well, and to vectors as near as they were proven to be.
    """
    found = []
    gates = settings.gates
    least_cosine = {
        "fp32": gates.min_export_cosine,
        "fp16": settings.release.min_fp16_cosine,
        "bf16": gates.min_proven_cosine,
        "int8": gates.min_proven_cosine,
    }
    for row in tables.validate(frame, tables.DEPLOYMENT).iter_rows(named=True):
        precision = row["precision"]
        bounds = {
            "min_cosine": least_cosine[precision],
            "top10_overlap": gates.min_int8_top10_overlap if precision == "int8" else gates.min_export_top10_overlap,
        }
        if (precision, row["runtime"]) == ("int8", "onnxruntime"):
            del bounds["min_cosine"]
        for name, bound in bounds.items():
            # Written so that a value that is not a number fails.
            if not row[name] >= bound:
                found.append(f"release {row['release_version']} as served: {name} {row[name]:.7f} is below {bound}")
    return found


def _row(version: str, url: str, found: Verification, *, left_running: bool) -> pl.DataFrame:
    return tables.DEPLOYMENT.frame(
        [{"release_version": version, "url": url, "left_running": left_running, **asdict(found)}]
    )


@dataclass(frozen=True)
class _AskedEndpoint:
    """What is asked at an endpoint, and how.

    Attributes:
        model: name of the model there.
        ours: whether the ending of the model's name says what a text is.
        prefixed: whether the server puts the prefixes before texts.
        precision: what it computes in.
        runtime: by what.
    """

    model: str
    ours: bool
    prefixed: bool
    precision: str
    runtime: str


def _described(client: OpenAI, url: str, settings: Settings) -> _AskedEndpoint:
    """What serves at ``url``: our own server, which says so, or another one, as the settings describe it.

    Raises:
        ServingError: it lists no model.
    """
    chosen = settings.deployment
    own = served_release(url) if chosen.endpoint_url is None else _own_release(url)
    precision, runtime = (
        (str(own["precision"]), str(own["runtime"])) if own else (chosen.endpoint_precision, "endpoint")
    )
    prefixed = own is not None if chosen.endpoint_prefixes == "auto" else chosen.endpoint_prefixes == "server"
    if chosen.endpoint_url is None:
        name = settings.serving.model_name
        return _AskedEndpoint(name, ours=True, prefixed=True, precision=precision, runtime=runtime)
    listed = [model.id for model in client.models.list()]
    if chosen.endpoint_model == "auto" and not listed:
        message = f"{url}/v1/models lists no model; set deployment.endpoint_model"
        raise ServingError(message)
    model = listed[0] if chosen.endpoint_model == "auto" else chosen.endpoint_model
    return _AskedEndpoint(model, ours=own is not None, prefixed=prefixed, precision=precision, runtime=runtime)


def _own_release(url: str) -> dict[str, Any] | None:
    """What a server of ours says of its release; None: it is none of ours."""
    try:
        release = served_release(url)
    except ServingError:
        return None
    return release if {"precision", "runtime"} <= release.keys() else None


class _Probe:
    """Embeds texts through an endpoint as its users do."""

    def __init__(self, client: OpenAI, endpoint: _AskedEndpoint, original: Encoder) -> None:
        self._client, self._endpoint = client, endpoint
        backend = original.backend
        self._prefixes: dict[Kind, str] = {
            "query": backend.of_kind("query").query_prefix,
            "passage": backend.passage_prefix,
        }

    def embed(self, texts: Sequence[str], kind: Kind, bar: Bar | None = None) -> Floats:
        """Vectors of ``texts``, cut where they are too long, as the original cuts them.

        Raises:
            ServingError: the endpoint gives another number of vectors than it was sent texts.
        """
        endpoint, parts = self._endpoint, []
        prefix = "" if endpoint.prefixed else self._prefixes[kind]
        # Each server has a name of its own for cutting and ignores the others'.
        extra: dict[str, object] = {"truncate": "END"} if endpoint.ours else {"truncate": True}
        if endpoint.prefixed and not endpoint.ours:
            extra = {"truncate": "END", "input_type": kind}
        for start in range(0, len(texts), _REQUEST_TEXTS):
            part = [prefix + text for text in texts[start : start + _REQUEST_TEXTS]]
            model = f"{endpoint.model}-{kind}" if endpoint.ours else endpoint.model
            answer = self._client.embeddings.create(model=model, input=part, extra_body=extra)
            vectors = np.array([item.embedding for item in answer.data], dtype=np.float32)
            if len(vectors) != len(part):
                message = f"the endpoint returned {len(vectors)} vectors for {len(part)} texts"
                raise ServingError(message)
            parts.append(vectors)
            if bar is not None:
                bar.advance(len(part))
        return np.concatenate(parts)

    def time_queries(self, queries: Sequence[str]) -> float:
        times = []
        for query in queries[:_TIMED_REQUESTS]:
            started = time.perf_counter()
            self.embed([query], "query")
            times.append(time.perf_counter() - started)
        return median(times) * 1000


def _sample(texts: Sequence[str], seed: int) -> list[str]:
    if len(texts) <= MAX_TEXTS:
        return list(texts)
    return random.Random(seed).sample(list(texts), MAX_TEXTS)  # noqa: S311 - a choice to be repeated, not a secret

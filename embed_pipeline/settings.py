"""Every setting and threshold of the product.

Settings come from ``embed_pipeline.toml``, are overridden by environment variables
(``EMBED_PIPELINE_<GROUP>__<NAME>``) and by ``--set group.name=value`` on the command line (which only
sets that environment variable, so that every process of a run sees the same values). Unknown names and
values out of range are refused with the name, the value and the bound. Secrets are never settings: API keys
are read from the environment at the moment of use (:func:`llm_api_key`, :func:`serving_api_key`).

Each setting is classified where it is defined: it decides what is made (:func:`decides` names the assets), it says how,
where and within which bounds the work runs (:func:`runs`), or it is the bound of a check (:func:`gates`, the group of
that name). Only the first kind enters code versions and fingerprints (:meth:`Settings.digest`): whatever else is
changed makes nothing again.

``auto`` leaves a choice to the product, ``none`` says that something is absent, and 0 is zero.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from embed_pipeline.enumerations import REASONING_TYPES, STYLES, Augmentation, Context

if TYPE_CHECKING:
    from upath import UPath

ENVIRONMENT_PREFIX = "EMBED_PIPELINE_"
CONFIG_VARIABLE = "EMBED_PIPELINE_CONFIG"
LLM_KEY_VARIABLE = "EMBED_PIPELINE_LLM_API_KEY"
SERVING_KEY_VARIABLE = "EMBED_PIPELINE_SERVING_API_KEY"
_NOT_SETTINGS = {CONFIG_VARIABLE, LLM_KEY_VARIABLE, SERVING_KEY_VARIABLE}

_URL_PASSWORD = re.compile(r"(://[^/@:\"]*:)[^/@\"]+@")
_URL_QUERY = re.compile(r"(://[^\s?'\"]*\?)[^\s'\"]+")
# Protocol to its driver and the extra that brings it. All of them put an object in one step.
_STORAGE_DRIVERS: dict[str, tuple[str | None, str]] = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"),
    "abfs": ("adlfs", "azure"),
    "file": (None, ""),
    "memory": (None, ""),
}

Auto = Literal["auto"]

TEXT_SUFFIXES = (".md", ".markdown", ".mdx", ".txt", ".rst", ".html", ".htm", ".xhtml", ".ipynb")
ROW_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
OFFICE_SUFFIXES = (".pdf", ".docx", ".pptx")
"""Endings that the extra ``documents`` reads."""

Share = Annotated[float, Field(ge=0, le=1)]
Score = Annotated[float, Field(ge=1, le=10)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]

TRAINING = "training"
"""What the trained weights are made by: a part of ``finetuned_model`` that is kept while nothing that decides it
changes, so that the choice of weights, the adapter and the guard against forgetting alone can be made again."""
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType({"finetuned_model": (TRAINING,)})
"""Asset to its parts: what decides a part decides the asset."""

# What is asked of a language model by plan, and what is asked of it at all.
_PLANNED = ("document_artifacts", "qa_pairs")
_ASKED = (*_PLANNED, "qa_scores")
# Whatever encodes with the base model, or with a model that the settings' prefixes apply to.
_ENCODED = ("segments", *_PLANNED, "corpus", "qa_scores", "qa_dataset", "hard_negatives", TRAINING)
_MEASURED = ("retrieval_evaluation", "champion_comparison")
_EXPORTED = ("onnx_model", "onnx_precisions", "base_onnx_model")


def decides(default: object, *assets: str, **bounds: Any) -> Any:  # noqa: ANN401 - a field's default, of its own type
    """A setting that decides what is made: a change makes ``assets`` stale, and what follows from them."""
    if not assets:
        raise TypeError("decides() names the assets that the setting decides")
    return Field(default, json_schema_extra={"kind": "decides", "assets": list(assets)}, **bounds)


def runs(default: object, **bounds: Any) -> Any:  # noqa: ANN401 - as above
    """A setting that says how, where or within which bounds the work runs: a change makes nothing stale."""
    return Field(default, json_schema_extra={"kind": "runs"}, **bounds)


def gates(default: object, **bounds: Any) -> Any:  # noqa: ANN401 - as above
    """The bound of a check: a change makes nothing stale, and holds from the next time that the check runs."""
    return Field(default, json_schema_extra={"kind": "gates"}, **bounds)


def _reads_office() -> bool:
    return find_spec("markitdown") is not None


def _as_suffix(name: str) -> str:
    return f".{name.strip().lower().removeprefix('.')}"


def _default_suffixes() -> tuple[str, ...]:
    return (*TEXT_SUFFIXES, *OFFICE_SUFFIXES) if _reads_office() else TEXT_SUFFIXES


def _read_weights(value: object) -> object:
    """``a=2,b=1``, as environment variables carry it, to a table."""
    if not isinstance(value, str):
        return value
    if "=" not in value:
        return value
    parts = (part.partition("=") for part in value.split(","))
    return {name.strip(): weight.strip() for name, _, weight in parts}


def _some_weight(weights: dict[str, float]) -> dict[str, float]:
    if not any(weights.values()):
        message = f"weights are {weights}; at least one must be above 0"
        raise ValueError(message)
    return weights


Weights = Annotated[
    dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]],
    BeforeValidator(_read_weights),
    AfterValidator(_some_weight),
]


def without_secrets(text: str) -> str:
    """``text`` with what URLs in it may carry to sign in, passwords and queries, masked."""
    return _URL_QUERY.sub(r"\1***", _URL_PASSWORD.sub(r"\1***@", text))


def _said(value: str) -> str:
    """A text that is one line with something in it."""
    if not value.strip() or not value.isprintable():
        message = "must be a text of one line, and not blank; leave the setting out for its default"
        raise ValueError(message)
    return value.strip()


Said = Annotated[str, AfterValidator(_said)]


def _folder(value: object) -> Path:
    """A folder by its path, ``~`` read as home; a blank one would be the working folder."""
    if not isinstance(value, str | Path) or not str(value).strip():
        message = "must be the path of a folder; leave the setting out for its default"
        raise ValueError(message)
    return Path(value).expanduser()


def _host_name(value: str) -> str:
    """A name as a Host header is compared with it: without a port and a last dot, in small letters."""
    name = value.strip().lower().removesuffix(".")
    name = re.sub(r":[0-9]+$", "", name) if name.count(":") == 1 else name
    if not re.fullmatch(r"[\w.:-]+", name):
        message = f"{value!r} is no name of a host, such as emb.example.com"
        raise ValueError(message)
    return name


def _origin(value: str) -> str:
    """An origin as browsers send it: protocol, host and port alone; ``*``: any."""
    origin = value.strip().rstrip("/").lower()
    if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", origin):
        message = f"{value!r} is no origin, such as https://notes.example"
        raise ValueError(message)
    return origin


def _folder_or_url(value: object) -> object:
    """A folder as a path, an address as text; ``file://`` is a folder."""
    if not isinstance(value, str | Path) or "://" not in str(value):
        return _folder(value)
    text = str(value)
    protocol, _, place = text.partition("://")
    if "::" in text or "?" in text or _URL_PASSWORD.search(text):
        message = "must be a plain address, without chained protocols, a query or a password; credentials come from "
        raise ValueError(message + "the environment (see docs/operations.md)")
    return Path(place) if protocol in {"file", "local"} else text.rstrip("/")


class SettingsError(ValueError):
    """A setting is unknown, malformed or out of its bounds."""


class Group(BaseModel):
    """Settings of one topic; each is classified by the function that gives its default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401 - pydantic's signature
        """Refuse a setting that nobody classified.

        Raises:
            TypeError: naming the setting.
        """
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            if not _is_group(field) and not isinstance(field.json_schema_extra, dict):
                message = f"{cls.__name__}.{name} is not classified; define it by decides(), runs() or gates()"
                raise TypeError(message)

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: object, info: ValidationInfo) -> object:
        """Lists come from the environment separated by commas; ``none`` is None in TOML, too, which has no null."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if not isinstance(value, str):
            return value
        if NoneType in get_args(annotation) and value.lower() == "none":
            return None
        if get_origin(annotation) is not tuple:
            return value
        listed = _json_list(value)
        return [part.strip() for part in value.split(",") if part.strip()] if listed is None else listed


def _json_list(text: str) -> list[str] | None:
    """The texts of a list in JSON, as tools that keep settings in the environment write lists; None: it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else None


def _is_group(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Group)


class Paths(Group):
    """Where documents are read from and where everything made is kept."""

    documents: Annotated[Path | str, BeforeValidator(_folder_or_url)] = runs(Path("data/documents"))
    """Folder of input documents, read recursively; or an address that fsspec can list, such as ``s3://bucket/prefix``,
    ``gs://``, ``az://`` or ``https://``."""
    store: Path = runs(Path("data/store"))
    """Folder of this machine for tables, models, releases, the response store, run history and work in progress."""
    assets: str | None = runs(None)
    """Where tables, models, releases and batch manifests are kept instead, such as ``s3://bucket/prefix``; the store
    then keeps the rest, and copies of the models and releases in use. None: in the store."""

    @field_validator("store", mode="before")
    @classmethod
    def _is_a_folder(cls, value: object) -> object:
        if "://" in str(value):
            message = "must be a folder of this machine; paths.assets puts tables, models and releases elsewhere"
            raise ValueError(message)
        return _folder(value)

    @field_validator("assets")
    @classmethod
    def _is_object_storage(cls, value: str | None) -> str | None:
        if value is None:
            return None
        protocol, separator, rest = value.partition("://")
        if "?" in value or _URL_PASSWORD.search(value):
            message = "must be without a query or a password; credentials come from the environment (docs/scaling.md)"
            raise ValueError(message)
        if protocol not in _STORAGE_DRIVERS or not separator or not rest.strip("/"):
            known = ", ".join(f"{name}://" for name in _STORAGE_DRIVERS)
            message = f"must be an address of object storage, one of {known}, with a bucket or folder"
            raise ValueError(message)
        driver, extra = _STORAGE_DRIVERS[protocol]
        if driver is not None and find_spec(driver) is None:
            message = f"{protocol}:// needs {driver}; install embed-pipeline[{extra}]"
            raise ValueError(message)
        return value.rstrip("/")

    @property
    def remote(self) -> UPath | None:
        """``assets`` as a path; None: all is in the store."""
        from upath import UPath

        # A driver's listings, once cached, would hide what other processes store.
        return UPath(self.assets, use_listings_cache=False) if self.assets else None

    @property
    def responses(self) -> Path:
        """The file that answers of the language model are kept in."""
        return self.store / "responses.sqlite"

    @property
    def root(self) -> UPath:
        """The folder that tables, models, releases and batch manifests are kept in."""
        from upath import UPath

        return self.remote or UPath(self.store)


class Corpus(Group):
    """Files to documents to segments."""

    suffixes: tuple[str, ...] = runs(("auto",), validate_default=True)
    """File name endings that are read; others are left alone and counted. auto: .md, .markdown, .mdx, .txt, .rst,
    .html, .htm, .xhtml and .ipynb, and where the extra ``documents`` is installed .pdf, .docx and .pptx. Also known:
    .csv, .tsv, .jsonl and .ndjson, of which each row is a section; ``auto,.csv`` adds one."""
    max_files: Positive = runs(500_000)
    """The scan stops with an error beyond this many files and folders."""
    documents_per_batch: Positive = runs(200)
    """A drop of more new files than this is cut into several batches."""
    max_file_bytes: Positive = decides(20_000_000, "documents")
    """A larger file is set aside unread."""
    max_unpacked_bytes: Positive = decides(200_000_000, "documents")
    """An Office file that unpacks to more is set aside."""
    conversion_megabytes: int = decides(1024, "documents", ge=64, le=65_536)
    """Memory that reading one file may take; one that needs more is set aside."""
    conversion_seconds: float = decides(120, "documents", gt=0)
    """Processor time that reading one file may take, and ten times as long by the clock; of a PDF the pages that fit
    are kept, another file is set aside."""
    word_comments: bool = decides(False, "documents")  # noqa: FBT003 - a default
    """Read the comments of Word files too, after the text."""
    language: Annotated[str, Field(pattern="^(auto|[a-z]{2})$")] = decides(
        "auto", "corpus", "qa_pairs", "qa_scores", "qa_dataset", "hard_negatives", TRAINING, *_MEASURED
    )
    """Language of documents and questions, as an ISO 639-1 code such as ``de``: its stop words, stems and forms of
    questions hold; auto: of the corpus that of most of its text, of a question its own."""
    boilerplate_share: Annotated[float, Field(gt=0, le=1)] | Literal["off"] = decides(0.3, "documents", "corpus")
    """Lines that this share of the documents has are boilerplate (menus, page heads and feet, licences): a paragraph of
    such lines stays in the first document and is removed from the others; off: nothing is removed."""
    boilerplate_documents: int = decides(10, "documents", "corpus", ge=2)
    """Minimum number of documents that must have a line for it to be boilerplate."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | Literal["off"] = decides(0.95, "corpus")
    """A document that shares more of its word 5-grams with an earlier one is left out of the corpus; off: only exact
    copies are."""
    segment_tokens: int = decides(200, "segments", ge=16, le=8192)
    """Longest segment, in tokens of the base encoder; never more than the encoder reads, prefix and special tokens
    included."""
    min_segment_tokens: Positive = decides(24, *_PLANNED, "qa_dataset", "hard_negatives")
    """Shorter segments (bare headings) stay stored, but no question is asked of them."""

    @field_validator("suffixes")
    @classmethod
    def _are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        named = (_default_suffixes() if suffix == "auto" else (_as_suffix(suffix),) for suffix in value)
        suffixes = tuple(dict.fromkeys(chain.from_iterable(named)))
        unknown = [suffix for suffix in suffixes if suffix not in (*TEXT_SUFFIXES, *ROW_SUFFIXES, *OFFICE_SUFFIXES)]
        if unknown:
            known = ", ".join((*TEXT_SUFFIXES, *ROW_SUFFIXES, *OFFICE_SUFFIXES))
            message = f"no reader knows {', '.join(unknown)}; the known endings are {known}"
            raise ValueError(message)
        office = [suffix for suffix in suffixes if suffix in OFFICE_SUFFIXES]
        if office and not _reads_office():
            message = f"reading {', '.join(office)} needs the extra documents; install embed-pipeline[documents]"
            raise ValueError(message)
        return suffixes


class LLM(Group):
    """The model that writes and judges questions."""

    _asking_since: float | None = PrivateAttr(default=None)
    base_url: str | None = decides(None, *_ASKED, "hard_negatives")
    """OpenAI-compatible endpoint, such as ``http://host:8000/v1``. None: the embedded llama.cpp server."""
    model: str = decides("embedded", *_ASKED, "hard_negatives")
    """Model name at the endpoint."""
    judge_model: str | None = decides(None, "qa_scores", "hard_negatives")
    """Model that judges pairs; None: the generator's."""
    gguf_path: Path | None = decides(None, *_ASKED)
    """GGUF file for the embedded server; None: the packaged SmolLM2-135M-Instruct."""
    structured_outputs: Literal["auto", "json_schema", "plain"] = decides("auto", *_ASKED, "hard_negatives")
    """How JSON is asked for: by schema where the endpoint has it, else by instruction; both are validated."""
    max_output_tokens: int = decides(2048, *_ASKED, "hard_negatives", ge=16)
    """Answer length limit at an endpoint."""
    server_threads: Positive | Literal["all"] = runs("all")
    """Threads of the embedded server; all: one for each core of the machine."""
    max_concurrency: int = runs(64, ge=1, le=4096)
    """Upper bound of requests in flight at an endpoint; the client adapts below it."""
    timeout_seconds: float = runs(120, gt=0)
    """Longest wait for one answer."""
    max_attempts: int = runs(6, ge=1, le=20)
    """Tries for one request on 408, 409, 429, 5xx and broken connections."""
    max_calls: Count | None = runs(None)
    """Hard cap on calls of one run: of a command over all batches and stages, or of one run that Dagster starts."""
    max_total_tokens: Count | None = runs(None)
    """Hard cap on prompt plus completion tokens of one run."""
    max_cost: Annotated[float, Field(ge=0)] | None = runs(None)
    """Hard cap on the cost of one run, in the currency of the prices."""
    price_per_million_prompt_tokens: float = runs(0, ge=0)
    """Price of a million prompt tokens; the embedded model costs nothing."""
    price_per_million_completion_tokens: float = runs(0, ge=0)
    """Price of a million completion tokens."""
    batch: bool = runs(False)  # noqa: FBT003 - a default
    """Ask by the endpoint's Batch API (``/files`` and ``/batches``, as OpenAI has them): slower, and cheaper. An
    interrupted run picks its batches up where it left them."""
    batch_discount: Share = runs(0.5)
    """How much cheaper a request is in a batch, as a share of its price."""
    batch_requests: Positive = runs(50_000)
    """Most requests of one batch."""
    batch_megabytes: float = runs(100, gt=0)
    """Largest file of one batch, in millions of bytes."""

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        from urllib.parse import urlsplit

        if value is None:
            return None
        if not re.match(r"https?://[^/\s]+(?:/|\Z)", value):
            message = "must be an address that begins with http:// or https://, such as http://host:8000/v1"
            raise ValueError(message)
        try:
            parts = urlsplit(value)
            # Reading the port checks that it is one, and encoding the host that it can be looked up.
            sound = parts.port != 0 and bool((parts.hostname or "").encode("idna"))
        except ValueError:
            sound = False
        if not sound:
            message = "must be an address with a valid host and port, such as http://host:8000/v1"
            raise ValueError(message)
        return value

    @property
    def embedded(self) -> bool:
        """True when the embedded server answers."""
        return self.base_url is None

    @property
    def capped(self) -> bool:
        """Whether anything limits what a run may use."""
        return any(cap is not None for cap in (self.max_calls, self.max_total_tokens, self.max_cost))

    @property
    def asking_since(self) -> float | None:
        """When the run began whose caps these are, in seconds since the epoch; None: with the client."""
        return self._asking_since

    def since(self, moment: float) -> LLM:
        """These settings for a run that began then."""
        found = self.model_copy()
        found._asking_since = moment  # noqa: SLF001 - its own copy
        return found


class Synthesis(Group):
    """Segments to question-answer pairs to accepted pairs."""

    path: Auto | Literal["completion", "structured"] = decides("auto", *_PLANNED)
    """How the model is asked: by few-shot completion, which suits base and very small models, or for JSON by schema,
    which suits models that follow instructions. auto: completion for the packaged model; for any other, what a trial on
    a few segments shows to yield more distinct valid questions."""
    judge: Auto | Literal["measured", "asked", "both"] = decides("auto", "qa_scores")
    """Who scores the pairs: measures (round trip, grounding, form), the judge model by a rubric, or both, whose scores
    are kept and must pass alike. auto: measured for the packaged model; any other is asked if a trial on a few pairs
    and planted bad ones shows that it can judge."""
    questions_per_segment: int = decides(2, *_PLANNED, ge=1, le=20)
    """Single-hop questions asked of every segment that is long enough."""
    questions_per_document: Positive | None = decides(None, *_PLANNED)
    """Single-hop questions asked of every document, spread over its segments; None: ``questions_per_segment``
    decides."""
    max_questions: Positive | Literal["all"] = decides(50_000, *_PLANNED)
    """About how many questions are asked of the whole corpus. Where there are more segments than that allows, those are
    asked about that cover it best, in every batch as large a share. A higher limit adds questions and keeps the others;
    all: every segment is asked about."""
    reasoning_types: Weights = decides(
        {"factual": 3, "procedural": 2, "causal": 1, "inferential": 1, "relational": 1, "temporal": 0.5}, "qa_pairs"
    )
    """Weights of the reasoning types asked for; ``visual`` too where documents describe figures."""
    styles: Weights = decides(
        {
            "question": 4,
            "keywords": 2,
            "symptom": 0.5,
            "paraphrase": 0.5,
            "web_query": 0.4,
            "claim": 0.2,
            "boolean": 0.2,
            "comparison": 0.1,
            "title": 0.1,
        },
        "qa_pairs",
    )
    """Weights of the styles asked for: full question, keywords, error message or symptom, other words, words typed into
    a search box, a claim to be checked, a question of yes or no, of how two things differ, the title of an article. A
    model that completes texts writes full questions and keywords alone."""
    example_queries: Path | None = decides(None, "qa_pairs", "qa_dataset")
    """File of queries that people typed, without judgements: .txt with one a line, or .csv or .jsonl with a column
    ``query`` or ``text``. Their forms and lengths decide how often each style of ``styles`` is asked for, and a model
    that follows instructions is shown eight of them (docs/tuning.md)."""
    multi_hop_share: Share = decides(0.1, *_PLANNED)
    """Multi-hop questions as a share of the single-hop ones."""
    cross_document_share: Share = decides(0.5, "qa_pairs")
    """Share of the multi-hop questions that join different documents, as far as neighbours allow."""
    max_hops: int = decides(3, *_PLANNED, ge=1, le=5)
    """Most segments that one question may join."""
    min_complexity: int = decides(1, "qa_pairs", ge=1, le=5)
    """Minimum complexity asked of the generator (1: a stated fact, 5: reasoning over several statements)."""
    max_complexity: int = decides(5, "qa_pairs", ge=1, le=5)
    """Maximum complexity asked of the generator."""
    sampling_temperature: float = decides(0.3, "qa_pairs", ge=0, le=2)
    """Sampling temperature of the generator."""
    check_hops: bool = decides(True, "qa_scores")  # noqa: FBT003 - a default
    """Ask the judge whether each hop of a multi-hop pair is needed; otherwise that is only measured."""
    min_relevance: Score = decides(6, "qa_dataset")
    """Minimum relevance of an accepted pair (1-10)."""
    min_accuracy: Score = decides(6, "qa_dataset")
    """Minimum accuracy of an accepted pair (1-10)."""
    min_context_support: Score = decides(6, "qa_dataset")
    """Minimum context support of an accepted pair (1-10)."""
    min_clarity: Score = decides(6, "qa_dataset")
    """Minimum clarity of an accepted pair (1-10)."""
    min_overall: Score = decides(7, "qa_dataset")
    """Minimum overall score of an accepted pair: the mean of the four."""
    max_round_trip_rank: Positive = decides(20, "qa_scores", "qa_dataset")
    """A pair is dropped unless the base model and BM25 together find each of its segments this high."""
    near_duplicate_similarity: float = decides(0.95, "qa_dataset", gt=0, le=1)
    """Questions with a cosine similarity above this are one question; the better-scored is kept."""

    @model_validator(mode="after")
    def _ordered(self) -> Synthesis:
        if self.min_complexity > self.max_complexity:
            message = f"min_complexity is {self.min_complexity}, above max_complexity {self.max_complexity}"
            raise ValueError(message)
        for name, known in (("reasoning_types", REASONING_TYPES), ("styles", STYLES)):
            unknown = sorted(getattr(self, name).keys() - known)
            if unknown:
                message = f"{name} has unknown {unknown}; expected some of {list(known)}"
                raise ValueError(message)
        return self


class TrainingData(Group):
    """Accepted pairs to split to hard negatives to training examples."""

    sources: tuple[Literal["generated", "structure"], ...] = decides(
        ("generated",), "document_artifacts", "qa_pairs", "qa_dataset"
    )
    """Where pairs come from, apart from ``label_sets``: the LLM, the documents' own structure; may be empty."""
    label_sets: tuple[Path, ...] = decides((), "corpus", "qa_dataset", "hard_negatives")
    """Your own labels, mixed in: BEIR folders, or files of questions with positives (docs/labels.md)."""
    dev_share: float = decides(0.1, "dataset_split", ge=0, lt=1)
    """Share of the pairs, by document group, held out for choosing the checkpoint."""
    test_share: float = decides(0.15, "dataset_split", gt=0, lt=1)
    """Share of the pairs, by document group, held out for the evaluation; more where ``min_test_questions`` asks it."""
    min_test_questions: Positive = decides(10, "dataset_split")
    """The split aims at this many test questions in a small set, and its check fails below."""
    near_duplicate_documents: float = decides(0.6, "dataset_split", "hard_negatives", gt=0, le=1)
    """Documents are one group when this share of the shorter one's word 5-grams occurs in the other."""
    near_duplicate_questions: float = decides(0.8, "dataset_split", "hard_negatives", gt=0, le=1)
    """Questions are near-duplicates at this Jaccard similarity of their content words; no side has another's."""
    near_duplicate_passages: float = decides(0.8, "hard_negatives", gt=0, le=1)
    """A passage is a positive's duplicate when this share of the shorter one's word 5-grams occurs in the other."""
    num_negatives: int = decides(4, "hard_negatives", ge=0, le=100)
    """Hard negatives wanted for each question; fewer where fewer survive."""
    relative_margin: float = decides(0.05, "hard_negatives", ge=0, lt=1)
    """A negative lies below ``1 - relative_margin`` of the least similar positive's similarity (95 %)."""
    range_min: Count = decides(0, "hard_negatives")
    """Ranks skipped at the top of the candidates before negatives are taken."""
    range_max: Positive = decides(100, "hard_negatives")
    """Candidates considered for each question, most similar first, without positives and duplicates."""
    cross_encoder: Path | None = decides(None, "hard_negatives")
    """Folder of a cross-encoder that checks the negatives: one over the ceiling by its scores answers the question."""
    judge_negatives: bool = decides(False, "hard_negatives")  # noqa: FBT003 - a default
    """Ask the LLM at ``llm.base_url`` about each negative: does it answer the question?"""
    false_negatives: Literal["drop", "promote"] = decides("drop", "hard_negatives")
    """What to do with a negative that a check finds to answer the question: drop it, or make it a positive."""
    augment_below: Count = decides(2000, "hard_negatives")
    """Below this many examples, augmentation is automatic."""
    augmentations: tuple[Augmentation, ...] = decides(
        ("keywords", "title", "heading", "link", "crop"), "qa_dataset", "hard_negatives"
    )
    """What augmented examples are made of, in this order until there are enough: a question's content words, a title
    and the document's opening, a heading and its section, a link's text and its target, a sentence and its segment."""
    max_augmented_share: Share = decides(0.25, "hard_negatives")
    """Augmented examples are at most this share of the training examples."""

    @property
    def generates(self) -> bool:
        """Whether a language model is asked for pairs at all."""
        return "generated" in self.sources

    @model_validator(mode="after")
    def _leaves_training_data(self) -> TrainingData:
        if self.dev_share + self.test_share >= 1:
            message = f"dev_share {self.dev_share} and test_share {self.test_share} leave nothing to train on"
            raise ValueError(message)
        if self.range_min >= self.range_max:
            message = f"range_min is {self.range_min}, not below range_max {self.range_max}"
            raise ValueError(message)
        return self


class Embedding(Group):
    """The base encoder, and how texts are encoded for mining and evaluation."""

    model: str = decides(
        "packaged", *_ENCODED, "base_comparison", "retrieval_evaluation", "onnx_model", "base_onnx_model"
    )
    """Base model: ``packaged`` (all-MiniLM-L6-v2 from its wheel), a sentence-transformers folder, or a hub name. auto:
    the best of ``candidates`` within ``max_gigaflops``."""
    candidates: tuple[str, ...] = decides((), "base_comparison")
    """Base models to compare before a training, each named as ``model`` is: on your own labelled sets and the generated
    test questions, as retrieval_evaluation measures them (table base_comparison)."""
    max_gigaflops: float = decides(30, "base_comparison", gt=0)
    """``model`` = auto takes no candidate that needs more than so many billion operations for a text of 128 tokens: one
    of MiniLM's size needs 3, one of base size 22, one of large size 80."""
    query_prefix: str = decides("auto", *_ENCODED, *_MEASURED, *_EXPORTED)
    """Text before every query; auto: what the model's own configuration says."""
    passage_prefix: str = decides("auto", *_ENCODED, *_MEASURED, *_EXPORTED)
    """Text before every passage; auto: what the model's own configuration says."""
    context: Context = decides("none", *_ENCODED, *_MEASURED, "onnx_model", "onnx_precisions", "release")
    """What is put before a segment's text wherever it is embedded: nothing, its document's title, or the title and the
    headings above it (path). Part of the release: clients must do the same to their passages (docs/operations.md)."""
    precision: Literal["fp32", "bf16"] = decides("fp32", *_ENCODED, *_MEASURED, *_EXPORTED)
    """Arithmetic of encoding; that of training is ``training.precision``."""
    trust_remote_code: bool = runs(False)  # noqa: FBT003 - a default
    """Run code that the model's folder brings along; only for a model you trust."""
    device: Literal["auto", "cpu", "cuda"] = runs("auto")
    """Where encoding and training run; auto: a GPU where there is one."""
    backend: Literal["auto", "torch", "onnx", "openvino"] = runs("torch")
    """What encodes a corpus in round trips, mining and evaluation: torch, or onnxruntime or OpenVINO with an fp32
    export of the model, if a sample's vectors come within a cosine of 0.99999 of torch's; auto: the fastest of these on
    this machine for 10,000 passages and more on a CPU, else torch. One comparison is encoded by one of them."""
    batch_tokens: Positive | Auto = runs("auto")
    """Tokens in one encoding batch, padding included; auto: 1,024 on a CPU, 512 on each of its cores, 65,536 on a GPU.
    """

    @property
    def reading_model(self) -> str:
        """What cuts documents and measures their questions: ``model``, or the first candidate before one is chosen."""
        return self.candidates[0] if self.model == "auto" else self.model

    @model_validator(mode="after")
    def _names_candidates(self) -> Embedding:
        if self.model == "auto" and not self.candidates:
            message = "model is auto and candidates names no model to choose from"
            raise ValueError(message)
        if "auto" in self.candidates or len({*self.candidates}) < len(self.candidates):
            message = f"candidates are {list(self.candidates)}; each must be a model, and named once"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _exports_are_exact(self) -> Embedding:
        if self.backend in {"onnx", "openvino"} and self.precision != "fp32":
            message = f"precision is {self.precision}, which backend = {self.backend} does not compute"
            raise ValueError(message)
        return self


class Training(Group):
    """Contrastive fine-tuning: what decides the trained weights, and how they are trained."""

    contrastive: bool = decides(True, TRAINING)  # noqa: FBT003 - a default
    """Train on the questions; false: the base's weights stay and ``adapter.share`` alone, which needs no questions,
    makes the model."""
    sides: Literal["both", "query"] = decides("both", TRAINING, "finetuned_model", "release")
    """What is tuned: queries and passages alike, or the query side alone. Passages then keep the base's vectors, so an
    index that was filled with the base stays valid."""
    loss_temperature: float = decides(0.02, TRAINING, gt=0, le=1)
    """InfoNCE temperature."""
    epochs: Annotated[float, Field(gt=0, le=100)] | Auto = decides("auto", TRAINING)
    """Passes over the examples; auto: from the number of examples."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] | Auto = decides("auto", TRAINING)
    """Examples in a batch; auto: from the number of examples."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | Auto = decides("auto", TRAINING)
    """Peak learning rate (AdamW, linear decay); auto: from the width of the model and who wrote the questions."""
    warmup_ratio: Share = decides(0.1, TRAINING)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = decides(0.01, TRAINING, ge=0, lt=1)
    """AdamW weight decay."""
    max_text_tokens: Annotated[int, Field(ge=1, le=32768)] | Auto = decides("auto", TRAINING)
    """Longest text in training, in tokens; auto: the model's own limit."""
    negatives_per_example: Annotated[int, Field(ge=0, le=100)] | Literal["auto", "all"] = decides("auto", TRAINING)
    """Mined negatives used of each example, most similar first; auto: one on a CPU, where a step's time goes to
    passages, else all."""
    evaluations_per_epoch: int = decides(1, TRAINING, ge=1, le=100)
    """How often dev nDCG@10 is measured; the best checkpoint is kept."""
    num_runs: int = decides(1, TRAINING, ge=1, le=16)
    """Trainings with consecutive seeds; the best on dev is kept, or the mean of their weights where that does
    better."""
    average_weights: bool = decides(True, TRAINING)  # noqa: FBT003 - a default
    """The mean of the weights over the second half of the steps wins where it does better on dev than any step."""
    lora_rank: Annotated[int, Field(ge=1, le=1024)] | None = decides(None, TRAINING)
    """Rank of LoRA adapters on every linear layer (needs peft); None: all weights are trained."""
    matryoshka_dimensions: tuple[Positive, ...] = decides((), TRAINING)
    """Shorter lengths that vectors may be cut to: each is trained with the full one and declared with the model."""
    teacher: str | None = decides(None, TRAINING)
    """Who scores each question's candidates softly: ``hybrid`` (BM25 and the base model), or a cross-encoder folder or
    hub name."""
    teacher_weight: float = decides(0.5, TRAINING, gt=0, le=100)
    """Weight of the teacher's loss relative to InfoNCE."""
    teacher_dense_weight: Share = decides(0.65, TRAINING, "finetuned_model")
    """Weight of the dense z-score in the hybrid that the linear adapter and a ``hybrid`` teacher follow."""
    precision: Literal["auto", "fp32", "bf16"] = decides("auto", TRAINING)
    """Arithmetic of training; auto: bf16 on GPUs that have it, processors with AMX and AMD's with AVX512-BF16, else
    fp32."""
    micro_batch_size: Positive | Auto = runs("auto")
    """Texts encoded at once under gradient caching; auto: gradient caching only when the batch does not fit."""
    gradient_checkpointing: bool = runs(False)  # noqa: FBT003 - a default
    """Keep few activations and compute them again: less memory, a third more time."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "packed"] = runs("auto")
    """Attention kernels; packed: torch's flash attention over batches without padding. auto: packed on a GPU where the
    model gives the same vectors so, else flash attention where it is installed; fp32 attention in bf16 training on a
    CPU; else the model's own choice."""
    compile: Literal["auto", "always", "never"] = runs("auto")
    """Run the model's layers through torch's compiler before training; auto: on a GPU where there is a C compiler, for
    trainings of 2,000 steps and more."""
    processes: int = runs(1, ge=1, le=64)
    """Training processes on this machine, one for each GPU."""


class Adapter(Group):
    """The linear adapter: a map after pooling, fitted to the corpus once the weights are chosen."""

    share: Share | Auto = decides("auto", "finetuned_model")
    """Share of a linear map after pooling, fitted so that each sentence of the corpus ranks the other documents'
    segments as BM25 and the model together do. Takes a minute or two and no questions; auto: half where the questions
    are generated and the corpus has 20 documents or more, or where ``training.contrastive`` is false; else none."""
    query_encoder_share: Share = decides(0.0, "finetuned_model")
    """With ``training.sides = "query"``: share of a query encoder that learns from the adapter's teacher as well, by
    the corpus's sentences and by the questions to train on, while passages keep the base's vectors. Takes minutes on a
    processor; 0.75 did best with half of the map."""


class Forgetting(Group):
    """The guard of what the base knew of general text."""

    questions: int = decides(400, "finetuned_model", ge=0, le=10_000)
    """Questions of the general check set, from the standard library's docstrings; with none nothing is checked."""
    max_loss: Share = decides(0.02, "finetuned_model")
    """Maximum loss in nDCG@10 on the general check set, absolute; beyond it weights are merged with the base's, and a
    model that still loses more is refused."""


class Evaluation(Group):
    """Base against tuned."""

    cutoffs: tuple[Positive, ...] = decides((1, 5, 10, 20, 60, 100), *_MEASURED)
    """k of nDCG@k, Recall@k, AllRecall@k, Precision@k, MAP@k and MRR@k; 10 must be among them."""
    query_sets: tuple[Path, ...] = decides(
        (Path("data/sample/python-reference"), Path("data/sample/two-documents")), *_MEASURED, "base_comparison"
    )
    """BEIR folders of queries people wrote; one that is absent, or knows no document here, is left out and named."""
    bootstrap_samples: int = decides(2000, *_MEASURED, ge=100, le=1_000_000)
    """Resamples behind every confidence interval."""
    hybrid_dense_weight: Share | Auto = decides("auto", *_MEASURED)
    """Weight of the dense z-score in the hybrids of BM25 with the base and with the tuned model; auto: for each, the
    most dense one within a standard error of the best on the dev questions."""

    @model_validator(mode="after")
    def _has_ten(self) -> Evaluation:
        if 10 not in self.cutoffs:  # noqa: PLR2004 - nDCG@10 is the figure that gates and headlines
            message = f"cutoffs are {list(self.cutoffs)}; 10 must be among them"
            raise ValueError(message)
        return self


class Release(Group):
    """Export and bundle."""

    opset: int = decides(20, "onnx_model", "base_onnx_model", ge=18, le=24)
    """ONNX operator set."""
    precisions: tuple[Literal["int8", "fp16"], ...] = decides(("int8",), "onnx_precisions")
    """Exports besides fp32: int8 for processors, fp16 for GPUs; each is released only within its bounds. int8 has a
    scale for each output channel or, where that misses its bound, for each block of 64 weights: nearer to fp32, and
    slower on processors without VNNI."""
    min_fp16_cosine: float = decides(0.999, "release", gt=0, le=1)
    """Minimum cosine between the fp16 export's and the original model's vector, over the evaluation corpus, for the
    export to be released."""
    max_int8_ndcg_delta: Share = decides(0.005, "onnx_precisions", "release")
    """An int8 export is released and served only where it changed nDCG@10 by no more than this when it was made."""
    base_export: bool = decides(True, "base_onnx_model")  # noqa: FBT003 - a default
    """Export the base model too: the endpoint then serves it next to the tuned one, for comparison."""


class Serving(Group):
    """The HTTP endpoint."""

    backend: Literal["auto", "onnx", "openvino", "torch", "tensorrt"] = decides("onnx", "deployment")
    """What computes: onnxruntime (on a GPU where it is built for one) or OpenVINO with an export of the bundle, torch
    with its model, TensorRT with its engine or, through onnxruntime, with its fp16 export; auto: the fastest."""
    precision: Literal["auto", "fp32", "int8", "fp16", "bf16"] = decides("fp32", "deployment")
    """Arithmetic that is served; auto: the fastest on this machine of those that may be. onnxruntime has no bf16, torch
    no int8 and fp16 on a GPU alone, OpenVINO no fp16, TensorRT fp16 alone."""
    host: Said = runs("127.0.0.1")
    """Address to listen on."""
    port: Annotated[int, Field(ge=1, le=65535)] | Auto = runs(8000)
    """Port to listen on; auto: any free one."""
    model_name: Said = runs("embed-pipeline")
    """Name under which the tuned model is served."""
    max_batch_tokens: Annotated[int, Field(ge=128)] | Auto = runs("auto")
    """Tokens in one inference batch, padding included, and in one text; auto: 32,768 where a GPU computes no padding,
    else 8,192."""
    max_queue_tokens: Positive = runs(600_000)
    """Tokens waiting before requests are refused with 429."""
    max_queue_seconds: float = runs(60, gt=0)
    """Longest that a request may have to wait for those before it, at the speed of the last full batches; one that
    would wait longer is refused with 429. Requests take turns: a single text does not wait for all of a large one."""
    max_request_tokens: Positive = runs(300_000)
    """Tokens in one request."""
    max_body_bytes: int = runs(8 * 1024 * 1024, ge=1024)
    """Bytes in one request body."""
    cores: Positive | Literal["all"] = runs("all")
    """Cores that compute. When many texts wait, each core takes a batch of its own; for that, a model of up to 512 MiB
    is held in memory twice."""
    reload_seconds: Annotated[float, Field(gt=0)] | Literal["never"] = runs(2.0)
    """How often to look whether another release of the store is current."""
    search_page: bool = runs(True)  # noqa: FBT003 - a default
    """Offer a page at / that searches the corpus, and so shows its text to whoever may use the endpoint."""
    drain_seconds: float = runs(30, ge=0)
    """Longest wait for the work in flight after SIGTERM."""
    start_seconds: float = runs(180, gt=0)
    """Longest wait of a deployment for its endpoint to be ready."""
    truncate: Literal["NONE", "END", "START"] = runs("NONE")
    """What happens to a text longer than the model reads where the request does not say ``truncate``, which many
    clients cannot: END and START keep its beginning and its end; NONE: the request is refused."""
    allowed_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = runs(())
    """Origins of web pages that may use the endpoint from a browser, such as ``https://notes.example`` or
    ``app://obsidian.md``; ``*``: any. None are allowed by default."""
    allowed_hosts: tuple[Annotated[str, AfterValidator(_host_name)], ...] = runs(())
    """Names that requests may call this machine by while the endpoint listens on a loopback address, as a proxy in
    front passes them on. ``localhost``, addresses and names without a dot are always allowed; any other name may
    belong to a web page that had itself resolved to this machine."""
    strict_input_type: bool = runs(False)  # noqa: FBT003 - a default
    """Refuse requests that do not say ``input_type``."""
    open_metrics: bool = runs(False)  # noqa: FBT003 - a default
    """Answer /metrics to other machines without a key."""

    @model_validator(mode="after")
    def _has_a_backend(self) -> Serving:
        impossible = {("onnx", "bf16"), ("torch", "int8"), ("openvino", "fp16")}
        impossible |= {("tensorrt", precision) for precision in ("fp32", "int8", "bf16")}
        if (self.backend, self.precision) in impossible:
            message = f"precision is {self.precision}, which backend = {self.backend} does not compute"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _holds_a_request(self) -> Serving:
        if self.max_queue_tokens < self.max_request_tokens:
            message = f"max_queue_tokens is {self.max_queue_tokens}, below max_request_tokens {self.max_request_tokens}"
            raise ValueError(message)
        return self


class Deployment(Group):
    """An endpoint that others run, verified in place of ours."""

    endpoint_url: str | None = runs(None)
    """Base URL of a server of the released model, such as ``http://host:8000``, with an OpenAI-compatible
    ``/v1/embeddings``: ours, NVIDIA's embedding NIM, Text Embeddings Inference or vLLM. ``deploy`` proves its vectors
    and rankings instead of starting an endpoint, and refuses what differs. None: an endpoint is started here."""
    endpoint_model: str = runs("auto")
    """Name of the model there; auto: the first that it lists."""
    endpoint_prefixes: Literal["auto", "client", "server"] = runs("auto")
    """Who puts the model's prefixes before texts: the client, or the server by ``input_type`` or by the ending
    ``-query`` or ``-passage`` of the model's name; auto: a server of ours does, others do not."""
    endpoint_precision: Literal["fp32", "fp16", "bf16"] = runs("fp32")
    """What the server computes in, by which its vectors are held to a bound; one of ours says so itself."""


class Gates(Group):
    """Bounds of the checks: what is too little, too much or too far off to continue."""

    min_accepted_pairs: Positive = gates(20)
    """The dataset check fails below this many accepted pairs."""
    min_acceptance_rate: Share = gates(0.15)
    """The dataset check fails below this share of accepted pairs."""
    min_pairs_per_document: float = gates(1, ge=0)
    """The yield check warns below this many accepted pairs for each document, on average."""
    min_segment_coverage: Share = gates(0.10)
    """The coverage check warns below this share of segments with an accepted question."""
    max_share_deviation: Share = gates(0.3)
    """The mix check warns where a type's or hop count's share of the accepted pairs is farther from what was asked."""
    min_mean_score: Score = gates(6)
    """The score check warns where the mean of a criterion over all judged pairs is below."""
    min_judge_spread: float = gates(0.25, ge=0, le=9)
    """The judge check fails where the overall scores of a judge that is asked have a smaller standard deviation."""
    min_judge_margin: float = gates(0.5, ge=0, le=9)
    """The judge check fails where planted bad pairs of a kind score less than this below the others, overall."""
    min_judge_agreement: Share = gates(0.7)
    """The review check warns where the thresholds surely agree with reviewers on less than this share of the pairs."""
    max_duplicate_rate: Share = gates(0.3)
    """The duplicate check warns above this share of duplicates among the pairs that pass every threshold."""
    min_round_trip_rate: Share = gates(0.3)
    """The round-trip check warns below this share of pairs whose sources are all among the ten best."""
    max_unknown_tokens: Share = gates(0.05)
    """The check of the corpus warns above this share of tokens that stand for words which the encoder does not know."""
    min_negative_coverage: Share = gates(0.5)
    """The negatives check warns below this share of questions with all the negatives wanted."""
    min_gain: float = gates(0.0, ge=-1, le=1)
    """Minimum gain in nDCG@10 on the generated test questions for a release, relative to the base."""
    max_labelled_loss: Share = gates(0.05)
    """Maximum loss in nDCG@10 on any set of people's queries, absolute, against the base and against the release
    served now; beyond it, or where a loss is significant, nothing is released."""
    min_export_cosine: float = gates(0.99999, gt=0, le=1)
    """Minimum cosine between the fp32 export's and the original model's vector, over the evaluation corpus."""
    max_export_ndcg_delta: Share = gates(0.001)
    """Maximum change of nDCG@10 that the fp32 export may bring."""
    min_export_top10_overlap: Share = gates(0.99)
    """Minimum mean overlap of the ten best passages, exported against original."""
    min_proven_cosine: float = gates(0.999, gt=0, le=1)
    """Minimum cosine to the fp32 export, measured on texts of the corpus when the endpoint starts; below it, OpenVINO,
    TensorRT, and torch in half precision are refused."""
    min_int8_top10_overlap: Share = gates(0.8)
    """Minimum mean overlap of the ten best passages in a deployment's check, where int8 is served."""
    min_champion_gain: float = gates(0.0, ge=-1, le=1)
    """Minimum gain in nDCG@10 over the release served now, relative, on the generated test questions; below it that one
    stays."""


class Tracking(Group):
    """MLflow."""

    uri: str | None = runs(None)
    """Tracking URI; None: SQLite in the store."""
    experiment: str = runs("embed-pipeline")
    """Experiment name."""
    registered_model: str = runs("embed-pipeline")
    """Registered model name."""
    mlflow_url: str | None = runs(None)
    """Address of the MLflow UI in a browser, for links from Dagster; None: ``uri``, where it is a server's."""
    dagster_url: str | None = runs(None)
    """Address of the Dagster UI, such as ``http://host:3000``, for links from MLflow; None: run ids alone."""


class Inspection(Group):
    """The page on which people read, trace and correct the QA set."""

    host: Said = runs("127.0.0.1")
    """Address to listen on. There is no sign-in: on another than loopback, put a proxy in front that asks for one."""
    port: Annotated[int, Field(ge=1, le=65535)] | Auto = runs(8010)
    """Port to listen on; auto: any free one."""
    corrections: bool = runs(False)  # noqa: FBT003 - a default
    """Take corrections; else the page is for reading alone."""
    reviewer: str | None = runs(None)
    """Name under which corrections are stored; None: the user that the page runs as."""
    reviewer_header: str | None = runs(None)
    """Header in which a proxy says who is signed in, such as ``X-Forwarded-User``; a correction without it is refused.
    The proxy has to remove it from what browsers send. None: ``reviewer``."""
    url: str | None = runs(None)
    """Address of the page in a browser, for links from Dagster, such as ``http://host:8010``; None: host and port."""

    @property
    def reviewer_name(self) -> str:
        """Who reviews where no proxy says it."""
        return self.reviewer or getpass.getuser()

    @property
    def address(self) -> str | None:
        """Where a browser finds the page; None: a port that is chosen at the start."""
        if self.url:
            return self.url.rstrip("/")
        return None if self.port == "auto" else f"http://{self.host}:{self.port}"


class Orchestration(Group):
    """Dagster."""

    executor: Literal["multiprocess", "docker", "kubernetes"] = runs("multiprocess")
    """Where the steps of a run started from the UI, a sensor or a schedule run: processes here, containers, or
    Kubernetes jobs (extra ``k8s``)."""
    max_parallel_steps: int = runs(2, ge=1, le=256)
    """Steps of one run at a time; steps that use the GPU always run one by one."""
    gpus: int = runs(0, ge=0, le=64)
    """GPUs that the Docker and Kubernetes executors give to each GPU-tagged step."""
    container_hours: float = runs(72, ge=0.1, le=8760)
    """The Docker executor's containers of ended runs and steps are removed after so many hours, with their logs."""
    automatic: bool = runs(False)  # noqa: FBT003 - a default
    """The document sensor, the automation of the cheap stages and the training schedule run from the start; else they
    wait to be switched on in the UI."""
    poll_seconds: int = runs(60, ge=1, le=86_400)
    """Minimum time between two scans of the documents folder by the sensor."""
    settle_seconds: float = runs(30, ge=0, le=86_400)
    """The sensor reads a file once nothing about it has changed for this long."""
    training_cron: str = runs("0 3 * * *")
    """When a training is considered: minute, hour, day, month and weekday, in UTC."""
    min_new_pairs: Positive = runs(50)
    """A scheduled training starts only with this many accepted pairs more than the last one had, batch by batch."""
    max_deleted_share: Share = runs(0.5)
    """If more than this share of the known files disappears at once, the sensor treats none as deleted: a mount may be
    missing. ``embed-pipeline sdg`` accepts the deletion."""
    fresh_days: float = runs(8, ge=0.01, le=3650)
    """The UI warns when the corpus, the model or the deployment is older than so many days; twice that is an alarm."""


@dataclass(frozen=True)
class Setting:
    """How a setting is defined.

    Attributes:
        name: ``group.name``, or ``seed``.
        field: type, default, bounds and description.
        kind: what the setting is for.
        assets: what it decides; empty for the other kinds.
    """

    name: str
    field: FieldInfo
    kind: Literal["decides", "runs", "gates"]
    assets: tuple[str, ...]


class Settings(Group):
    """Everything that can be set, a group for each topic."""

    seed: int = decides(
        17,
        *_ASKED,
        "dataset_split",
        "hard_negatives",
        TRAINING,
        *_MEASURED,
        "deployment",
        ge=0,
        lt=2**32,
    )
    """Seed of every random choice."""
    paths: Paths = Paths()
    corpus: Corpus = Corpus()
    llm: LLM = LLM()
    synthesis: Synthesis = Synthesis()
    training_data: TrainingData = TrainingData()
    embedding: Embedding = Embedding()
    training: Training = Training()
    adapter: Adapter = Adapter()
    forgetting: Forgetting = Forgetting()
    evaluation: Evaluation = Evaluation()
    release: Release = Release()
    serving: Serving = Serving()
    deployment: Deployment = Deployment()
    gates: Gates = Gates()
    tracking: Tracking = Tracking()
    inspection: Inspection = Inspection()
    orchestration: Orchestration = Orchestration()

    @property
    def structured(self) -> bool:
        """True where the model is asked for JSON by schema, false where it completes texts; auto: as is usual."""
        return not self.llm.embedded if self.synthesis.path == "auto" else self.synthesis.path == "structured"

    @property
    def asks_judge(self) -> bool:
        """True where a model judges the pairs, false where they are measured only; auto: as is usual."""
        return not self.llm.embedded if self.synthesis.judge == "auto" else self.synthesis.judge != "measured"

    @model_validator(mode="after")
    def _changes_the_base(self) -> Settings:
        if not self.training.contrastive and self.adapter.share == 0:
            raise ValueError(
                "training.contrastive is false and adapter.share is 0: the tuned model would be the base; "
                'set adapter.share to "auto" or above 0'
            )
        return self

    @model_validator(mode="after")
    def _follows_on_the_query_side(self) -> Settings:
        if self.adapter.query_encoder_share and (self.training.sides != "query" or self.adapter.share == 0):
            raise ValueError(
                'adapter.query_encoder_share needs training.sides = "query" and adapter.share above 0: it learns what '
                "the adapter learns, and passages keep the base's vectors"
            )
        return self

    @classmethod
    def definitions(cls) -> Iterator[Setting]:
        """How each setting is defined, in the order of definition."""
        for name, field in cls.model_fields.items():
            inner = field.annotation.model_fields if _is_group(field) else {"": field}  # type: ignore[union-attr]
            for own, definition in inner.items():
                said: Any = definition.json_schema_extra
                yield Setting(
                    name=f"{name}.{own}" if own else name,
                    field=definition,
                    kind=said["kind"],
                    assets=tuple(said.get("assets", ())),
                )

    def tracking_uri(self) -> str:
        """MLflow tracking URI: the one set, or SQLite in the store."""
        return self.tracking.uri or f"sqlite:///{(self.paths.store / 'mlflow.db').resolve()}"

    def since(self, moment: float) -> Settings:
        """These settings with caps that hold for everything asked since a moment, in seconds since the epoch."""
        return self.model_copy(update={"llm": self.llm.since(moment)})

    def with_base(self, model: str) -> Settings:
        """These settings with the base model that was chosen."""
        return self.model_copy(update={"embedding": self.embedding.model_copy(update={"model": model})})

    def flat(self) -> dict[str, Any]:
        """Every effective value under its ``group.name``, JSON-ready, for run records; passwords in URLs are masked."""
        return _leaves(json.loads(_URL_PASSWORD.sub(r"\1***@", self.model_dump_json())))

    def digest(self, asset: str) -> str:
        """Short hash of the settings that decide ``asset``, or a part of it: for code versions and fingerprints."""
        parts = {asset, *PARTS.get(asset, ())}
        values = _leaves(self.model_dump(mode="json"))
        if asset != "base_comparison":
            # Which model is chosen is an input of what is made with it.
            values["embedding.model"] = self.embedding.reading_model
        chosen = {setting.name: values[setting.name] for setting in self.definitions() if parts & {*setting.assets}}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]

    def as_environment(self, groups: Sequence[str]) -> dict[str, str]:
        """The variables that give another process these values of ``groups``."""
        return {
            f"{ENVIRONMENT_PREFIX}{group}__{name}".upper(): _as_text(value)
            for group in groups
            for name, value in getattr(self, group).model_dump(mode="json").items()
        }


def _leaves(values: dict[str, Any]) -> dict[str, Any]:
    groups = {name: group for name, group in values.items() if isinstance(group, dict)}
    return {
        "seed": values["seed"],
        **{f"{name}.{own}": v for name, group in groups.items() for own, v in group.items()},
    }


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={part}" for name, part in value.items())
    return "none" if value is None else str(value)


def load_settings(config: Path | None = None) -> Settings:
    """Read settings from the TOML file and the environment, which wins.

    Args:
        config: TOML file; None: ``$EMBED_PIPELINE_CONFIG``, else ``embed_pipeline.toml`` here if there is one.

    Raises:
        SettingsError: naming each setting that is unknown, malformed or out of range, its value and the bound.
    """
    said = os.environ.get(CONFIG_VARIABLE, "").strip()
    named = config or (Path(said) if said else None)
    if named and not named.exists():
        message = f"settings file {named}: No such file or directory"
        raise SettingsError(message)
    _refuse_unknown_variables()
    path = named or Path("embed_pipeline.toml")
    if path.is_dir():
        message = f"settings file {path} is a folder; name a file, or remove it"
        raise SettingsError(message)
    try:
        loaded = _Loaded(**_SettingsFile(_Loaded, path)())
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error
    except OSError as error:
        message = f"settings file {path}: {error.strerror}"
        raise SettingsError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"settings file {path} is not TOML: {error}"
        raise SettingsError(message) from error
    return Settings(**dict(loaded))


class _SettingsFile(TomlConfigSettingsSource):
    """A TOML file, with the byte order mark that some editors write or without."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:  # noqa: ANN401 - other versions of pydantic pass other types
        return tomllib.loads(file_path.read_text(encoding="utf-8-sig"))


class _Loaded(BaseSettings, Settings):
    """Settings under the values of the environment; :class:`Settings` itself reads none."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", enable_decoding=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings' signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, then what is given (the file)."""
        return env_settings, init_settings


def _refuse_unknown_variables() -> None:
    """Refuse variables of ours that name no group: pydantic-settings passes them over.

    Raises:
        SettingsError: naming the setting.
    """
    for variable in sorted(os.environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _NOT_SETTINGS:
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        field = Settings.model_fields.get(name[0])
        if field is None:
            message = f"unknown setting {'.'.join(name)!r}{_suggestion('.'.join(name))}"
            raise SettingsError(message)
        if len(name) > 1 and not _is_group(field):
            message = f"{'.'.join(name)}: {name[0]} is a single setting, not a group"
            raise SettingsError(message)


def override_variable(assignment: str) -> tuple[str, str]:
    """Turn ``group.name=value`` into the environment variable that carries it.

    Raises:
        SettingsError: if the text has no ``=`` or the name is not ``group.name`` or ``seed``.
    """
    name, separator, value = assignment.partition("=")
    if not separator or (name != "seed" and name.count(".") != 1):
        message = f"--set {assignment!r}: expected group.name=value, such as synthesis.max_hops=2"
        raise SettingsError(message)
    return ENVIRONMENT_PREFIX + name.replace(".", "__").upper(), value


def llm_api_key() -> str | None:
    """The LLM endpoint's key: ``EMBED_PIPELINE_LLM_API_KEY``, else ``OPENAI_API_KEY``; without blanks around it."""
    keys = (os.environ.get(name, "").strip() for name in (LLM_KEY_VARIABLE, "OPENAI_API_KEY"))
    return next(filter(None, keys), None)


def serving_api_key() -> str | None:
    """The key that clients of the embedding server must send, without blanks around it; None: open.

    Raises:
        SettingsError: the variable is set and blank, which would be an endpoint open to everybody by mistake.
    """
    key = os.environ.get(SERVING_KEY_VARIABLE)
    if key is None:
        return None
    if not key.strip():
        message = f"{SERVING_KEY_VARIABLE} is set and blank; give it a key, or unset it to serve without one"
        raise SettingsError(message)
    return key.strip()


def _explain(error: ValidationError) -> str:
    lines: dict[str, str] = {}
    words: dict[str, str] = {}
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines[name] = f"unknown setting {name!r}{_suggestion(name)}"
            continue
        # Of a number or a word there is a problem for each of the two, with which of them at the end of its place.
        setting = next((one for one in Settings.definitions() if name.startswith(f"{one.name}.")), None)
        if setting is not None and get_origin(setting.field.annotation) in {Union, UnionType}:
            name = setting.name
            if problem["type"] == "literal_error":
                words[name] = f", or {problem['ctx']['expected']}"
                continue
        value = "" if isinstance(problem["input"], dict) else f" = {without_secrets(repr(problem['input']))}"
        lines[name] = f"setting {name or 'group'}{value}: {problem['msg'].removeprefix('Value error, ')}"
    return "; ".join(line + words.get(name, "") for name, line in lines.items())


def _suggestion(name: str) -> str:
    from difflib import get_close_matches

    names = {setting.name for setting in Settings.definitions()} | set(Settings.model_fields)
    close = get_close_matches(name, sorted(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

"""Every setting and threshold of the product.

Settings come from ``embed_pipeline.toml``, are overridden by environment variables
(``EMBED_PIPELINE_<STAGE>__<NAME>``) and by ``--set stage.name=value`` on the command line (which only
sets that environment variable, so that every process of a run sees the same values). Unknown names and
values out of range are refused with the name, the value and the bound. Secrets are never settings: API keys
are read from the environment at the moment of use (:func:`llm_api_key`, :func:`serving_api_key`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

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
_CRON_BOUNDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))

TEXT_SUFFIXES = (".md", ".markdown", ".mdx", ".txt", ".rst", ".html", ".htm", ".xhtml", ".ipynb")
ROW_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
OFFICE_SUFFIXES = (".pdf", ".docx", ".pptx")
"""Endings that the extra ``documents`` reads."""

Share = Annotated[float, Field(ge=0, le=1)]
Score = Annotated[float, Field(ge=1, le=10)]
Positive = Annotated[int, Field(ge=1)]

REASONING_TYPES = ("factual", "relational", "inferential", "temporal", "procedural", "causal", "visual")
STYLES = ("question", "keywords", "symptom", "paraphrase")


def _reads_office() -> bool:
    return find_spec("markitdown") is not None


def _default_suffixes() -> tuple[str, ...]:
    return (*TEXT_SUFFIXES, *OFFICE_SUFFIXES) if _reads_office() else TEXT_SUFFIXES


def _read_weights(value: object) -> object:
    """``a=2,b=1``, as environment variables carry it, to a table."""
    if not isinstance(value, str):
        return value
    return dict(part.split("=", 1) for part in value.split(",")) if "=" in value else value


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


def _folder_or_url(value: object) -> object:
    """A folder as a path, an address as text; ``file://`` is a folder."""
    text = str(value)
    if "://" not in text:
        return Path(text)
    protocol, _, place = text.partition("://")
    if "::" in text or "?" in text or _URL_PASSWORD.search(text):
        message = "must be a plain address, without chained protocols, a query or a password; credentials come from "
        raise ValueError(message + "the environment (see docs/operations.md)")
    return Path(place) if protocol in {"file", "local"} else text.rstrip("/")


Augmentation = Literal["keywords", "title", "heading", "link", "crop"]


class SettingsError(ValueError):
    """A setting is unknown, malformed or out of its bounds."""


class _Stage(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Paths(_Stage):
    """Where documents are read from and where everything made is kept."""

    documents: Annotated[Path | str, BeforeValidator(_folder_or_url)] = Path("data/documents")
    """Folder of input documents, read recursively; or an address that fsspec can list, such as ``s3://bucket/prefix``,
    ``gs://``, ``az://`` or ``https://``."""
    store: Path = Path("data/store")
    """Folder of this machine for tables, models, releases, the response store, run history and work in progress."""
    assets: str | None = None
    """Where tables, models, releases and batch manifests are kept instead, such as ``s3://bucket/prefix``; the store
    then keeps the rest, and copies of the models and releases in use. None: in the store."""

    @field_validator("store", mode="before")
    @classmethod
    def _is_a_folder(cls, value: object) -> object:
        if "://" in str(value):
            message = "must be a folder of this machine; paths.assets puts tables, models and releases elsewhere"
            raise ValueError(message)
        return value

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
    def root(self) -> UPath:
        """The folder that tables, models, releases and batch manifests are kept in."""
        from upath import UPath

        return self.remote or UPath(self.store)


class Corpus(_Stage):
    """Files to documents to segments."""

    suffixes: tuple[str, ...] = Field(default_factory=_default_suffixes)
    """File name endings that are read; others are left alone and counted. Default: .md, .markdown, .mdx, .txt, .rst,
    .html, .htm, .xhtml and .ipynb, and where the extra ``documents`` is installed .pdf, .docx and .pptx. Also known:
    .csv, .tsv, .jsonl and .ndjson, of which each row is a section."""
    max_file_bytes: int = Field(default=20_000_000, ge=1)
    """A larger file is set aside unread."""
    max_unpacked_bytes: int = Field(default=200_000_000, ge=1)
    """An Office file that unpacks to more is set aside."""
    conversion_megabytes: int = Field(default=1024, ge=64, le=65_536)
    """Memory that reading one file may take."""
    conversion_seconds: float = Field(default=120, gt=0)
    """Time that reading one file may take; of a PDF the pages that fit are kept."""
    word_comments: bool = False
    """Read the comments of Word files too, after the text."""
    max_files: Positive = 500_000
    """The scan stops with an error beyond this many files and folders."""
    boilerplate_share: Share = 0.3
    """Lines that this share of the documents has are boilerplate (menus, page heads and feet, licences): a paragraph of
    such lines stays in the first document and is taken out of the others; 0: nothing is."""
    boilerplate_documents: int = Field(default=10, ge=2)
    """Least number of documents that must have a line for it to be boilerplate."""
    near_duplicates: Share = 0.95
    """A document that shares more of its word 5-grams with an earlier one is left out of the corpus; 0: none is."""
    documents_per_batch: Positive = 200
    """A drop of more new files than this is cut into several batches."""
    segment_tokens: int = Field(default=200, ge=16, le=8192)
    """Longest segment, in tokens of the base encoder; never more than the encoder reads, prefix and special tokens
    included."""
    min_segment_tokens: int = Field(default=24, ge=1)
    """Shorter segments (bare headings) stay stored, but no question is asked of them."""

    @field_validator("suffixes")
    @classmethod
    def _are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        suffixes = tuple(dict.fromkeys(f".{suffix.strip().lower().removeprefix('.')}" for suffix in value))
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


class LLM(_Stage):
    """The model that writes and judges questions."""

    base_url: str | None = None
    """OpenAI-compatible endpoint, such as ``http://host:8000/v1``. None: the embedded llama.cpp server."""
    model: str = "embedded"
    """Model name at the endpoint."""
    judge_model: str | None = None
    """Model that judges pairs; None: the generator's."""
    gguf_path: Path | None = None
    """GGUF file for the embedded server; None: the packaged SmolLM2-135M-Instruct."""
    slots: int = Field(default=8, ge=1, le=256)
    """Parallel sequences of the embedded server."""
    threads: int = Field(default=0, ge=0)
    """Threads of the embedded server; 0: all cores of the machine."""
    max_concurrency: int = Field(default=64, ge=1, le=4096)
    """Upper bound of requests in flight at an endpoint; the client adapts below it."""
    timeout_seconds: float = Field(default=120, gt=0)
    """Longest wait for one answer."""
    max_attempts: int = Field(default=6, ge=1, le=20)
    """Tries for one request on 408, 409, 429, 5xx and broken connections."""
    structured_outputs: Literal["auto", "json_schema", "plain"] = "auto"
    """How JSON is asked for: by schema where the endpoint has it, else by instruction; both are validated."""
    max_output_tokens: int = Field(default=2048, ge=16)
    """Answer length limit at an endpoint."""
    max_calls: int = Field(default=0, ge=0)
    """Hard cap on calls of one run; 0: none."""
    max_tokens: int = Field(default=0, ge=0)
    """Hard cap on prompt plus completion tokens of one run; 0: none."""
    max_cost: float = Field(default=0, ge=0)
    """Hard cap on the cost of one run, in the currency of the prices; 0: none."""
    price_per_million_prompt_tokens: float = Field(default=0, ge=0)
    """Price of a million prompt tokens; the embedded model costs nothing."""
    price_per_million_completion_tokens: float = Field(default=0, ge=0)
    """Price of a million completion tokens."""
    seconds_per_call: float = Field(default=5, gt=0)
    """Expected time of one call at an endpoint, for ``embed-pipeline estimate``."""

    @property
    def embedded(self) -> bool:
        """True when the embedded server answers."""
        return self.base_url is None


class Synthesis(_Stage):
    """Segments to question-answer pairs to accepted pairs."""

    questions_per_segment: int = Field(default=2, ge=1, le=20)
    """Single-hop questions asked of every segment that is long enough."""
    questions_per_document: int = Field(default=0, ge=0)
    """Single-hop questions asked of every document, spread over its segments; 0: ``questions_per_segment`` decides."""
    structural_share: Share = 0.25
    """Share of the single-hop questions that ask how parts relate (steps, options, what belongs to what)."""
    reasoning_types: Weights = Field(
        default={"factual": 3, "procedural": 2, "causal": 1, "inferential": 1, "relational": 1, "temporal": 0.5}
    )
    """Weights of the reasoning types asked for; ``visual`` too where documents describe figures."""
    styles: Weights = Field(default={"question": 4, "keywords": 2, "symptom": 1, "paraphrase": 1})
    """Weights of the styles asked for: full question, keyword query, error message or symptom, other words."""
    multi_hop_share: Share = 0.1
    """Multi-hop questions as a share of the single-hop ones."""
    cross_document_share: Share = 0.5
    """Share of the multi-hop questions that join different documents, as far as neighbours allow."""
    max_hops: int = Field(default=3, ge=1, le=5)
    """Most segments that one question may join."""
    min_complexity: int = Field(default=1, ge=1, le=5)
    """Least complexity asked of the generator (1: a stated fact, 5: reasoning over several statements)."""
    max_complexity: int = Field(default=5, ge=1, le=5)
    """Greatest complexity asked of the generator."""
    temperature: float = Field(default=0.3, ge=0, le=2)
    """Sampling temperature of the generator."""
    min_relevance: Score = 6
    """Least relevance of an accepted pair (1-10)."""
    min_accuracy: Score = 6
    """Least accuracy of an accepted pair (1-10)."""
    min_context_support: Score = 6
    """Least context support of an accepted pair (1-10)."""
    min_clarity: Score = 6
    """Least clarity of an accepted pair (1-10)."""
    min_overall: Score = 7
    """Least overall score of an accepted pair: the mean of the four."""
    check_hops: bool = True
    """Have the judge say of every multi-hop pair whether each of its hops is needed; else that is only measured."""
    min_hop_need: Share = 0.15
    """Where the judge is not asked: the share of its question's rare words that each hop of a pair must hold alone."""
    max_round_trip_rank: int = Field(default=20, ge=1)
    """A pair is dropped unless the base model and BM25 together find each of its segments this high."""
    near_duplicate_similarity: float = Field(default=0.95, gt=0, le=1)
    """Questions with a cosine similarity above this are one question; the better-scored is kept."""
    min_acceptance_rate: Share = 0.15
    """The dataset check fails below this share of accepted pairs."""
    min_segment_coverage: Share = 0.10
    """The dataset check warns below this share of segments with an accepted question."""
    min_accepted_pairs: Positive = 20
    """The dataset check fails below this many accepted pairs."""
    min_pairs_per_document: float = Field(default=1, ge=0)
    """The yield check warns below this many accepted pairs for each document, on average."""
    max_share_deviation: Share = 0.3
    """The mix check warns where a type's or hop count's share of the accepted pairs is farther from what was asked."""
    min_mean_score: Score = 6
    """The score check warns where the mean of a criterion over all judged pairs is below."""
    max_duplicate_rate: Share = 0.3
    """The duplicate check warns above this share of duplicates among the pairs that pass every threshold."""
    min_round_trip_rate: Share = 0.3
    """The round-trip check warns below this share of pairs whose sources are all among the ten best."""

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


class TrainingData(_Stage):
    """Accepted pairs to split to hard negatives to training examples."""

    sources: tuple[Literal["generated", "structure"], ...] = ("generated",)
    """Where pairs come from beside ``labelled``: generated by the LLM, the documents' own structure; may be empty."""
    labelled: tuple[Path, ...] = ()
    """Your own labels, mixed in: BEIR folders, or JSONL or Parquet files of questions with positives."""
    dev_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the pairs, by document group, held out for choosing the checkpoint."""
    test_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the pairs, by document group, held out for the evaluation; more where ``min_test_questions`` asks it."""
    min_test_questions: Positive = 10
    """The split aims at this many test questions in a small set, and its check fails below."""
    near_duplicate_documents: float = Field(default=0.6, gt=0, le=1)
    """Documents are one group when this share of the shorter one's word 5-grams stands in the other."""
    near_duplicate_questions: float = Field(default=0.8, gt=0, le=1)
    """Questions are near-duplicates at this Jaccard similarity of their content words; no side has another's."""
    near_duplicate_passages: float = Field(default=0.8, gt=0, le=1)
    """A passage is a positive's duplicate when this share of the shorter one's word 5-grams stands in the other."""
    max_group_share: float = Field(default=0.1, gt=0, le=1)
    """Multi-hop questions join documents only while the group stays under this share of all documents (or is two)."""
    num_negatives: int = Field(default=4, ge=0, le=100)
    """Hard negatives wanted for each question; fewer where fewer survive."""
    relative_margin: float = Field(default=0.05, ge=0, lt=1)
    """A negative lies below ``1 - relative_margin`` of the least similar positive's similarity (95 %)."""
    absolute_margin: float = Field(default=0.0, ge=0, le=2)
    """A negative lies at least this far below the least similar positive's similarity."""
    range_min: int = Field(default=0, ge=0)
    """Ranks skipped at the top of the candidates before negatives are taken."""
    range_max: int = Field(default=100, ge=1)
    """Candidates looked at for each question, most similar first, positives and duplicates left out."""
    search_backend: Literal["torch", "faiss"] = "torch"
    """What searches for candidates, on a GPU where there is one; the result is the same."""
    sampling_strategy: Literal["top", "random"] = "top"
    """Which surviving candidates become negatives: the most similar, or a seeded choice."""
    cross_encoder: Path | None = None
    """Folder of a cross-encoder that checks the negatives: one over the ceiling by its scores answers the question."""
    judge_negatives: bool = False
    """Ask the LLM at ``llm.base_url`` of each negative whether it answers the question."""
    false_negatives: Literal["drop", "promote"] = "drop"
    """What becomes of a negative that a check says answers the question: dropped, or a positive."""
    min_negative_coverage: Share = 0.5
    """The negatives check warns below this share of questions with all the negatives wanted."""
    augment_below: int = Field(default=2000, ge=0)
    """Under this many examples, augmentation is automatic; 0: never."""
    augmentations: tuple[Augmentation, ...] = ("keywords", "title", "heading", "link", "crop")
    """What augmented examples are made of, in this order until there are enough: a question's content words, a title
    and the document's opening, a heading and its section, a link's text and its target, a sentence and its segment."""
    max_augmented_share: Share = 0.25
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


class Embedding(_Stage):
    """The base encoder, and how texts are encoded for mining and evaluation."""

    model: str = "packaged"
    """Base model: ``packaged`` (all-MiniLM-L6-v2 from its wheel), a sentence-transformers folder, or a hub name."""
    trust_remote_code: bool = False
    """Run code that the model's folder brings along; only for a model you trust."""
    query_prefix: str | None = None
    """Text before every query; None: what the model's own configuration says."""
    passage_prefix: str | None = None
    """Text before every passage; None: what the model's own configuration says."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where encoding and training run; auto: a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of training and encoding; auto: bf16 for training on GPUs that have it and processors with AMX,
    fp32 for all else."""
    batch_tokens: int = Field(default=0, ge=0)
    """Tokens in one encoding batch, padding included; 0: 1,024 on a CPU, 65,536 on a GPU."""


class Training(_Stage):
    """Contrastive fine-tuning."""

    contrastive: bool = True
    """Train on the questions; false: the base's weights stay and ``linear_adapter`` alone, which needs no questions,
    makes the model."""
    temperature: float = Field(default=0.02, gt=0, le=1)
    """InfoNCE temperature."""
    epochs: float = Field(default=0, ge=0, le=100)
    """Passes over the examples; 0: from the number of examples."""
    batch_size: int = Field(default=0, ge=0, le=65536)
    """Examples in a batch; 0: from the number of examples."""
    micro_batch_size: int = Field(default=0, ge=0)
    """Texts encoded at once under gradient caching; 0: gradient caching only when the batch does not fit."""
    learning_rate: float = Field(default=0, ge=0, lt=1)
    """Peak learning rate (AdamW, linear decay); 0: from the width of the model and who wrote the
    questions."""
    warmup_share: Share = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.01, ge=0, lt=1)
    """AdamW weight decay."""
    max_tokens: int = Field(default=0, ge=0, le=32768)
    """Longest text in training, in tokens; 0: the model's own limit."""
    negatives: int = Field(default=0, ge=0, le=100)
    """Mined negatives used of each example, most similar first; 0: one on a CPU, where a step's time goes to passages,
    else all."""
    evaluations_per_epoch: int = Field(default=1, ge=1, le=100)
    """How often dev nDCG@10 is measured; the best checkpoint is kept."""
    seeds: int = Field(default=1, ge=1, le=16)
    """Trainings with seeds in a row; the best on dev wins, or the mean of their weights where that does better."""
    average_weights: bool = True
    """The mean of the weights over the second half of the steps wins where it does better on dev than any step."""
    lora_rank: int = Field(default=0, ge=0, le=1024)
    """Rank of LoRA adapters on every linear layer (needs peft); 0: all weights are trained."""
    matryoshka_dimensions: tuple[Positive, ...] = ()
    """Shorter lengths that vectors may be cut to: each is trained beside the full one and declared with the model."""
    gradient_checkpointing: bool = False
    """Keep few activations and compute them again: less memory, a third more time."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "packed"] = "auto"
    """Attention kernels; packed: torch's flash attention over batches without padding. auto: packed on a GPU where the
    model gives the same vectors so, else flash attention where it is installed; fp32 attention in bf16 training on a
    CPU; else the model's own choice."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Run the model's layers through torch's compiler before training; auto: on a GPU with a C compiler beside it, for
    trainings of 2,000 steps and more."""
    teacher: str = "none"
    """Who scores each question's candidates softly: none, ``hybrid`` (BM25 and the base model), or a cross-encoder
    folder or hub name."""
    teacher_loss: Literal["kl", "margin"] = "kl"
    """How a teacher is followed: its distribution over the candidates, or its margins of positive over negatives."""
    teacher_weight: float = Field(default=0.5, gt=0, le=100)
    """Weight of the teacher's loss beside InfoNCE."""
    linear_adapter: Share | None = None
    """Share of a linear map that is put after pooling once the weights are chosen: by it, each sentence of the corpus
    ranks the other documents' segments as BM25 and the model together do. Takes a minute or two and no questions; 0:
    none; None: half where the questions are generated and the corpus has 20 documents or more."""
    processes: int = Field(default=1, ge=1, le=64)
    """Training processes on this machine, one for each GPU."""

    @model_validator(mode="after")
    def _changes_the_base(self) -> Training:
        if not self.contrastive and not self.linear_adapter:
            message = (
                "contrastive is false without a linear_adapter: the tuned model would be the base; set linear_adapter"
            )
            raise ValueError(message)
        return self


class Evaluation(_Stage):
    """Base against tuned."""

    cutoffs: tuple[Positive, ...] = (1, 5, 10, 20, 60, 100)
    """k of nDCG@k, Recall@k, Precision@k, MAP@k and MRR@k; 10 must be among them."""
    labelled: tuple[Path, ...] = (Path("data/sample/python-reference"),)
    """BEIR folders of queries people wrote; one that is absent, or knows no document here, is left out and named."""
    bootstrap_samples: int = Field(default=2000, ge=100, le=1_000_000)
    """Resamples behind every confidence interval."""
    min_gain: float = Field(default=0.0, ge=-1, le=1)
    """Least gain in nDCG@10 on the generated test questions for a release, relative to the base."""
    max_labelled_loss: float = Field(default=0.05, ge=0, le=1)
    """Greatest loss in nDCG@10 on any labelled set, absolute; beyond it, or where a loss is significant, nothing is
    released."""
    max_forgetting: float = Field(default=0.02, ge=0, le=1)
    """Greatest loss in nDCG@10 on the general check set, absolute; beyond it weights are merged with the base's."""
    general_questions: int = Field(default=400, ge=0, le=10_000)
    """Questions of the general check set, from the standard library's docstrings; 0: nothing is checked."""
    hybrid_dense_weight: Share = 0.65
    """Weight of the dense z-score in the BM25 + dense hybrid."""

    @model_validator(mode="after")
    def _has_ten(self) -> Evaluation:
        if 10 not in self.cutoffs:  # noqa: PLR2004 - nDCG@10 is the figure that gates and headlines
            message = f"cutoffs are {list(self.cutoffs)}; 10 must be among them"
            raise ValueError(message)
        return self


class Release(_Stage):
    """Export, parity and bundle."""

    opset: int = Field(default=20, ge=18, le=24)
    """ONNX operator set."""
    min_cosine: float = Field(default=0.99999, gt=0, le=1)
    """Least cosine between the exported and the original model's vector, over the evaluation corpus."""
    max_ndcg_delta: float = Field(default=0.001, ge=0, le=1)
    """Greatest change of nDCG@10 that the export may bring."""
    min_top10_overlap: Share = 0.99
    """Least mean overlap of the ten best passages, exported against original."""
    precisions: tuple[Literal["int8", "fp16"], ...] = ("int8",)
    """Exports beside fp32: int8 for processors, fp16 for GPUs; each is released only within its bounds."""
    int8: Literal["dynamic", "static"] = "dynamic"
    """How int8 takes the ranges of activations: from each batch, or from passages of the corpus once and for all."""
    min_fp16_cosine: float = Field(default=0.999, gt=0, le=1)
    """Least cosine between the fp16 export's and the original model's vector, over the evaluation corpus."""
    base_export: bool = True
    """Export the base model too: the endpoint then serves it beside the tuned one, for comparison."""


class Serving(_Stage):
    """The HTTP endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0: any free one."""
    model_name: str = "embed-pipeline"
    """Name under which the tuned model is served."""
    max_batch_tokens: int | None = Field(default=None, ge=128)
    """Tokens in one inference batch, padding included, and in one text; None: 32,768 where a GPU computes no padding,
    else 8,192."""
    max_queue_tokens: int = Field(default=600_000, ge=1)
    """Tokens waiting before requests are refused with 429."""
    max_request_tokens: int = Field(default=300_000, ge=1)
    """Tokens in one request."""
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    """Bytes in one request body."""
    batch_tokens: int = Field(default=0, ge=0)
    """Tokens that waiting texts are merged into; 0: 768 on a CPU, max_batch_tokens on a GPU."""
    threads: int = Field(default=0, ge=0)
    """Cores that compute; 0: all of them. Where many texts wait, each core takes a batch of its own, for which a model
    of up to 512 MiB is held in memory twice."""
    backend: Literal["auto", "onnx", "openvino", "torch"] = "onnx"
    """What computes: onnxruntime or OpenVINO with an export of the bundle, torch with its model; auto: the fastest."""
    precision: Literal["auto", "fp32", "int8", "fp16", "bf16"] = "fp32"
    """Arithmetic that is served; auto: the fastest on this machine of those that may be. onnxruntime has no bf16, torch
    no int8 and fp16 on a GPU alone, OpenVINO no fp16."""
    min_proven_cosine: float = Field(default=0.999, gt=0, le=1)
    """OpenVINO, and torch in half precision, are served only where their vectors come so near those of the fp32 export,
    least cosine, on texts of the corpus when the endpoint starts."""
    max_int8_ndcg_delta: float = Field(default=0.005, ge=0, le=1)
    """An int8 export is released and served only where it changed nDCG@10 by no more than this when it was made."""
    min_int8_top10_overlap: Share = 0.8
    """Least mean overlap of the ten best passages in a deployment's check, where int8 is served."""
    reload_seconds: float = Field(default=2, ge=0)
    """How often to look whether another release of the store is current; 0: never."""
    search_page: bool = True
    """Offer a page at / that searches the corpus, and so shows its text to whoever may use the endpoint."""
    header_seconds: float = Field(default=10, gt=0)
    """A connection whose request headers take longer is closed."""
    body_seconds: float = Field(default=30, gt=0)
    """A request whose body takes longer is refused and its connection closed."""
    drain_seconds: float = Field(default=30, ge=0)
    """Longest wait for the work in flight after SIGTERM."""
    start_seconds: float = Field(default=180, gt=0)
    """Longest wait of a deployment for its endpoint to be ready."""
    strict_input_type: bool = False
    """Refuse requests that do not say ``input_type``."""
    open_metrics: bool = False
    """Answer /metrics to other machines without a key."""

    @model_validator(mode="after")
    def _has_a_backend(self) -> Serving:
        if (self.backend, self.precision) in {("onnx", "bf16"), ("torch", "int8"), ("openvino", "fp16")}:
            message = f"precision is {self.precision}, which backend = {self.backend} does not compute"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _holds_a_request(self) -> Serving:
        if self.max_queue_tokens < self.max_request_tokens:
            message = f"max_queue_tokens is {self.max_queue_tokens}, below max_request_tokens {self.max_request_tokens}"
            raise ValueError(message)
        return self


class Tracking(_Stage):
    """MLflow."""

    uri: str | None = None
    """Tracking URI; None: SQLite in the store."""
    experiment: str = "embed-pipeline"
    """Experiment name."""
    registered_model: str = "embed-pipeline"
    """Registered model name."""
    mlflow_url: str | None = None
    """Address of the MLflow UI in a browser, for links from Dagster; None: ``uri``, where it is a server's."""
    dagster_url: str | None = None
    """Address of the Dagster UI, such as ``http://host:3000``, for links from MLflow; None: run ids alone."""


class Orchestration(_Stage):
    """Dagster."""

    executor: Literal["multiprocess", "docker", "kubernetes"] = "multiprocess"
    """Where the steps of a run started from the UI, a sensor or a schedule run: processes here, containers, or
    Kubernetes jobs (extra ``k8s``)."""
    max_parallel_steps: int = Field(default=2, ge=1, le=256)
    """Steps of one run at a time; steps that use the GPU always run one by one."""
    gpus: int = Field(default=0, ge=0, le=64)
    """GPUs that the Docker and Kubernetes executors give to each GPU-tagged step; 0: none."""
    automatic: bool = False
    """The document sensor, the automation of the cheap stages and the training schedule run from the start; else they
    wait to be switched on in the UI."""
    poll_seconds: int = Field(default=60, ge=1, le=86_400)
    """Least time between two looks of the sensor at the documents folder."""
    settle_seconds: float = Field(default=30, ge=0, le=86_400)
    """A file is taken by the sensor once nothing about it has changed for so long."""
    files_per_tick: int = Field(default=5000, ge=1)
    """Files that the sensor reads in one look; the rest waits for the next."""
    bytes_per_tick: int = Field(default=500_000_000, ge=1)
    """Bytes that the sensor reads in one look."""
    runs_per_tick: int = Field(default=50, ge=1, le=1000)
    """Runs that the sensor asks for in one look."""
    training_cron: str = "0 3 * * *"
    """When a training is considered: minute, hour, day, month and weekday, in UTC."""
    min_new_pairs: int = Field(default=50, ge=1)
    """A scheduled training starts only with this many accepted pairs more than the last one had, batch by batch."""
    max_deleted_share: Share = 0.5
    """Where more than this share of the known files is gone at once, the sensor takes none for deleted: a mount may be
    missing. ``embed-pipeline sdg`` takes them."""
    min_champion_gain: float = Field(default=0.0, ge=-1, le=1)
    """Least gain in nDCG@10 over the release served now, relative, on the generated test questions; below it that one
    stays. On labelled sets ``evaluation.max_labelled_loss`` is the bound."""
    fresh_days: float = Field(default=8, ge=0.01, le=3650)
    """The UI warns when the corpus, the model or the deployment is older than so many days; twice that is an alarm."""

    @field_validator("training_cron")
    @classmethod
    def _is_cron(cls, text: str) -> str:
        fields = text.split()
        if len(fields) != len(_CRON_BOUNDS):
            message = f"{text!r} has {len(fields)} fields; expected five: minute hour day month weekday"
            raise ValueError(message)
        for field, (name, low, high) in zip(fields, _CRON_BOUNDS, strict=True):
            parts = re.split(r"[,/-]", field)
            if not all(part == "*" or (part.isdecimal() and low <= int(part) <= high) for part in parts):
                message = f"{name} is {field!r}; expected *, or numbers from {low} to {high} with , - and /"
                raise ValueError(message)
        return text


class Settings(_Stage):
    """Everything that can be set, a group per stage."""

    seed: int = Field(default=17, ge=0, lt=2**32)
    """Seed of every random choice."""
    paths: Paths = Paths()
    corpus: Corpus = Corpus()
    llm: LLM = LLM()
    synthesis: Synthesis = Synthesis()
    training_data: TrainingData = TrainingData()
    embedding: Embedding = Embedding()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    release: Release = Release()
    serving: Serving = Serving()
    tracking: Tracking = Tracking()
    orchestration: Orchestration = Orchestration()

    def tracking_uri(self) -> str:
        """MLflow tracking URI: the one set, or SQLite in the store."""
        return self.tracking.uri or f"sqlite:///{(self.paths.store / 'mlflow.db').resolve()}"

    def flat(self) -> dict[str, Any]:
        """Every effective value under its ``stage.name``, JSON-ready, for run records; passwords in URLs are masked."""
        groups = json.loads(_URL_PASSWORD.sub(r"\1***@", self.model_dump_json()))
        nested = {f"{stage}.{name}": v for stage, g in groups.items() if isinstance(g, dict) for name, v in g.items()}
        return {"seed": self.seed, **nested}

    def digest(self, *stages: str) -> str:
        """Short hash of the named groups and the seed, for asset code versions."""
        chosen = {"seed": self.seed, **{stage: getattr(self, stage).model_dump(mode="json") for stage in stages}}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def load_settings(config: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read settings from the TOML file and the environment.

    Args:
        config: TOML file; None: ``$EMBED_PIPELINE_CONFIG``, else ``embed_pipeline.toml`` here if there is one.
        environment: variables to read; None: the process environment.

    Raises:
        SettingsError: naming each setting that is unknown, malformed or out of range, its value and the bound.
    """
    environment = os.environ if environment is None else environment
    named = config or (Path(environment[CONFIG_VARIABLE]) if CONFIG_VARIABLE in environment else None)
    values = _read_toml(named) if named else _read_toml(Path("embed_pipeline.toml"), must_exist=False)
    for variable in sorted(environment):
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in _NOT_SETTINGS:
            _set(values, _setting_name(variable), environment[variable])
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error


def override_variable(assignment: str) -> tuple[str, str]:
    """Turn ``stage.name=value`` into the environment variable that carries it.

    Raises:
        SettingsError: if the text has no ``=`` or the name is not ``stage.name`` or ``seed``.
    """
    name, separator, value = assignment.partition("=")
    if not separator or (name != "seed" and name.count(".") != 1):
        message = f"--set {assignment!r}: expected stage.name=value, such as synthesis.max_hops=2"
        raise SettingsError(message)
    return ENVIRONMENT_PREFIX + name.replace(".", "__").upper(), value


def llm_api_key() -> str | None:
    """The LLM endpoint's key: ``EMBED_PIPELINE_LLM_API_KEY``, else ``OPENAI_API_KEY``."""
    return os.environ.get(LLM_KEY_VARIABLE) or os.environ.get("OPENAI_API_KEY")


def serving_api_key() -> str | None:
    """The key that clients of the embedding server must send; None: open."""
    return os.environ.get(SERVING_KEY_VARIABLE)


def _read_toml(path: Path, *, must_exist: bool = True) -> dict[str, Any]:
    if not path.exists() and not must_exist:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"settings file {path}: {error.strerror}"
        raise SettingsError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"settings file {path} is not TOML: {error}"
        raise SettingsError(message) from error


def _setting_name(variable: str) -> list[str]:
    return variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")


def _set(values: dict[str, Any], name: list[str], text: str) -> None:
    """Put an environment value into the tree; lists are comma-separated, ``none`` is None."""
    *stages, last = name
    for stage in stages:
        values = values.setdefault(stage, {})
        if not isinstance(values, dict):
            message = f"{'.'.join(name)}: {stage} is a single setting, not a group"
            raise SettingsError(message)
    field = Settings.model_fields.get(stages[0]) if stages else None
    group = field.annotation if field else None
    inner = group.model_fields.get(last) if isinstance(group, type) and issubclass(group, BaseModel) else None
    is_list = inner is not None and str(inner.annotation).startswith("tuple")
    values[last] = [p for p in text.split(",") if p] if is_list else (None if text.lower() == "none" else text)


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting {name!r}{_suggestion([str(p) for p in problem['loc']])}")
        else:
            value = "" if isinstance(problem["input"], dict) else f" = {without_secrets(repr(problem['input']))}"
            lines.append(f"setting {name or 'group'}{value}: {problem['msg']}")
    return "; ".join(lines)


def _suggestion(location: list[str]) -> str:
    from difflib import get_close_matches

    names = set(Settings().flat())
    close = get_close_matches(".".join(location), sorted(names | set(Settings.model_fields)), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

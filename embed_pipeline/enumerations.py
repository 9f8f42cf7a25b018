"""The closed sets of values that stored columns, settings and prompts share, each declared once.

:mod:`embed_pipeline.tables` validates them as columns. They have a module of their own because settings name some of
them too, and an endpoint reads settings but loads no dataframes.
"""

from __future__ import annotations

from typing import Literal, get_args

QueryType = Literal["multi_hop", "structural", "contextual"]
ReasoningType = Literal["factual", "relational", "inferential", "temporal", "procedural", "causal", "visual"]
Style = Literal["question", "keywords", "symptom", "paraphrase", "web_query", "claim", "boolean", "comparison", "title"]
Augmentation = Literal["keywords", "title", "heading", "link", "crop"]
Origin = Literal["generated", "labelled", Augmentation]
Side = Literal["train", "dev", "test"]
Context = Literal["none", "title", "path"]
ArtifactKind = Literal["concept", "entity", "relation", "procedure", "condition", "figure"]

QUERY_TYPES: tuple[QueryType, ...] = get_args(QueryType)
REASONING_TYPES: tuple[ReasoningType, ...] = get_args(ReasoningType)
STYLES: tuple[Style, ...] = get_args(Style)
ORIGINS: tuple[Origin, ...] = get_args(Origin)
SIDES: tuple[Side, ...] = get_args(Side)
ARTIFACT_KINDS: tuple[ArtifactKind, ...] = get_args(ArtifactKind)

GENERATED: Origin = "generated"
LABELLED: Origin = "labelled"

CRITERIA = ("relevance", "accuracy", "context_support", "clarity")
DECISIONS = ("accepted", *CRITERIA, "overall", "hop_not_needed", "round_trip_rank", "duplicate", "reviewer")
REVIEW_ACTIONS = ("accept", "reject", "edit", "positive", "comment", "withdraw")
SPLITS = (*SIDES, "held_out")
SPLIT_REASONS = ("", "given", "spans_sides", "repeats_test", "repeats_dev")

FILE_PROBLEMS = ("empty", "not_text", "too_large", "unreadable", "changed_since_batch", "in_part")
COPY_KINDS = ("duplicate", "near_duplicate")

SYSTEMS = ("base", "tuned", "bm25", "hybrid_base", "hybrid_tuned")
HYBRIDS = ("hybrid_base", "hybrid_tuned")
RECIPROCAL_RANKS = "RRF"
METRICS = ("nDCG", "Recall", "Precision", "MAP", "MRR")
ALL_RECALL = "AllRecall"
OUTCOMES = ("won", "lost", "same")

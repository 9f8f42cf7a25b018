"""Which column of which table each stored column comes from, as the Dagster UI draws it."""

from collections.abc import Mapping
from types import MappingProxyType

import dagster as dg

Sources = Mapping[str, Mapping[str, str]]

_SAME_IN_PAIRS = {
    name: name
    for name in (
        "qa_id", "batch", "question", "answer", "query_type", "reasoning_type", "complexity", "hop_count", "hops",
        "segment_ids", "document_ids", "generator", "prompt_version",
    )
}  # fmt: skip

SOURCES: Mapping[str, Sources] = MappingProxyType(
    {
        "segments": {
            "documents": {
                "segment_id": "document_id",
                "document_id": "document_id",
                "batch": "batch",
                "position": "text",
                "heading_path": "blocks",
                "text": "text",
                "token_count": "text",
                "repeated": "blocks",
            }
        },
        "document_artifacts": {
            "segments": {"document_id": "document_id", "batch": "batch", "text": "text", "segment_ids": "segment_id"}
        },
        "qa_pairs": {
            "segments": {
                "question": "text",
                "answer": "text",
                "hops": "segment_id",
                "segment_ids": "segment_id",
                "document_ids": "document_id",
                "batch": "batch",
            },
            "document_artifacts": {"question": "text"},
        },
        "rejected_pairs": {"segments": {"segment_ids": "segment_id", "batch": "batch"}},
        "rejected_judgements": {"qa_pairs": {"segment_ids": "segment_ids", "batch": "batch"}},
        "qa_scores": {
            "qa_pairs": {
                "qa_id": "qa_id",
                "batch": "batch",
                "relevance": "question",
                "accuracy": "answer",
                "context_support": "answer",
                "clarity": "question",
                "round_trip_rank": "segment_ids",
                "grounding": "answer",
                "lexical_overlap": "question",
                "well_formed": "question",
            },
            "segments": {"grounding": "text", "lexical_overlap": "text", "context_support": "text"},
        },
        "corpus": {
            "segments": {
                name: name for name in ("segment_id", "document_id", "position", "heading_path", "text", "token_count")
            },
            "documents": {"path": "path", "title": "title"},
        },
        "left_out_documents": {
            "documents": {
                "path": "path",
                "document_id": "document_id",
                "batch": "batch",
                "duplicate_of": "path",
                "resemblance": "text",
            }
        },
        "qa_dataset": {"qa_pairs": _SAME_IN_PAIRS, "qa_scores": {"overall": "overall"}},
        "qa_decisions": {
            "qa_pairs": {"qa_id": "qa_id", "batch": "batch", "question": "question", "duplicate_of": "qa_id"},
            "qa_scores": {"overall": "overall", "reason": "overall"},
        },
        "dataset_split": {
            "qa_dataset": {"qa_id": "qa_id", "question": "question", "document_ids": "document_ids"},
            "corpus": {"paths": "path", "group_id": "text"},
        },
        "hard_negatives": {
            "qa_dataset": {"qa_id": "qa_id", "question": "question", "positive_segment_ids": "segment_ids"},
            "corpus": {"negative_segment_ids": "segment_id"},
        },
        "training_examples": {
            "hard_negatives": {
                "example_id": "qa_id",
                "qa_id": "qa_id",
                "origin": "origin",
                "question": "question",
                "positive_segment_id": "positive_segment_ids",
                "negative_segment_ids": "negative_segment_ids",
                "positive_similarity": "positive_similarities",
                "negative_similarities": "negative_similarities",
            }
        },
        "question_results": {
            "qa_dataset": {"query_id": "qa_id", "question": "question"},
            "corpus": {"base_first": "segment_id", "tuned_first": "segment_id"},
        },
    }
)
"""Table to the tables that it is made from, each with column to source column."""


def column_lineage(table: str) -> dict[str, dg.TableColumnLineage]:
    """The metadata that shows where a table's columns come from; empty where nothing is said of it."""
    sources = SOURCES.get(table, {})
    columns = sorted({column for pairs in sources.values() for column in pairs})
    if not columns:
        return {}
    deps = {
        column: [
            dg.TableColumnDep(asset_key=dg.AssetKey(source), column_name=pairs[column])
            for source, pairs in sources.items()
            if column in pairs
        ]
        for column in columns
    }
    return {"dagster/column_lineage": dg.TableColumnLineage(deps)}

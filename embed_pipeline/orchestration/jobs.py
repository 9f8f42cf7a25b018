"""Six jobs, one per stage: documents to deployed model."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import dagster as dg

from embed_pipeline.orchestration.assets.deploy import champion_comparison, deployment
from embed_pipeline.orchestration.assets.eval import retrieval_evaluation
from embed_pipeline.orchestration.assets.export import (
    base_onnx_model,
    onnx_model,
    onnx_precisions,
    release,
    tensorrt_engine,
)
from embed_pipeline.orchestration.assets.finetune import finetuned_model
from embed_pipeline.orchestration.assets.prep import base_comparison, dataset_split, hard_negatives, training_examples
from embed_pipeline.orchestration.assets.sdg import (
    corpus,
    document_artifacts,
    documents,
    qa_dataset,
    qa_pairs,
    qa_scores,
    segments,
)

STAGES: Mapping[str, Sequence[dg.AssetsDefinition]] = MappingProxyType(
    {
        "sdg": (documents, segments, document_artifacts, qa_pairs, qa_scores, corpus, qa_dataset),
        "prep": (dataset_split, base_comparison, hard_negatives, training_examples),
        "finetune": (finetuned_model,),
        "eval": (retrieval_evaluation,),
        "export": (onnx_model, onnx_precisions, base_onnx_model, tensorrt_engine, release),
        "deploy": (champion_comparison, deployment),
    }
)
"""Stage name to its assets, both in the order in which data flows."""

_MEANING = {
    "sdg": "Read a batch of documents, have questions written and judged, and put together the accepted pairs.",
    "prep": "Split, compare candidates for the base, mine hard negatives, unroll to training examples.",
    "finetune": "Fine-tune the base model and register the candidate.",
    "eval": "Compare the tuned model with its base, BM25 and their hybrids.",
    "export": "Export to ONNX (and TensorRT), verify, bundle.",
    "deploy": "Serve the release, verify it through the endpoint, make it the champion.",
}

RETRAIN = "retrain"
"""The job that the training schedule starts: from the training on, in one run."""
_RETRAIN_STAGES = ("finetune", "eval", "export", "deploy")
OVERALL_TAGS: Mapping[str, str] = MappingProxyType({"embed_pipeline/overall": "true"})
"""Tags of runs that write what is made over all batches: the instance lets one of them run at a time."""

all_assets = [assets for stage in STAGES.values() for assets in stage]
all_jobs = [
    *(
        dg.define_asset_job(
            name,
            selection=dg.AssetSelection.assets(*assets),
            description=_MEANING[name],
            tags=None if name == "sdg" else dict(OVERALL_TAGS),
        )
        for name, assets in STAGES.items()
    ),
    dg.define_asset_job(
        RETRAIN,
        selection=dg.AssetSelection.assets(*(assets for name in _RETRAIN_STAGES for assets in STAGES[name])),
        description="Fine-tune, compare, export, verify and deploy: what the training schedule starts.",
        tags=dict(OVERALL_TAGS),
    ),
]

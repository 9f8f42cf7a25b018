"""The model card of a release: what it is, how good it is, how to load it and how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from embed_pipeline.enumerations import Context
from embed_pipeline.escaping import as_markdown
from embed_pipeline.release.manifest import Hybrid, ModelFacts
from embed_pipeline.text.passages import MOST_CHARACTERS

CARD_FILE = "README.md"

_CARD = """\
---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
base_model: {base_model}
tags:
- sentence-transformers
- sentence-similarity
- feature-extraction
- onnx
---

# Text embedding model, release {version}

Tuned from {base_code} for retrieval over one collection of documents. It turns a text of at most
{max_tokens} tokens into a unit vector of {dimensions} numbers; the inner product of two vectors is their
cosine similarity.

| input | text before it |
|---|---|
| query | {query_prefix} |
| passage | {passage_prefix} |

{passage_context}

{index}

## Evaluation

{metrics}

## Together with BM25

{hybrid}

## How to load it

With sentence-transformers, from the `model` folder:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("model")
queries = model.encode_query(["what is a context manager?"])
passages = model.encode_document(["A context manager defines what happens around a block."])
similarities = model.similarity(queries, passages)
```

With onnxruntime, from the `onnx` folder; pooling and normalisation are in the graph, the prefixes are not:

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("onnx/tokenizer.json")
tokenizer.enable_padding()
session = onnxruntime.InferenceSession("onnx/model.onnx")
encodings = tokenizer.encode_batch([{query_text}])
vectors = session.run(["embeddings"], {{
    "input_ids": np.array([e.ids for e in encodings], dtype=np.int64),
    "attention_mask": np.array([e.attention_mask for e in encodings], dtype=np.int64),
}})[0]
```

`model` is a Hugging Face-style folder in the form that sentence-transformers 5.1 and later, transformers 4.56 and
later, Text Embeddings Inference and vLLM read; `onnx` is a plain ONNX directory. sentence-transformers read `model`
back when this release was made and gave the same vectors; the servers were not run. Where `model/modules.json` names a
`Dense` module, a server has to apply it after pooling; older ones leave it out without a word, and their vectors are
then others: compare one with the ONNX export's.

## How it was made

Questions were written from the documents by a language model and scored, or came with people's labels where there
were some; confusing passages were mined as hard negatives; the base model was fine-tuned with InfoNCE over in-batch
and mined negatives.

{lineage}

## Export

{parity}
"""

_FUSED = """\
For this collection, {dense_weight:.2f} times the z-score of the cosine plus {lexical_weight:.2f} times the z-score of
BM25 was chosen on generated dev questions, where nDCG@10 is then {ndcg_10:.3f}; by reciprocal ranks (constant 60) it is
{reciprocal_ranks_ndcg_10:.3f}. `docs/hybrid.md` of embed-pipeline has the settings for common search engines."""
_INDEX = {
    "base": "Passages have the vectors of {base_model}, bit for bit: an index that was filled with it stays valid.",
    "own": "Its vectors are not comparable with those of {base_model}: every passage has to be embedded again.",
}
_NOT_FUSED = "There were no dev questions to choose the weight of a fusion on."


_CONTEXTS: Mapping[Context, str] = {
    "none": "A passage is its text alone, without the title of its document.",
    "title": "A passage is the title of its document, a blank line, and its text; the prefix comes before all of it. A "
    f"title of more than {MOST_CHARACTERS} characters is cut after a word.",
    "path": "A passage is the title of its document and the headings above it, joined by ` > `, a blank line, and its "
    f"text; the prefix comes before all of it. Of more than {MOST_CHARACTERS} characters, headings after the title are "
    "left out, the outermost first.",
}


def model_card(
    facts: ModelFacts,
    version: str,
    *,
    metrics: Mapping[str, Any],
    passage_vectors: Literal["own", "base"],
    hybrid: Hybrid | None,
    parity: Mapping[str, Any],
    created_from: Mapping[str, str],
) -> str:
    """The card as Markdown with the front matter that model hubs read."""
    return _CARD.format(
        # A JSON string is a YAML one: what a name holds ends no line of the front matter.
        base_model=json.dumps(facts.base_model),
        base_code=as_markdown(facts.base_model),
        version=version,
        max_tokens=facts.max_tokens,
        dimensions=facts.dimensions,
        query_prefix=_code(facts.query_prefix),
        passage_prefix=_code(facts.passage_prefix),
        passage_context=_CONTEXTS[facts.passage_context],
        query_text=repr(f"{facts.query_prefix}what is a context manager?"),
        metrics=_table("measure", metrics, "No figures were recorded."),
        lineage=_table("made from", created_from, "No data versions were recorded."),
        index=_INDEX[passage_vectors].format(base_model=as_markdown(facts.base_model)),
        hybrid=_FUSED.format(**hybrid.model_dump(), lexical_weight=1 - hybrid.dense_weight) if hybrid else _NOT_FUSED,
        parity=_table("export against original", parity, "The export's parity was not recorded."),
    )


def _code(prefix: str) -> str:
    # Not shown on one line as other text is: the blank at its end is part of it.
    return as_markdown(repr(prefix), in_table=True) if prefix else "nothing"


def _table(title: str, values: Mapping[str, Any], empty: str) -> str:
    rows = [f"| {as_markdown(name, in_table=True)} | {value} |" for name, value in _flat(values)]
    return "\n".join([f"| {title} | value |", "|---|---|", *rows]) if rows else empty


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names joined by dots, values in Markdown, numbers rounded; lists, as of the worst texts, stay in the manifest."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.6g}"
        elif isinstance(value, str | int):
            yield f"{prefix}{name}", as_markdown(str(value), in_table=True)

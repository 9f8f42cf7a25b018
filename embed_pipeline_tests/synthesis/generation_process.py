"""A process that writes the pairs of the small segments, to be killed: ``python -m ... STORE BASE_URL OUT``.

Where BASE_URL is ``embedded``, the real embedded model writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from embed_pipeline import tables
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.generate import generate_pairs
from embed_pipeline_tests.synthesis import material


def main(store: str, base_url: str, out: str) -> None:
    endpoint = {} if base_url == "embedded" else {"base_url": base_url, "model": "stub", "max_concurrency": 2}
    settings = Settings.model_validate(
        {
            "paths": {"store": store},
            "llm": {**endpoint, "structured_outputs": "json_schema"},
            "synthesis": {"multi_hop_share": 0, "questions_per_segment": 2},
        }
    )
    texts = {
        f"{key}{number}": f"{text} Number {number}." for number in range(4) for key, text in material.TEXTS.items()
    }
    if base_url == "embedded":
        texts = dict(list(texts.items())[:3])
    segments = material.segments(texts).with_columns(document_id="segment_id")
    titles = dict.fromkeys(texts, "Pump")
    made = generate_pairs("b1", segments, tables.DOCUMENT_ARTIFACTS.empty(), titles, settings, lambda: None)
    made.pairs.write_parquet(Path(out) / "pairs.parquet")
    made.rejects.write_parquet(Path(out) / "rejects.parquet")


if __name__ == "__main__":
    main(*sys.argv[1:])

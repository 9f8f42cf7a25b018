"""Small segments, pairs and scores, and a stub model that writes and judges pairs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import polars as pl

from embed_pipeline import tables
from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.synthesis.plan import QuestionSpec, QuestionTask, Source

TEXTS = {
    "s1": "The pump starts when the tank holds less than ten litres. It stops at forty litres.",
    "s2": "A red lamp on the pump means that its filter is blocked. Clean the filter with water.",
    "s3": "The filter of the pump is changed every six months by a technician.",
    "s4": "Invoices are sent on the first day of the month. Payment is due within thirty days.",
    "s5": "A late payment costs a fee of two percent. The fee is shown on the next invoice.",
}
DOCUMENTS = {"s1": "d1", "s2": "d1", "s3": "d1", "s4": "d2", "s5": "d2"}
WISH = QuestionSpec("contextual", "factual", "question", 1)


def segments(texts: dict[str, str] = TEXTS) -> pl.DataFrame:
    positions: dict[str, int] = {}
    rows = []
    for key, text in texts.items():
        document = DOCUMENTS.get(key, "d9")
        positions[document] = positions.get(document, -1) + 1
        place = {"document_id": document, "batch": "b1", "position": positions[document]}
        said = {"heading_path": "", "text": text, "token_count": 30, "unknown_tokens": 0, "repeated": 0, "withheld": ""}
        rows.append({"segment_id": key, **place, **said})
    return tables.SEGMENTS.frame(rows)


def source(key: str, **changes: Any) -> Source:
    made = {"segment_id": key, "document_id": DOCUMENTS[key], "title": "Pump", "text": TEXTS[key], **changes}
    return Source(**made)


def task(*keys: str, specs: tuple[QuestionSpec, ...] = (WISH,), seed: int = 7) -> QuestionTask:
    return QuestionTask(tuple(source(key) for key in keys), specs, seed)


def pair_row(qa_id: str, question: str, *keys: str, **changes: Any) -> dict[str, Any]:
    hops = [
        {"hop_number": number, "segment_ids": [key], "summary": TEXTS[key]} for number, key in enumerate(keys, start=1)
    ]
    row = {
        "qa_id": qa_id,
        "batch": "b1",
        "question": question,
        "answer": " ".join(TEXTS[key] for key in keys),
        "query_type": "multi_hop" if len(keys) > 1 else "contextual",
        "reasoning_type": "factual",
        "complexity": 1,
        "hop_count": len(keys),
        "hops": hops,
        "segment_ids": sorted(keys),
        "document_ids": sorted({DOCUMENTS[key] for key in keys}),
        "style": "question",
        "generator": "stub",
        "prompt_version": "v",
    }
    return {**row, **changes}


def pairs(*rows: dict[str, Any]) -> pl.DataFrame:
    return tables.QA_PAIRS.frame(list(rows))


def score_row(qa_id: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"qa_id": qa_id, "batch": "b1", **dict.fromkeys(CRITERIA, 9.0)}
    row |= {f"{name}_justification": "because" for name in CRITERIA}
    row |= {f"measured_{name}": None for name in (*CRITERIA, "overall")}
    row |= {"overall": 9.0, "judge": "stub", "dense_rank": 1, "bm25_rank": 1, "round_trip_rank": 1, "grounding": 1.0}
    row |= {"lexical_overlap": 1.0, "well_formed": True, "hop_need": 1.0, "hops_needed": True}
    return {**row, **changes}


def corpus(texts: dict[str, str] = TEXTS) -> pl.DataFrame:
    nothing = pl.lit(None, pl.String)
    titled = segments(texts).with_columns(path=pl.col("document_id") + ".md", title=pl.lit("T"), label_set=nothing)
    return titled.select(tables.CORPUS.schema.names())


def write_pairs(request: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> str:
    """What a good model answers to the questions prompt: a pair for each request, from the segments shown."""
    said = request["messages"][-1]["content"]
    shown = dict(re.findall(r"\[(S\d+)\]\n\([^\n]*\)\n(.*)", said))
    written = []
    wanted = r"^(\d+)\. on ([S\d, ]+): (\w+), (\w+), style (\w+), complexity (\d)"
    for number, labels, query, reasoning, style, complexity in re.findall(wanted, said, re.MULTILINE):
        names = labels.split(", ")
        pair = {
            "request": int(number),
            "question": f"What is said of {shown[names[0]][:40].lower()} in variant {number}?",
            "answer": shown[names[0]],
            "query_type": query,
            "reasoning_type": reasoning,
            "style": style,
            "complexity": int(complexity),
            "hops": [{"segments": [name], "summary": shown[name][:60]} for name in names],
        }
        written.append(change(pair) if change else pair)
    return json.dumps({"pairs": written})


def judge_pair(score: object = 8.5) -> str:
    """What a judge answers."""
    verdict = {"score": score, "justification": "It stands there."}
    return json.dumps(dict.fromkeys(CRITERIA, verdict))


def need_hops(request: dict[str, Any], *, needed: bool = True) -> str:
    """What a judge answers to the hops prompt."""
    labels = re.findall(r"^\[(S\d+)\]$", request["messages"][-1]["content"], re.MULTILINE)
    return json.dumps({"segments": [{"segment": name, "needed": needed, "reason": "It is."} for name in labels]})


def name_artifacts(request: dict[str, Any]) -> str:
    """What a model answers to the artifacts prompt: one entry, in the first segment's own words."""
    first = re.search(r"\[(S\d+)\]\n(.*)", request["messages"][-1]["content"])
    assert first
    return json.dumps({"artifacts": [{"kind": "concept", "text": first[2][:30], "segments": [first[1]]}]})


def respond(request: dict[str, Any]) -> str:
    """A stub endpoint's answer to any prompt of this room."""
    system = request["messages"][0]["content"]
    if system.startswith("You write"):
        return write_pairs(request)
    if system.startswith("You check"):
        return need_hops(request)
    return judge_pair() if system.startswith("You judge") else name_artifacts(request)

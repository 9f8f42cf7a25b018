"""Results that people judged on the search page, as a query set in the form of the BEIR benchmark."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from embed_pipeline.row_files import LabelsError, read_json_lines

_GRADES = {"wrong": 0, "right": 1}


def write_judged_queries(files: Sequence[Path], folder: Path) -> tuple[int, int]:
    """Write the judged results in ``files``, as the search page saves them, to a BEIR folder of documents' paths.

    A document is right where any of its segments was judged right. What several files say of one segment is that of the
    last. Queries without a right document are left out: nothing can be measured with them.

    Args:
        files: JSON Lines of query, path, segment_id and judgement (right or wrong).
        folder: where ``queries.jsonl`` and ``qrels/test.tsv`` go; earlier ones there are replaced.

    Returns:
        Queries written, and queries left out.

    Raises:
        LabelsError: naming the file and line that is malformed, or there is no query to write.
    """
    segments: dict[tuple[str, str, str], int] = {}
    for place, row in (found for path in files for found in read_json_lines(path)):
        named = [row.get(name) for name in ("query", "path", "segment_id")]
        if not all(isinstance(value, str) and value.strip() for value in named):
            raise LabelsError(f"{place}: expected the texts query, path and segment_id")
        if row.get("judgement") not in _GRADES:
            raise LabelsError(f"{place}: judgement is {row.get('judgement')!r}, expected right or wrong")
        query, path, segment = map(str, named)
        segments[" ".join(query.split()), path, segment] = _GRADES[row["judgement"]]
    grades: dict[str, dict[str, int]] = {}
    for (query, path, _), grade in segments.items():
        documents = grades.setdefault(query, {})
        documents[path] = max(grade, documents.get(path, 0))
    kept = {query: documents for query, documents in sorted(grades.items()) if any(documents.values())}
    if not kept:
        raise LabelsError(f"{', '.join(map(str, files))}: no query has a result that was judged right")
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    ids = {query: hashlib.sha256(query.encode()).hexdigest()[:16] for query in kept}
    lines = [json.dumps({"_id": ids[query], "text": query}, ensure_ascii=False) for query in kept]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    judged = [f"{ids[query]}\t{path}\t{grade}" for query in kept for path, grade in sorted(kept[query].items())]
    text = "\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n"
    (folder / "qrels" / "test.tsv").write_text(text, encoding="utf-8")
    return len(kept), len(grades) - len(kept)

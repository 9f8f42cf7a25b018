"""Jupyter notebooks: Markdown cells as Markdown, code cells as code; what the code printed is no part of it."""

from __future__ import annotations

import nbformat

from embed_pipeline.corpus.decoding import without_data
from embed_pipeline.corpus.front_matter import split_front_matter, title_of
from embed_pipeline.text.blocks import Draft, Reading, clean_text, first_heading
from embed_pipeline.text.markdown import markdown_blocks


def read_notebook(text: str) -> Reading:
    """Kept text and blocks; the title is that of its metadata, or the first heading.

    Raises:
        ValueError: it is no notebook.
    """
    try:
        notebook = nbformat.reads(text, as_version=4)
    except Exception as error:
        # nbformat's own errors, and those of whatever a damaged notebook trips in its conversion.
        raise ValueError(f"it is no notebook: {type(error).__name__}: {error}"[:300]) from error
    draft = Draft()
    title = str(notebook.metadata.get("title") or "")
    language = str(notebook.metadata.get("kernelspec", {}).get("language") or "python")
    for cell in notebook.cells:
        source = clean_text(str(cell.source))
        if cell.cell_type == "code":
            draft.add_code(source, language)
        else:
            metadata, source = split_front_matter(source) if draft.is_empty else ({}, source)
            title = title or title_of(metadata)
            kept = without_data(source)
            if kept.strip() and (cell.cell_type == "markdown" or not metadata):
                draft.add_parsed(kept, markdown_blocks(kept))
    read = draft.reading()
    return Reading(title or first_heading(read.blocks), read.text, read.blocks)

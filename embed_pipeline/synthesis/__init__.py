"""Segments to question-answer pairs to scores to accepted pairs.

In: the tables ``documents`` and ``segments``. Out: ``document_artifacts``, ``qa_pairs``, ``qa_scores`` and the accepted
pairs of ``qa_dataset``.
Read in this order: ``coverage`` (which segments are asked about), ``trial`` (how the model is asked, and who judges),
``artifacts`` (what a document is about), ``plan`` (what to ask of which segments) with ``example_queries`` (how people
ask), ``generate`` with ``completion_generator`` or ``structured_generator``, ``pairs`` (the rules of a pair), ``score``
with ``judge``, ``select`` (thresholds, duplicates), ``quality`` (measures of the whole set). ``estimate`` predicts a
run's cost.
"""

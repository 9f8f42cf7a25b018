"""Is the tuned model better, by how much, and how certain is that.

In: base and tuned model, or candidates for the base, the corpus, questions with known answers. Out: the tables
``base_comparison``, ``retrieval_evaluation``, ``question_results`` and ``fusion_weights``, verdicts, ``report.html``.
Read in this order: ``query_sets`` and ``general_set`` (questions), ``ranking`` (systems and metrics), ``fusion``
(how much of BM25), ``retrieval`` (the comparison), ``base_comparison`` (candidates for the base), ``significance``
(intervals and verdicts), ``adoption`` (what to deploy), ``cautions``, ``gates``, ``plots``, ``report``.
"""

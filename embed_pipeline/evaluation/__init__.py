"""Is the tuned model better, by how much, and how certain is that.

In: base and tuned model, the corpus, questions with known answers. Out: the tables ``retrieval_evaluation`` and
``question_results``, verdicts, ``report.html``.
Read in this order: ``query_sets`` and ``general_set`` (questions), ``ranking`` (systems and metrics), ``retrieval``
(the comparison), ``significance`` (intervals and verdicts), ``cautions``, ``gates``, ``plots``, ``report``.
"""

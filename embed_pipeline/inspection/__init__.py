"""The QA set in the browser: every pair, accepted or not, with where it comes from, where it went and what people say.

In: the stored tables, and the models trained on them. Out: pages, and reviews (``qa_reviews``).
Read in this order: ``pair_index`` (all pairs in one frame: search, filters, counts), ``pair_query`` (what an address
asks of it), ``provenance`` (one pair, segment or document with all that belongs to it), ``agreement`` (judge and
reviewers), ``inspector`` (the pages over HTTP, and corrections), ``judged_searches`` (results of the search page).
"""

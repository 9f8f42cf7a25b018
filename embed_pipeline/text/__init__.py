"""What several rooms do with text.

In: Markdown, which all kept text is. Out: blocks, words, sentences, shingles.
Read ``blocks`` (what a document is made of), ``markdown`` (its parser), ``words`` (words, sentences, overlap),
``languages`` (which one a text is in, and its words for a lexical index), ``injections`` (text that addresses a model),
``passages`` (a segment's text as it is embedded), then ``shingles`` (word 5-grams and near-duplicates).
"""

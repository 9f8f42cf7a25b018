"""What several rooms do with text.

In: plain or Markdown text. Out: words, sentences, shingles, headings.
Read ``words`` (words, sentences, overlap), then ``headings`` and ``shingles`` (word 5-grams and near-duplicates).
"""

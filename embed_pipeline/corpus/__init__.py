"""Files to documents to segments.

In: a folder of files, or an address that fsspec lists. Out: the tables ``documents``, ``segments`` and ``corpus``.
Read in this order: ``files`` (which files are there), ``batches`` (what is new, as partitions), ``documents``; then how
a file is read: ``readers`` and ``conversion`` (the process that reads), ``decoding`` (bytes to characters),
``formats`` (a reader for each ending; Markdown, text, notebooks), ``mdx``, ``restructured``, ``pages`` (HTML),
``rows`` (CSV, JSON Lines), ``pdf``, ``pdf_repair`` (PDF files that break off), ``office``; then ``boilerplate``,
``segments`` and ``current`` (the newest version of documents).
``sample`` writes the demo's documents.
"""

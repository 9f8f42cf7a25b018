"""Files to documents to segments.

In: a folder of files, or an address that fsspec lists. Out: the tables ``documents``, ``segments`` and ``corpus``.
Read in this order: ``files`` (which files are there), ``batches`` (what is new, as partitions), ``readers`` and
``conversion`` (PDF, Office, CSV, JSON Lines), ``documents``, ``boilerplate``, ``segments``, ``current`` (the newest
version of every document). ``sample`` writes the demo's documents.
"""

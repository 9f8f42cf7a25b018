"""The release behind HTTP: an OpenAI-compatible embedding endpoint.

In: a release bundle. Out: vectors over HTTP, metrics, a search page, and a verified deployment.
Read in this order: ``server`` (the process), ``service`` (what is served), ``application`` (the routes), ``request``
(checks), ``served_model`` with ``reading`` and ``batcher`` (text to vectors), ``runtimes`` (which export is served),
``connections``, ``metrics``, ``openapi``, ``search_page``; then ``process`` and ``deployment`` (the endpoint started,
verified and left running). ``serving_errors`` holds what is refused, and how.
"""

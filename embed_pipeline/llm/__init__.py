"""Asking language models: any OpenAI-compatible endpoint, or the embedded llama.cpp server.

In: prompts. Out: text or validated answers, each paid for once.
Read in this order: ``prompts``, ``client`` (what the other rooms call), ``answers`` (schemas and validation),
``transport`` (one request until it is answered), ``throttle`` (how many at once), ``store`` (answers on disk),
``budget``, ``embedded``. ``rehearsal`` counts the calls of a run without sending any.
"""

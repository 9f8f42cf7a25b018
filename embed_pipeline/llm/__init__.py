"""Asking language models: any OpenAI-compatible endpoint, or the embedded llama.cpp server.

In: prompts. Out: text or validated answers, each paid for once.
Read in this order: ``prompts``, ``client`` (what the other rooms call), ``answers`` (schemas and validation),
``dialect`` (how one endpoint wants requests worded), ``transport`` (one request until it is answered), ``responses``
(bodies to answers), ``failures`` (error bodies of every shape), ``scope`` (what a failure is about), ``secrets`` (what
no message may hold), ``throttle`` (how many at once), ``gathering`` (many requests, with a clean end), ``batch_api``
(batches in place of single requests), ``store`` (answers on disk), ``budget``, ``embedded``. ``rehearsal`` counts the
calls of a run without sending any; ``rates`` says what the stored ones show of the endpoint.
"""

"""Training examples to a fine-tuned encoder.

In: the tables ``training_examples``, ``corpus`` and the dev questions. Out: a sentence-transformers folder with the
record of its training.
Read in this order: ``train`` (the entry), ``task`` (what is trained, and the schedule), ``prepared_model``,
``training_batches``, ``loss``, ``distillation``, ``trainer``, ``checkpoints``, ``supervisor`` (dev measurements, early
stopping), ``seed_run`` (one run), ``weights``, ``selection`` (choosing the weights), ``linear_adapter``,
``query_encoder`` (the same teacher, followed by the queries' encoder), ``record``.
Apart from ``train``, ``task``, ``checkpoints`` and ``record``, modules here import torch.
"""

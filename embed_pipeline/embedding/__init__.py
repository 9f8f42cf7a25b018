"""Texts to unit vectors, and exact search over them: one encoder for mining, evaluation and serving.

In: a model folder or name, or an export, and texts. Out: float32 unit vectors and ranked passages.
Read in this order: ``models`` (finding and loading, safely), ``families`` (what differs between families of models),
``products`` (fp32 on AMD's processors), ``encoder`` (the one path), ``backend`` (what every back end does),
``token_batches``, ``torch_backend`` with ``packing``, ``model_folder`` (saving, so that every loader reads it),
``onnx_export`` and ``onnx_backend``, ``openvino_backend``, ``tensorrt_backend``, ``proven`` (the fastest back end that
is proven on this machine), ``vector_store``, ``search``.
"""

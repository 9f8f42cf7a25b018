"""From a tuned model to files that production loads.

In: the tuned model. Out: ONNX in several precisions, a TensorRT engine where one can be built, and the release bundle.
Read in this order: ``onnx_export``, ``precision``, ``tensorrt``, ``parity`` (the gate), ``bundle`` with ``manifest``
and ``model_card``, ``existing_index`` (what a release asks of an index), ``releases`` (which release is served).
"""

"""From a tuned model to files that production loads: ONNX, TensorRT, the parity gate and the bundle."""

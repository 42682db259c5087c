"""Export: torch checkpoint -> ONNX and TensorRT graphs -> bundle."""

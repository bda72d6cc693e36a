"""Static int8 quantisation of ONNX models."""

"""The measuring program, the same here and on a device: standard library, numpy, onnxruntime; Python 3.8 or newer."""

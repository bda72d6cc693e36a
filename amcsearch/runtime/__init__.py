"""Measuring with ONNX Runtime: export, sessions, interleaved timing, attribution, tables, verification."""

"""Kernels of a runtime: how layers are lowered to them, and surfaces of latency over their widths."""

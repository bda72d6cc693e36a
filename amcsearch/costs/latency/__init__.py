"""Latency tables: the document that is read and written, and the model that predicts one network from it."""

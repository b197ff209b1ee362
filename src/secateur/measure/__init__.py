"""Parameters, bytes, MACs and latency of a model as it is, measured and not estimated."""

"""Plan to smaller model. Knows nothing of methods."""

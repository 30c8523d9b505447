"""The change of neurons: weights, optimizer state and statistics together."""

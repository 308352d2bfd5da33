"""Training: configuration, optimization, the loop and its checkpoints."""

"""Training: configuration, optimisation, the loop and its checkpoints."""

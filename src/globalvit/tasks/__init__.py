"""A task is a model with its losses, predictions and metric."""

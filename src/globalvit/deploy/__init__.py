"""Copies of models for inference only, with operations folded into one another and weights prepared for the device."""

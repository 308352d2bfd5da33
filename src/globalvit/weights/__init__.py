"""Published weights: where they are, how they are read, how their names map to ours."""

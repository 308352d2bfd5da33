"""What the data of all tasks share: decoding, order, batches, checks."""

"""Reading, checking, augmenting and batching images."""

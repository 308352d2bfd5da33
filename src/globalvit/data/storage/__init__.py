"""Data sets in LMDB databases, and what identifies a data set."""

"""Data sets in LMDB databases and tar shards, and what identifies a data set."""

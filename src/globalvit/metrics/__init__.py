"""Scores over a whole data set, exact on any number of processes."""

"""A local web page: drop a picture, choose a model, see what it says and where it looks."""

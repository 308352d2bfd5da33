"""A local web page: drop an image, choose a model, see what it says and where it looks."""

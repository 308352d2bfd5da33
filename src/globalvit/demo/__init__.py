"""Local web page that shows a model's predictions for an image and where it looks."""

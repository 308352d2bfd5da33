"""What the commands and `globalvit.api` both do: which model, which images, what is computed and what is written."""

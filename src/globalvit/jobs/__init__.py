"""The work shared by the commands and `globalvit.api`: opening models and images, computing and writing results."""

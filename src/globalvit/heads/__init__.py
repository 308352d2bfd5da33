"""Modules that turn feature maps into a task's raw outputs."""

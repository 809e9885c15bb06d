"""Tune language models on the metric itself, with forward passes only."""

"""Runnable comparisons: ``python -m benchmarks.training`` and its neighbours, from the repository's root."""

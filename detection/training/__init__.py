"""Train a detector from a recipe."""

"""Recipes: their keys and bounds, and reading them from YAML and overrides."""

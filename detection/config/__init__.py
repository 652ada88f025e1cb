"""What a recipe may say, with its bounds, read from YAML and overrides."""

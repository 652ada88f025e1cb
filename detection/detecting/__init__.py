"""Run a detector over images: with other settings than its own for a while, whole or in tiles."""

"""Datasets written anew: in another format, or mended."""

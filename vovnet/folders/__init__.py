"""Folders that commands write to: locks, temporary files and folders, and the claim to an output folder."""

"""A recipe becomes a torchvision detector."""

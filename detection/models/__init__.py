"""Build torchvision detectors from recipes."""

"""Image files: how classifiers, detectors and their data read them."""

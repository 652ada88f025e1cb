"""Files of weights: pickled checkpoints, timm's folders, the Hub, and where ``pretrained=True`` looks."""

"""``python -m benchmarks.gpu``: everything that needs a GPU, in one command of at most 9 minutes; see ``__main__``."""

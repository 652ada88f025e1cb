"""Models as files for other runtimes. What reads and runs such a file imports no PyTorch."""

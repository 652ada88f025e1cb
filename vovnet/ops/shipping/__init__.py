"""Make files with compiled operators for other machines: wheels, and the layout of Hugging Face's ``kernels``."""

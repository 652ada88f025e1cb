"""A detector's folder (``config.json`` and ``model.safetensors``), and what a training starts from."""

"""A page on which visitors drop images and see what detectors find in them, made with Gradio."""

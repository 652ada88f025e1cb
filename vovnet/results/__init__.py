"""What a detector found: in COCO's terms, as run lengths, drawn, and in files. Nothing here imports PyTorch."""

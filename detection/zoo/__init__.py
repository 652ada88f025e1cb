"""torchvision's ``get_model`` names, its weights enums, and every published source of weights."""

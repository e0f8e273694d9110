"""Our training loop beside those of torchvision's reference and of timm, measured in turns."""

"""What every part of cifar-zoo shares. Importing it loads neither torch nor timm."""

__version__ = "0.1.0"

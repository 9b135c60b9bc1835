"""Models: plain PyTorch, one Transformer core. Nothing here knows of devices, ranks or training."""

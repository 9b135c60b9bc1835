"""Changes a model from outside, over a device mesh: what is split, gathered and summed where. See docs/scale-out.md."""

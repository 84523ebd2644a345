"""Build the checkpoints of the embedded family; run from a checkout with `python -m training STAGE`."""

"""A model card is a test file: verify the published figures of compressed Stable Diffusion checkpoints."""

__version__ = "0.1.0"

"""How close the pictures of a checkpoint are to those of its reference: one metric a file."""

"""From a checkpoint and a protocol to missing evidence, and from evidence to estimates."""

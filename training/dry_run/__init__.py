"""Say what a run will need, without loading anything."""

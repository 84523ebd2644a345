"""Recipes: typed YAML files that say how a checkpoint is made."""

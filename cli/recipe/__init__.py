"""Recipes: the model of the YAML file, and running its stages."""

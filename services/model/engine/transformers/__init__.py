"""Hugging Face checkpoints on torch: see `engine.py`. Importing the package alone does not import torch."""

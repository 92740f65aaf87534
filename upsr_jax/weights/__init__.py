"""Weights of networks: model folders, published ones, and PyTorch files."""

"""Photographs to training batches and evaluation pairs."""

"""Upscale test sets and measure the results."""

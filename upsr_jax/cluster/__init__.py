"""Several processes, and what they run on."""

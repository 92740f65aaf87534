"""A trained model on pictures of any size."""

"""A run: training, with evaluations on the way, and evaluation of what it trained."""

from upsr_jax.train.loop import train_and_evaluate

__all__ = ["train_and_evaluate"]

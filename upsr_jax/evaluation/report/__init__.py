"""Reports of evaluations: single pages that open from a disk and need no other resource."""

from upsr_jax.evaluation.report.comparison import compare
from upsr_jax.evaluation.report.single import write_report

__all__ = ["compare", "write_report"]

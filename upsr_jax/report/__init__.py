"""Reports of evaluations: single pages that open from a disk and need no other resource."""

from upsr_jax.report.comparison import compare, trade_off
from upsr_jax.report.single import write_report

__all__ = ["compare", "trade_off", "write_report"]

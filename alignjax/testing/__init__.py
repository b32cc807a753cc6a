"""Checks that an objective of your own keeps the contract: `alignjax.testing.check_objective(mine())`."""

from alignjax.testing.checks import PROPERTIES, Setting, check_objective, check_oracle, check_value_at_reference
from alignjax.testing.recording import RecordingBatch, RecordingTable, loss_reads

__all__ = [
  'PROPERTIES',
  'RecordingBatch',
  'RecordingTable',
  'Setting',
  'check_objective',
  'check_oracle',
  'check_value_at_reference',
  'loss_reads',
]

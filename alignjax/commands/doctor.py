"""Examines a run before it trains: its tokenizer, data, models and memory.

  alignjax doctor --model=models/smollm2 --data=train.jsonl --objective='dpo(beta=0.1)'

It takes the settings of `alignjax train`, but trains nothing and writes no results. Every finding reports what was seen
and what to do. `alignjax train` runs the same checks before its first update, except those that compile more programs:
sampling against training, the error of bfloat16, and the memory of the compiled step.

Exit codes: 0 no errors; 1 errors were found, or the settings cannot be read.
"""

from alignjax import exit_codes
from alignjax.commands import program
from alignjax.run import command_line, examination, process_flags, training


def run(invocation: command_line.Invocation) -> int:
  """Examines a run, and returns the exit code."""
  for note in invocation.notes:
    training.announce(note)
  return exit_codes.REFUSED if examination.stops(invocation.config, training.announce) else exit_codes.DONE


PROGRAM = program.Program(
  'doctor',
  __doc__,
  command_line.Invocation,
  run,
  parse=command_line.parse_flags,
  join=process_flags.join,
  leave=process_flags.leave,
)

"""Aligns a language model with preference data.

  alignjax train --model=models/smollm2 --data=train.jsonl --objective='dpo(beta=0.1)' --workdir=runs/first
  alignjax train --config=ra_dpo.py:ra2 --import=mine.py --objective='dpo() + 0.1 * mine()' --workdir=runs/second

The work directory gets config.json (the resolved configuration), metrics.jsonl and TensorBoard events, checkpoints, and
at the end, in Hugging Face format, the aligned model in model/, its average in model_average/ if the optimizer keeps
one, and the adapter in adapter/ if one is trained. On SIGTERM or Ctrl-C the run saves a checkpoint and exits; a second
Ctrl-C ends it at once. The same command again resumes an interrupted run, or reports that it is finished. So does

  alignjax train --workdir=runs/first

with the settings recorded in config.json and any flags that are added, such as --steps=2000.

--config names a file of settings: .yaml, .json (such as runs/first/config.json, to start the same run in another
--workdir), or .py, whose get_config() returns `alignjax.run.settings.config_dict(...)`. Flags override the file.
--config.batch_size=16 is another spelling of --batch_size=16. Lists are given as --data=a.jsonl,b.jsonl or as repeated
flags. --eval_data= makes a setting empty.
"""

import contextlib

from alignjax import exit_codes, refusals, stopping
from alignjax.commands import program
from alignjax.run import command_line, exports, process_flags, training
from alignjax.training import checkpoint, loop, owner, rollout_files, source


def run(invocation: command_line.Invocation) -> int:
  """Trains, and returns the exit code."""
  for note in invocation.notes:
    training.announce(note)
  result = training.train(invocation.config)
  return stopping.exit_code() if result.preempted else exit_codes.DONE


PROGRAM = program.Program(
  'train',
  f'{__doc__}\nExit codes, and whether to give the same command again:\n\n{exit_codes.table()}',
  command_line.Invocation,
  run,
  codes={
    refusals.Refused: exit_codes.REFUSED,
    loop.NonFiniteError: exit_codes.NOT_FINITE,
    owner.OwnerError: exit_codes.REFUSED,
    exports.ExportError: exit_codes.NOT_EXPORTED,
    checkpoint.SaveError: exit_codes.CRASHED,
    rollout_files.RolloutError: exit_codes.REFUSED,
    source.SourceError: exit_codes.CRASHED,
    OSError: exit_codes.CRASHED,
  },
  parse=command_line.parse_flags,
  join=process_flags.join,
  leave=process_flags.leave,
  place=contextlib.nullcontext,  # `train` copies, because config.json keeps the paths that were given
)

"""Aligns a language model with preference data.

  alignjax train --model=models/smollm2 --data=train.jsonl --objective='dpo(beta=0.1)' --workdir=runs/first
  alignjax train --config=ra_dpo.py:ra2 --import=mine.py --objective='dpo() + 0.1 * mine()' --workdir=runs/second

The work directory gets config.json (the resolved configuration), metrics.jsonl and TensorBoard events, checkpoints, and
at the end, in Hugging Face format, the aligned model in model/, its average in model_average/ if the optimizer keeps
one, and the adapter in adapter/ if one is trained. The same command again resumes an interrupted run, or reports that
it is finished. On SIGTERM the run saves a checkpoint and exits.

Exit codes: 0 done; 1 an error in configuration, data or numerics, which a restart does not fix; 42 stopped on request,
and saved: start it again; 134 a crash.

--config=path.py names a file whose get_config() returns `alignjax.run.settings.config_dict(...)`. The config.json of an
earlier run and .yaml files work too. --config.batch_size=16 and --batch_size=16 both override one setting.
"""

from alignjax.commands import program
from alignjax.run import command_line, training
from alignjax.training import loop


def run(invocation: command_line.Invocation) -> int:
  """Trains, and returns the exit code."""
  invocation.processes.join()
  result = training.train(invocation.config)
  return program.PREEMPTED if result.preempted else program.DONE


PROGRAM = program.Program(
  'train',
  __doc__,
  command_line.Invocation,
  run,
  expected=(*program.EXPECTED, loop.NonFiniteError),
  parse=command_line.parse_flags,
  hints=command_line.HINTS,
  leave=lambda invocation, code: invocation.processes.leave(code, failed=code not in (program.DONE, program.PREEMPTED)),
)

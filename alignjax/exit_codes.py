"""Exit codes: what the end of a program tells whoever started it."""

DONE = 0
REFUSED = 1
NOT_FINITE = 3
PREEMPTED = 42
NOT_EXPORTED = 43
INTERRUPTED = 130
CRASHED = 134
KILLED = 137

# code: (meaning, whether to start the same command again)
MEANINGS = {
  DONE: ('done', 'no'),
  REFUSED: ('refused before the first step by a check, or another run owns the work directory', 'no'),
  NOT_FINITE: ('the loss, a gradient or the state is not finite; the last checkpoint is good', 'no'),
  PREEMPTED: ('stopped by SIGTERM; everything that was trained is saved', 'yes'),
  NOT_EXPORTED: (
    'trained and saved, but the model could not be written',
    'once the cause is removed: it only exports, as alignjax export does',
  ),
  INTERRUPTED: ('stopped by Ctrl-C; everything that was trained is saved', 'when you like'),
  CRASHED: ('anything else: storage, network, device, a hang, a bug', 'yes: it resumes'),
  KILLED: ('killed, because it did not stop in time', 'yes: it resumes'),
}


def table() -> str:
  """The exit codes, one per line, for --help."""
  return '\n'.join(f'  {code:>3}  {meaning}. Restart: {restart}' for code, (meaning, restart) in MEANINGS.items())


def agreed(code: int) -> bool:
  """Whether all processes of a run end with this code together, so that a process may wait for the others."""
  return code in (DONE, PREEMPTED, INTERRUPTED)

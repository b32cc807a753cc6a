r"""Converts public preference data into the rows that `alignjax.data.sources` reads.

  python -m experiments.convert --format=hh --input=harmless-base/train.jsonl.gz --output=train.jsonl

--format=hh: each row has the transcripts `chosen` and `rejected`, "\n\nHuman: ...\n\nAssistant: ...", which share all
turns but the last. It becomes {"prompt": [messages], "chosen": "...", "rejected": "..."}.
"""

from collections.abc import Callable
import gzip
import json
import os
import pathlib
import re
import sys
from typing import Any

from absl import app, flags

from alignjax.data import report as report_lib
from alignjax.data import sources

ROLES = {'Human': 'user', 'Assistant': 'assistant'}
TURN = re.compile(r'\n\n(Human|Assistant):')


def convert(path: str, output: str, format_name: str, *, on_error: str = 'raise') -> report_lib.DropReport:
  """Converts a file; the output appears only once it is whole.

  Args:
    path: .jsonl or .jsonl.gz.
    output: .jsonl or .jsonl.gz.
    format_name: a name in FORMATS.
    on_error: 'raise' or 'skip', for rows that are not in that format at all.

  Returns:
    What was read, and dropped.

  Raises:
    DataError: a malformed row, with its file and line.
  """
  if not output.endswith(('.jsonl', '.jsonl.gz')):
    raise ValueError(f'{output}: the output must have a name that ends with .jsonl or .jsonl.gz')
  report = report_lib.DropReport()
  partial = output + '.partial'
  try:
    with open(partial, 'wb') as raw:
      # Without a time stamp and a name in the gzip header, the same input gives the same bytes.
      file = gzip.GzipFile('', 'wb', fileobj=raw, mtime=0) if output.endswith('.gz') else raw
      for row in sources.read_rows(path, FORMATS[format_name], report, on_error=on_error):
        file.write(json.dumps(row, ensure_ascii=False).encode('utf-8') + b'\n')
      file.close()
    os.replace(partial, output)
  except BaseException:
    pathlib.Path(partial).unlink(missing_ok=True)
    raise
  return report


def hh_row(fields: dict[str, Any], path: str, line: int) -> dict[str, Any]:
  """One row of Anthropic's HH data as a row of ours."""
  del path, line  # the reader adds the place to every error
  for name in ('chosen', 'rejected'):
    if name not in fields:
      raise sources.Refused('missing_field', f"field '{name}' is missing; an HH row has 'chosen' and 'rejected'")
    sources.check_text(fields[name], name)
  if fields['chosen'] == fields['rejected']:
    raise sources.Dropped('identical_text', 'chosen and rejected are the same transcript')
  chosen, rejected = _turns(fields['chosen'], 'chosen'), _turns(fields['rejected'], 'rejected')
  if chosen[:-1] != rejected[:-1]:
    raise sources.Dropped('prompts_differ', 'the transcripts differ before their last turn')
  for name, messages in (('chosen', chosen), ('rejected', rejected)):
    _check_turns(messages, name)
  if chosen == rejected:
    raise sources.Dropped('identical_text', 'the last turns are the same but for white space')
  return {'prompt': chosen[:-1], 'chosen': chosen[-1]['content'], 'rejected': rejected[-1]['content']}


def _turns(transcript: str, name: str) -> list[sources.Message]:
  before, *parts = TURN.split(transcript)
  if before or not parts:
    raise sources.Refused('not_a_transcript', f"field '{name}': must start with '\\n\\nHuman:'")
  turns = zip(parts[::2], parts[1::2], strict=True)
  return [{'role': ROLES[role], 'content': content.strip()} for role, content in turns]


def _check_turns(messages: list[sources.Message], name: str) -> None:
  """User and assistant must speak by turns, the assistant last, and each must say something."""
  for i, message in enumerate(messages):
    if message['role'] != ('user', 'assistant')[i % 2]:
      raise sources.Dropped('roles_do_not_alternate', f"field '{name}': turn {i + 1} is by the {message['role']}")
  if messages[-1]['role'] != 'assistant':
    raise sources.Dropped('no_reply', f"field '{name}': the last turn is by the user")
  if not messages[-1]['content']:
    raise sources.Dropped('empty_reply', f"field '{name}': the last turn is empty")
  if not all(message['content'] for message in messages):
    raise sources.Dropped('empty_turn', f"field '{name}': a turn before the last is empty")


FORMATS: dict[str, Callable[[dict[str, Any], str, int], dict[str, Any]]] = {'hh': hh_row}


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  values = flags.FLAGS
  try:
    report = convert(values.input, values.output, values.format, on_error=values.on_error)
  except (OSError, ValueError) as error:
    sys.exit(f'convert: {error}')
  print(report)
  print(f'wrote {values.output}')


def define_flags() -> None:
  flags.DEFINE_string('input', None, 'File to convert, .jsonl or .jsonl.gz.', required=True)
  flags.DEFINE_string('output', None, 'File to write, .jsonl or .jsonl.gz.', required=True)
  flags.DEFINE_enum('format', 'hh', sorted(FORMATS), 'Format of the input: hh is Anthropic HH transcripts.')
  flags.DEFINE_enum('on_error', 'raise', ['raise', 'skip'], 'Stop at the first malformed row, or count it and go on.')


if __name__ == '__main__':
  # Not on import: flags are global, and other programs have flags of the same names.
  define_flags()
  app.run(main)

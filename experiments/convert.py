r"""Converts public preference data into the rows that `alignjax.data.sources` reads.

  python -m experiments.convert --format=hh --input=harmless-base/train.jsonl.gz --output=train.jsonl

--format=hh: each row has the transcripts `chosen` and `rejected`, "\n\nHuman: ...\n\nAssistant: ...", which share all
turns but the last. It becomes {"prompt": [messages], "chosen": "...", "rejected": "..."}.
"""

import gzip
import json
import os
import pathlib
import sys

from absl import app, flags

from alignjax.data import report as report_lib
from alignjax.data import sources

FORMATS = ('hh',)  # forms of pairs


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
      for pair in sources.read_pairs(f'{format_name}:{path}', report, on_error=on_error):
        row = {'prompt': pair.prompt, 'chosen': pair.responses[0], 'rejected': pair.responses[1]}
        file.write(json.dumps(row, ensure_ascii=False).encode('utf-8') + b'\n')
      file.close()
    os.replace(partial, output)
  except BaseException:
    pathlib.Path(partial).unlink(missing_ok=True)
    raise
  return report


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
  flags.DEFINE_enum('format', 'hh', FORMATS, 'Format of the input: hh is Anthropic HH transcripts.')
  flags.DEFINE_enum('on_error', 'raise', ['raise', 'skip'], 'Stop at the first malformed row, or count it and go on.')


if __name__ == '__main__':
  # Not on import: flags are global, and other programs have flags of the same names.
  define_flags()
  app.run(main)

"""Preference data: is it sound, what is in it, and how does the model see it?

  python -m experiments.data validate --data=hh:train.jsonl.gz
  python -m experiments.data inspect --model=models/smollm2 --data=pairs.jsonl --out=runs/data
  python -m experiments.data convert --data=hh:train.jsonl.gz --out=train.jsonl
  python -m experiments.data build hh_rlhf/harmless-base --manual_dir=downloads

validate reads every row, and says what became of it. inspect tokenises the pairs too, as training would, and shows how
long they are and the first of them token by token, with what is trained marked; --out adds a picture. convert writes
the pairs as JSON Lines. build prepares a TFDS data set; without a name it lists those that it knows. --data is
`[form:]location` (alignjax/data/reading/sources.py), and may be repeated.

Exit codes: 0 done, 1 an error in flags, data or model.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import gzip
import io
import json
import os
import pathlib
import sys
import time
import traceback
from typing import NamedTuple

from absl import app, flags, logging
from rich import console as rich_console
from rich import progress as rich_progress
import tensorflow_datasets as tfds

from alignjax.commands import data_lengths, data_tokens
from alignjax.data import builders
from alignjax.data.reading import catalogue, drops, json_rows, rows, sources
from alignjax.data.tokens import encoding, tokenization
from alignjax.models import checkpoint_io

PROGRESS_ROWS = 1000  # between two signs of life


class Command(NamedTuple):
  """A sub-command: what it does with the flags and the arguments that follow its name, and which flags it takes."""

  run: Callable[[flags.FlagValues, Sequence[str]], None]
  required: tuple[str, ...] = ()
  optional: tuple[str, ...] = ()


def validate(given: flags.FlagValues, arguments: Sequence[str]) -> None:
  """Reads every row."""
  _no_arguments(arguments)
  report, start = drops.DropReport(), time.monotonic()
  for _ in _read(given, report, 'validating'):
    pass
  seconds = time.monotonic() - start
  print(report)
  print(f'{report.read / seconds:,.0f} rows/s, {seconds:.1f} s')
  if not report.kept:
    raise ValueError('no row is left to train on')


def inspect(given: flags.FlagValues, arguments: Sequence[str]) -> None:
  """Tokenises the pairs, and shows what comes of it."""
  _no_arguments(arguments)
  if given.out is not None:
    data_lengths.require_matplotlib()  # before the work
  tokenizer, report = tokenization.Tokenizer.load(given.model), drops.DropReport()
  limits = encoding.Limits(given.max_prompt, given.max_response, checkpoint_io.load_config(given.model).vocab_size)
  tokenized = encoding.tokenize(_read(given, report, 'tokenising'), tokenizer, limits, report, on_error=given.on_error)
  title = f'{", ".join(given.data)}, tokens of {given.model}'
  print(f'{title}\n{report}\n')
  lengths = data_lengths.lengths(tokenized)
  print('\n'.join(data_lengths.table(lengths)), end='\n\n')
  print('\n'.join(data_lengths.histogram(lengths)), end='\n\n')
  data_tokens.show(tokenized, tokenizer, _console(given.color))
  if given.out is not None:
    folder = pathlib.Path(given.out)
    folder.mkdir(parents=True, exist_ok=True)
    data_lengths.draw(folder / 'lengths.png', title, lengths, given.max_prompt)
    print(f'\nwrote {folder / "lengths.png"}')


def convert(given: flags.FlagValues, arguments: Sequence[str]) -> None:
  """Writes the pairs as rows of JSON."""
  _no_arguments(arguments)
  report = drops.DropReport()
  form = write(_read(given, report, 'converting'), given.out, overwrite=given.overwrite)
  print(report)
  print(f'wrote {given.out}; read it with --data={"" if form == "preference" else f"{form}:"}{given.out}')


def write(converted: Iterator[rows.Example], path: str, *, overwrite: bool = False) -> str:
  """Writes pairs to .jsonl or .jsonl.gz; the file appears only once it is whole. Returns the form of its rows.

  Raises:
    ValueError: another kind of file, one that is there, or pairs that no one form holds.
  """
  if not path.endswith(('.jsonl', '.jsonl.gz')):
    raise ValueError(f'--out={path}: must have a name that ends with .jsonl or .jsonl.gz')
  if os.path.exists(path) and not overwrite:
    raise ValueError(f'{path}: is there already; give another --out, or --overwrite')
  partial = pathlib.Path(path + '.partial')
  forms = set()
  try:
    with partial.open('wb') as raw:
      # Without a time stamp and a name in the gzip header, the same input gives the same bytes.
      compressed = (
        gzip.GzipFile('', 'wb', fileobj=raw, mtime=0) if path.endswith('.gz') else contextlib.nullcontext(raw)
      )
      with compressed as file:
        for example in converted:
          form, row = json_rows.of_example(example)
          forms.add(form)
          if len(forms) > 1:
            raise ValueError(f'{example.origin}: needs the form {form}, but earlier examples need another form')
          file.write(json.dumps(row, ensure_ascii=False).encode('utf-8') + b'\n')
    if not forms:
      raise ValueError('no row is left to write')
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
  return forms.pop()


def build(given: flags.FlagValues, arguments: Sequence[str]) -> None:
  """Prepares a data set of TFDS, or lists those that can be."""
  if len(arguments) != 1:
    raise ValueError(f'name one data set after `build`: {", ".join(builders.names())}')
  if given.manual_dir is None:
    raise ValueError(f'give --manual_dir. {builders.instructions(arguments[0])}')
  folder = given.data_dir or catalogue.data_dir()
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # TFDS says how much it will not download
    builder = builders.build(arguments[0], manual_dir=given.manual_dir, data_dir=folder, on_error=given.on_error)
  for split, report in builder.reports.items():
    count = builder.info.splits[split].num_examples if split in builder.info.splits else 0
    print(f'{split}: wrote {count} examples; {report}')
  place = builder.data_path if given.data_dir else builder.info.full_name.rpartition('/')[0]
  print(f'wrote {builder.data_path}; read it with --data=tfds:{place}:{next(iter(builder.info.splits))}')


COMMANDS = {
  'validate': Command(validate, ('data',), ('ignore_fields', 'on_error')),
  'inspect': Command(
    inspect, ('model', 'data'), ('ignore_fields', 'on_error', 'max_prompt', 'max_response', 'out', 'color')
  ),
  'convert': Command(convert, ('data', 'out'), ('ignore_fields', 'on_error', 'overwrite')),
  'build': Command(build, (), ('manual_dir', 'data_dir', 'on_error')),
}


def _no_arguments(arguments: Sequence[str]) -> None:
  if arguments:
    raise ValueError(f'what is {arguments[0]!r}? What to read is given by --data')


def _read(given: flags.FlagValues, report: drops.DropReport, what: str) -> Iterator[rows.Example]:
  """The pairs of --data, with a count of rows on a terminal."""
  console = rich_console.Console(stderr=True)
  columns = [f'{what}: {{task.completed:,}} rows,', rich_progress.TimeElapsedColumn()]
  with rich_progress.Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
    task = progress.add_task(what, total=None)
    read = sources.read_examples(given.data, report, on_error=given.on_error, ignore_fields=given.ignore_fields)
    for i, example in enumerate(read):
      if i % PROGRESS_ROWS == 0:
        progress.update(task, completed=report.read)
      yield example


def _console(color: str) -> rich_console.Console:
  systems = {'auto': 'auto', 'always': 'standard', 'never': None}
  return rich_console.Console(highlight=False, color_system=systems[color], force_terminal=color == 'always' or None)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """The flags of the program. Not on import: flags are global, and other programs have flags of the same names."""

  def text(name: str, meaning: str) -> None:
    flags.DEFINE_string(name, None, meaning, flag_values=values)

  def whole(name: str, default: int, meaning: str) -> None:
    flags.DEFINE_integer(name, default, meaning, lower_bound=2, flag_values=values)

  flags.DEFINE_multi_string('data', None, '[form:]location; may be repeated.', flag_values=values)
  flags.DEFINE_list('ignore_fields', [], 'Fields of the rows that are not used; others must be known.', values)
  flags.DEFINE_enum(
    'on_error', 'raise', ['raise', 'skip'], 'Stop at the first malformed row, or count it and go on.', values
  )
  text('model', 'inspect: folder of the model, in Hugging Face layout.')
  whole('max_prompt', 512, 'inspect: tokens; longer prompts are cut on the left.')
  whole('max_response', 512, 'inspect: tokens; examples with a longer response are dropped.')
  flags.DEFINE_enum(
    'color', 'auto', ['auto', 'always', 'never'], 'inspect: auto means colours on a terminal.', flag_values=values
  )
  text('out', 'inspect: folder for lengths.png; convert: the file to write, .jsonl or .jsonl.gz.')
  flags.DEFINE_bool('overwrite', False, 'convert: replace --out if it is there.', flag_values=values)
  text('manual_dir', 'build: folder of the files that the data set is made of.')
  text('data_dir', 'build: folder of prepared data sets; that of TFDS_DATA_DIR, or that of TFDS.')


def run(arguments: Sequence[str], given: flags.FlagValues) -> None:
  """Does what the flags say.

  Raises:
    ValueError: for arguments, flags, data or a model that are unfit.
  """
  if not arguments or arguments[0] not in COMMANDS:
    raise ValueError(f'say what to do, one of {", ".join(COMMANDS)}' + (f', not {arguments[0]}' if arguments else ''))
  command = COMMANDS[arguments[0]]
  takes = command.required + command.optional
  for other in COMMANDS.values():
    for name in other.required + other.optional:
      if given[name].present and name not in takes:
        raise ValueError(f'--{name} has no use in {arguments[0]}, which takes --{", --".join(takes)}')
  for name in command.required:
    if not given[name].value:
      raise ValueError(f'{arguments[0]} needs --{name}')
  command.run(given, arguments[1:])


def attempt(arguments: Sequence[str], given: flags.FlagValues) -> int:
  """Runs, tells what went wrong, and returns the exit code."""
  try:
    run(arguments, given)
  except (ValueError, OSError) as error:
    logging.debug('%s', traceback.format_exc())
    print(f'error: {error}\n(--verbosity=1 shows where)', file=sys.stderr)
    return 1
  return 0


def main(argv: Sequence[str]) -> None:
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  sys.exit(attempt(argv[1:], flags.FLAGS))


def start() -> None:
  """The program; flags are defined here and not on import, because they are global."""
  sys.modules['__main__'].__doc__ = __doc__
  define_flags()
  app.run(main)

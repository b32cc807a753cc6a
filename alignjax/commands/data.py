"""Validates, inspects, tokenises, converts and builds preference data.

  alignjax data validate --data=hh:train.jsonl.gz
  alignjax data inspect --model=models/smollm2 --data=pairs.jsonl --out=runs/data
  alignjax data tokenize --model=models/smollm2 --data=pairs.jsonl --token_cache=tokens --workers=8
  alignjax data convert --data=hh:train.jsonl.gz --out=train.jsonl
  alignjax data build hh_rlhf/harmless-base --manual_dir=downloads

--data is `[form:]location[part]` (alignjax/data/reading/sources.py), and can be repeated.

Exit codes: 0 done, 1 an error in flags, data or model.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import gzip
import io
import json
import os
import pathlib
import sys
import time
from typing import Any

from rich import console as rich_console
from rich import progress as rich_progress
import tensorflow_datasets as tfds

from alignjax import paths
from alignjax.commands import data_lengths, data_tokens, program
from alignjax.data import builders
from alignjax.data.reading import catalogue, drops, json_rows, rows, sources
from alignjax.data.tokens import artefact, encoding, tokenization, variables
from alignjax.models import checkpoint_io
from alignjax.run import fields, locations, user_code

PROGRESS_ROWS = 1000  # number of rows between updates of the progress line


@dataclasses.dataclass(frozen=True)
class Settings(user_code.UserCode):
  """Data."""

  data: tuple[str, ...] = fields.field(
    (), 'Data to read, [form:]location[part]; can be repeated.', required=True, path=paths.READ
  )
  ignore_fields: tuple[str, ...] = fields.field(
    (), 'Columns to ignore, and paths of fields within them, such as prompt[].weight.'
  )
  unknown_columns: str = fields.field(
    'refuse',
    'Columns that the form does not have: an error, which catches misspelt ones, or counted and left out, which suits '
    'public datasets with metadata.',
    choices=('refuse', 'note'),
  )
  on_error: str = fields.field(
    'raise', 'Stop at the first malformed row, or skip and count malformed rows.', choices=('raise', 'skip')
  )


@dataclasses.dataclass(frozen=True)
class TokenSettings(Settings):
  """Tokens."""

  model: str = fields.field(
    '', 'Model: a folder in Hugging Face format, or a name on the Hub.', required=True, path=paths.READ
  )
  template_arguments: tuple[str, ...] = fields.field((), variables.TEXT)
  max_prompt: int = fields.field(512, 'Largest prompt in tokens; longer ones lose their first tokens.', at_least=2)
  max_response: int = fields.field(512, 'Largest response in tokens; for longer ones see --long_responses.', at_least=2)
  long_responses: str = fields.field(
    'drop',
    'Drop an example with a longer response, or cut the response, which then has no end token to learn.',
    choices=('drop', 'cut'),
  )

  def __post_init__(self):
    fields.check(self)

  def tokenizer(self) -> tokenization.Tokenizer:
    """The tokenizer of the model, with the arguments of its chat template."""
    arguments = fields.naming('--template_arguments', variables.parse, self.template_arguments)
    loaded = tokenization.Tokenizer.load(self.model)
    return fields.naming('--template_arguments', loaded.with_template_arguments, arguments)

  def limits(self) -> encoding.Limits:
    """The limits of training with this model."""
    vocab_size, cut = checkpoint_io.load_config(self.model).vocab_size, self.long_responses == 'cut'
    return encoding.Limits(self.max_prompt, self.max_response, vocab_size, truncate_response=cut)


@dataclasses.dataclass(frozen=True)
class InspectSettings(TokenSettings):
  """Output of inspect."""

  out: str = fields.field('', 'Folder for lengths.png, a plot of the lengths; empty: no plot.', path=paths.WRITTEN)
  row: int = fields.field(
    0, 'Row of the first file whose tokens are shown, counted from 1; 0: the first that is kept.', at_least=0
  )
  color: str = fields.field('auto', 'Coloured output; auto: only on a terminal.', choices=('auto', 'always', 'never'))


@dataclasses.dataclass(frozen=True)
class TokenizeSettings(TokenSettings):
  """Storage of tokens."""

  token_cache: str = fields.field(
    '',
    'Folder for tokenised data, created if missing; training uses it with the same --token_cache.',
    required=True,
    path=paths.DISK,
  )
  workers: int = fields.field(1, 'Number of processes that tokenise.', at_least=1)


@dataclasses.dataclass(frozen=True)
class ConvertSettings(Settings):
  """Output."""

  out: str = fields.field('', 'File to write, .jsonl or .jsonl.gz.', required=True, path=paths.WRITTEN)
  overwrite: bool = fields.field(False, 'Replace the file if it exists.')


@dataclasses.dataclass(frozen=True)
class BuildSettings(user_code.UserCode):
  """Dataset."""

  dataset: str = fields.field('', f'Name of the dataset: {", ".join(builders.names())}.', positional=True)
  manual_dir: str = fields.field('', 'Folder with the source files of the dataset.', path=paths.DISK)
  data_dir: str = fields.field(
    '', 'Folder for prepared datasets; empty: TFDS_DATA_DIR, or the default of TFDS.', path=paths.DISK
  )
  on_error: str = fields.field(
    'raise', 'Stop at the first malformed row, or skip and count malformed rows.', choices=('raise', 'skip')
  )


def validate(settings: Settings) -> None:
  """Reads every row, and prints how many are kept and why others are dropped.

  alignjax data validate --data=hh:train.jsonl.gz
  """
  report, start = drops.DropReport(), time.monotonic()
  for _ in _read(settings, report, 'validating'):
    pass
  seconds = time.monotonic() - start
  print(report)
  print(f'{report.read / seconds:,.0f} rows/s, {seconds:.1f} s')
  if not report.kept:
    raise ValueError('no row is left to train on')


def inspect(settings: InspectSettings) -> None:
  """Tokenises examples as training does, and prints their lengths and the tokens of one of them.

  alignjax data inspect --model=models/smollm2 --data=pairs.jsonl --out=runs/data
  """
  if settings.out:
    data_lengths.require_matplotlib()  # fail before the long part
  tokenizer, report = settings.tokenizer(), drops.DropReport()
  read = _read(settings, report, 'tokenising')
  tokenized = encoding.tokenize(read, tokenizer, settings.limits(), report, on_error=settings.on_error)
  index = data_tokens.of_row(tokenized, settings.row)
  title = f'{", ".join(settings.data)}, tokens of {settings.model}'
  print(f'{title}\n{report}\n')
  lengths = data_lengths.lengths(tokenized)
  print('\n'.join(data_lengths.table(lengths)), end='\n\n')
  print('\n'.join(data_lengths.histogram(lengths)), end='\n\n')
  data_tokens.show(tokenized, index, tokenizer, _console(settings.color))
  if settings.out:
    folder = pathlib.Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    data_lengths.draw(folder / 'lengths.png', title, lengths, settings.max_prompt)
    print(f'\nwrote {folder / "lengths.png"}')


def tokenize(settings: TokenizeSettings) -> None:
  """Tokenises data once, so that training opens the result instead of reading the rows.

  alignjax data tokenize --model=models/smollm2 --data=pairs.jsonl --token_cache=tokens --workers=8

  Training finds it with the same --data, --model, --max_prompt, --max_response, --long_responses, --on_error,
  --ignore_fields, --unknown_columns, --template_arguments and --token_cache. Files may be at other places, as long as
  their contents are the same.
  """
  tokenizer = settings.tokenizer()
  if tokenizer.template is not None and tokenizer.template.date is not None:
    raise ValueError(
      f'{settings.model}: the chat template prints the date. Training prints the date of its first start, so it '
      'must tokenise the data itself'
    )
  request = artefact.Request(
    settings.data,
    tokenizer,
    settings.limits(),
    settings.on_error,
    settings.ignore_fields,
    settings.unknown_columns,
  )
  if obstacle := artefact.obstacle(request):
    raise ValueError(
      f'{obstacle}, so it cannot be tokenised beforehand: convert it to JSON Lines with `alignjax data convert`'
    )
  root = pathlib.Path(settings.token_cache)
  name, data = artefact.obtain(root, request, artefact.Making(print, workers=settings.workers))
  print(data.report)
  print(f'{len(data)} examples are in {root / name}')


def convert(settings: ConvertSettings) -> None:
  """Converts data to JSON Lines.

  alignjax data convert --data=hh:train.jsonl.gz --out=train.jsonl
  """
  report = drops.DropReport()
  form = write(_read(settings, report, 'converting'), settings.out, overwrite=settings.overwrite)
  print(report)
  print(f'wrote {settings.out}; read it with --data={"" if form == "preference" else f"{form}:"}{settings.out}')


def write(converted: Iterator[rows.Example], path: str, *, overwrite: bool = False) -> str:
  """Writes examples to .jsonl or .jsonl.gz, and returns the form of the rows. The file appears only when complete.

  Raises:
    ValueError: the file has another extension or exists, or no single form can hold all examples.
  """
  if not path.endswith(('.jsonl', '.jsonl.gz')):
    raise ValueError(f'--out={path}: the name must end with .jsonl or .jsonl.gz')
  if os.path.exists(path) and not overwrite:
    raise ValueError(f'{path}: the file exists; choose another --out, or give --overwrite')
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
            raise ValueError(f'{example.origin}: needs the form {form}, but earlier examples need another one')
          file.write(json.dumps(row, ensure_ascii=False).encode('utf-8') + b'\n')
    if not forms:
      raise ValueError('no row is left to write')
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
  return forms.pop()


def build(settings: BuildSettings) -> None:
  """Builds a TFDS dataset; without a name, lists the known datasets.

  alignjax data build hh_rlhf/harmless-base --manual_dir=downloads
  """
  if not settings.dataset:
    raise ValueError(f'give the name of a dataset after `build`: {", ".join(builders.names())}')
  if not settings.manual_dir:
    raise ValueError(f'give --manual_dir. {builders.instructions(settings.dataset)}')
  folder = settings.data_dir or catalogue.data_dir()
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # hides what TFDS prints about downloads
    builder = builders.build(
      settings.dataset, manual_dir=settings.manual_dir, data_dir=folder, on_error=settings.on_error
    )
  for split, report in builder.reports.items():
    count = builder.info.splits[split].num_examples if split in builder.info.splits else 0
    print(f'{split}: wrote {count} examples; {report}')
  place = builder.data_path if settings.data_dir else builder.info.full_name.rpartition('/')[0]
  print(f'wrote {builder.data_path}; read it with --data=tfds:{place}:{next(iter(builder.info.splits))}')


def _read(settings: Settings, report: drops.DropReport, what: str) -> Iterator[rows.Example]:
  """Yields the examples of --data, and shows the number of rows on a terminal."""
  console = rich_console.Console(stderr=True)
  columns = [f'{what}: {{task.completed:,}} rows,', rich_progress.TimeElapsedColumn()]
  with rich_progress.Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
    task = progress.add_task(what, total=None)
    read = sources.read_examples(
      settings.data,
      report,
      on_error=settings.on_error,
      ignore_fields=settings.ignore_fields,
      unknown_columns=settings.unknown_columns,
    )
    for i, example in enumerate(read):
      if i % PROGRESS_ROWS == 0:
        progress.update(task, completed=report.read)
      yield example


def _console(color: str) -> rich_console.Console:
  systems = {'auto': 'auto', 'always': 'standard', 'never': None}
  return rich_console.Console(highlight=False, color_system=systems[color], force_terminal=color == 'always' or None)


def _program(run: Callable[[Any], None], settings: type) -> program.Program:
  """A sub-command, with hints for the flags that only other sub-commands take."""
  takes = [leaf.flag for leaf in fields.leaves(settings)]
  kinds = (InspectSettings, TokenizeSettings, ConvertSettings, BuildSettings)
  others = {leaf.flag for kind in kinds for leaf in fields.leaves(kind)} - set(takes)
  hint = f'it takes --{", --".join(takes)}'

  def run_with_paths(given: Any) -> None:
    run(locations.with_paths(given))

  return program.Program(
    f'data {run.__name__}', run.__doc__, settings, run_with_paths, hints=dict.fromkeys(others, hint)
  )


PROGRAMS = {
  'validate': _program(validate, Settings),
  'inspect': _program(inspect, InspectSettings),
  'tokenize': _program(tokenize, TokenizeSettings),
  'convert': _program(convert, ConvertSettings),
  'build': _program(build, BuildSettings),
}
PROGRAM = program.Group(
  'alignjax data',
  __doc__,
  {name: each.text.partition('\n')[0] for name, each in PROGRAMS.items()},
  PROGRAMS.__getitem__,
)

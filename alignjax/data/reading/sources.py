r"""Reads examples from files and other places, and checks them field by field while streaming.

One expression names the data: `[form:]location[part]`. The form defines the columns of a row and their meaning
(`FORMS`, `preference` by default), and may rename columns. The location is a file with one of the endings in
`readers.ENDINGS`, or starts with one of `readers.SCHEMES`; programs also take names of datasets on the Hugging Face Hub
(`alignjax.run.locations`). See `expressions` for column maps and parts:

  pairs.jsonl    hh:train.jsonl.gz    ultrafeedback_pair:data.parquet    unpaired:x.csv    hh:hf:Anthropic/hh-rlhf:train
  preference[prompt=question]:orca.jsonl    pairs.jsonl[:1000]    pairs.jsonl[split:5%]

If a path itself starts with the name of a form and a colon, write ./hh:x.jsonl or pass a `pathlib.Path`.

To add a form, write its function and add a line to FORMS.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
import difflib
import functools
import os
from typing import Any, NamedTuple

from alignjax.data.reading import (
  drops,
  expressions,
  generic_forms,
  hub_forms,
  messages,
  public_forms,
  readers,
  rows,
  single_forms,
  uniform,
  values,
)

Source = str | os.PathLike
HINTS = 10  # malformed rows of a source for which a form is proposed
UNUSED_NAMED = 32  # unused columns that a report names
Expand = Callable[[rows.Example], Iterator[rows.Example | rows.Dropped]]


class Form(NamedTuple):
  """How a row becomes an `Example`.

  Attributes:
    parse: called with the fields of a row and the names to ignore in messages and nested objects. Raises Refused or
      Dropped. Its docstring documents the columns.
    columns: the names of the columns.
    responses: responses to a prompt; None: as many as the row has.
    unused: columns of the published dataset that are not read.
    options: what an expression can set besides columns: for each value, the default first, what makes several examples
      of one, or None.
  """

  parse: Callable[[Mapping[str, Any], Collection[str]], rows.Example]
  columns: tuple[str, ...]
  responses: int | None = None
  unused: tuple[str, ...] = ()
  options: Mapping[str, Mapping[str, Expand | None]] = {}


DEFAULT = 'preference'
FORMS: dict[str, Form] = {
  'preference': Form(generic_forms.preference, generic_forms.PREFERENCE, 2),
  'unpaired': Form(generic_forms.unpaired, generic_forms.UNPAIRED, 1),
  'ranked': Form(generic_forms.ranked, generic_forms.RANKED, None),
  'scored': Form(generic_forms.scored, generic_forms.SCORED, None),
  'scored_pair': Form(generic_forms.scored_pair, generic_forms.SCORED, 2),
  'prompts': Form(generic_forms.prompts, generic_forms.PROMPTS, 0, generic_forms.PROMPTS_UNUSED),
  'conversation': Form(
    single_forms.conversation,
    single_forms.CONVERSATION,
    1,
    single_forms.CONVERSATION_UNUSED,
    {'turns': {'all': single_forms.every_turn, 'last': None}},
  ),
  'supervised': Form(single_forms.supervised, single_forms.SUPERVISED, 1),
  'text': Form(single_forms.text, single_forms.TEXT, 1),
  'chosen': Form(single_forms.chosen, single_forms.CHOSEN, 1, single_forms.CHOSEN_UNUSED),
  'alpaca': Form(single_forms.alpaca, single_forms.ALPACA, None, single_forms.ALPACA_UNUSED),
  'hh': Form(public_forms.hh, public_forms.HH, 2),
  'hh_text': Form(public_forms.hh_text, public_forms.HH, 2),
  'ultrafeedback': Form(
    public_forms.ultrafeedback, public_forms.ULTRAFEEDBACK, None, public_forms.ULTRAFEEDBACK_UNUSED
  ),
  'ultrafeedback_pair': Form(
    public_forms.ultrafeedback_pair, public_forms.ULTRAFEEDBACK, 2, public_forms.ULTRAFEEDBACK_UNUSED
  ),
  'binarised': Form(public_forms.binarised, public_forms.BINARISED, 2, public_forms.BINARISED_UNUSED),
  'tldr': Form(public_forms.tldr, public_forms.TLDR, 2, public_forms.TLDR_UNUSED),
  'nectar': Form(hub_forms.nectar, hub_forms.NECTAR, None, hub_forms.NECTAR_UNUSED),
  'nectar_pair': Form(hub_forms.nectar_pair, hub_forms.NECTAR, 2, hub_forms.NECTAR_UNUSED),
  'helpsteer': Form(hub_forms.helpsteer, hub_forms.HELPSTEER, 2, hub_forms.HELPSTEER_UNUSED),
  'shp': Form(hub_forms.shp, hub_forms.SHP, 2, hub_forms.SHP_UNUSED),
  'pku': Form(hub_forms.pku, hub_forms.PKU, 2, hub_forms.PKU_UNUSED),
}
# What a message proposes for rows that cannot be read, if it reads them.
SUGGESTED = (
  *('hh', 'nectar', 'helpsteer', 'shp', 'pku', 'tldr', 'ultrafeedback_pair', 'binarised', 'alpaca'),
  *('scored', 'ranked', 'unpaired', 'preference'),
  'preference[user=question]',
  'preference[user=instruction]',
  'preference[user=input]',
  'preference[prompt=messages]',
  'preference[prompt=conversations]',
  'preference[prompt=input.messages,tools=input.tools,chosen=preferred_output,rejected=non_preferred_output]',
  'conversation',
  'conversation[messages=conversation]',
  'supervised',
  'supervised[completion=response]',
  'supervised[user=question,completion=answer]',
  'text',
)
# Columns that change what a model should see: a run must not leave them out unasked.
MEANINGFUL = frozenset(
  {
    *messages.CONTEXT,
    *('system_prompt', 'functions', 'context', 'history', 'input', 'messages'),
    *('image', 'images', 'audio', 'audios', 'video', 'videos'),
  }
)
UNKNOWN_COLUMNS = ('refuse', 'note')


def parse_expression(source: Source, default: str = DEFAULT) -> expressions.Expression:
  """Takes `[form:]location[part]` apart. A prefix that is not the name of a form belongs to the location.

  Raises:
    ValueError: a column map or a part is malformed.
  """
  return expressions.parse(source, FORMS, default)


def forms_with(numbers: Collection[int]) -> list[str]:
  """The forms whose rows can have one of these numbers of responses."""
  several = max(numbers, default=0) > 1  # rows without a fixed number have two or more, as a rule
  return [name for name, form in FORMS.items() if (several if form.responses is None else form.responses in numbers)]


def read_examples(
  sources: Source | Iterable[Source],
  report: drops.DropReport,
  *,
  on_error: str = 'raise',
  ignore_fields: Iterable[str] = (),
  unknown_columns: str = 'refuse',
  default: str = DEFAULT,
  kept: Iterable[str] = (),
) -> Iterator[rows.Example]:
  """Yields the examples of one dataset in order, in linear time and constant memory.

  Args:
    sources: an expression `[form:]location`, or several that together make up the dataset.
    report: counts the rows as they are read. Rows with nothing to learn from, such as two identical responses, are
      dropped and counted.
    on_error: 'raise' stops at the first malformed row; 'skip' counts malformed rows by reason.
    ignore_fields: names of columns to ignore, and paths such as `prompt[].weight` of fields within them. A name that is
      no column of the form is ignored within objects, too.
    unknown_columns: what to do with other columns that the form does not have: 'refuse' them, or leave them out and
      'note' in the report which they are. Columns that change what a model should see, such as `system`, are refused.
    default: the form of expressions that name none.
    kept: names of columns, known to the form or not, to keep as `Example.fields`.

  Raises:
    DataError: a malformed row; or, under either policy, a source that is empty or damaged.
    ValueError: no reader knows the location.
  """
  rows.check_policy(on_error)
  if unknown_columns not in UNKNOWN_COLUMNS:
    raise ValueError(f'unknown_columns={unknown_columns!r}: must be one of {", ".join(UNKNOWN_COLUMNS)}')
  ignored, alike, kept = frozenset(ignore_fields), uniform.Uniform(), tuple(kept)
  for source in [sources] if isinstance(sources, Source) else sources:
    expression = parse_expression(source, default)
    _check_exists(expression.location)
    parser = _Parser(expression, ignored, alike, report if unknown_columns == 'note' else None, kept)
    opened = functools.partial(readers.open_rows, expression.location)
    yield from _read(expression.location, opened, parser, report, on_error, expression.part)
    parser.columns.check(expression.location)


def parse_examples(
  fields: Iterable[Mapping[str, Any]], report: drops.DropReport, form: str = DEFAULT
) -> Iterator[rows.Example]:
  """Yields the examples of rows in memory, with the same checks as `read_examples`.

  Args:
    fields: one mapping of field names to values for each row.
    report: counts the rows, as in `read_examples`.
    form: the name of the form of the rows.

  Raises:
    DataError: a malformed row, named '<memory>:number', or no rows at all.
  """

  def opened() -> Iterator[tuple[int, dict[str, Any]]]:
    return ((number, values.without_nulls(dict(row))) for number, row in enumerate(fields, start=1))

  parser = _Parser(expressions.Expression(form, '<memory>'), frozenset(), uniform.Uniform(), None)
  yield from _read('<memory>', opened, parser, report, 'raise')


def read_rows[Row](
  paths: Source | Iterable[Source],
  parse: Callable[[dict[str, Any], str, int], Row],
  report: drops.DropReport,
  *,
  on_error: str = 'raise',
) -> Iterator[Row]:
  """Yields `parse(fields, location, number)` of each row. `parse` may raise Refused or Dropped; see `read_examples`."""
  rows.check_policy(on_error)
  for path in [paths] if isinstance(paths, Source) else paths:
    opened = functools.partial(readers.open_rows, os.fspath(path))
    yield from _read(os.fspath(path), opened, lambda *args: [parse(*args)], report, on_error)


def _read[Row](
  location: str,
  opened: Callable[[], Iterable[tuple[int, dict[str, Any] | rows.Refused]]],
  parse: Callable[[dict[str, Any], str, int], Sequence[Row | rows.Dropped]],
  report: drops.DropReport,
  on_error: str,
  part: expressions.Part = expressions.Part(),  # noqa: B008, it is immutable
) -> Iterator[Row]:
  empty = True
  # Opened here, so that an error closes the file even while its traceback is kept.
  for index, (number, fields) in enumerate(opened()):
    empty = False
    if part.stop is not None and index >= part.stop:
      break
    if index < part.start:
      continue
    report.read += 1
    try:
      if isinstance(fields, rows.Refused):
        raise fields
      found = parse(fields, location, number)
    except rows.Dropped as problem:
      report.drop(problem.reason, f'{location}:{number}', problem.message)
    except rows.Refused as problem:
      if on_error == 'raise':
        raise rows.DataError(f'{location}:{number}', problem.reason, problem.message) from None
      report.drop(problem.reason, f'{location}:{number}', problem.message)
    else:
      if part.share and not part.takes(_prompt(found)):  # it is in the other part
        report.read -= 1
        continue
      report.read += len(found) - 1
      for row in found:
        if isinstance(row, rows.Dropped):
          report.drop(row.reason, f'{location}:{number}', row.message)
        else:
          yield row
  if empty:
    raise rows.DataError(f'{location}:1', 'empty_file', 'the file is empty; it must have at least one row')


def _prompt(found: Sequence[Any]) -> rows.Prompt:
  """The prompt by which a row belongs to one part of a split: that of its first example."""
  return next((example.prompt for example in found if not isinstance(example, rows.Dropped)), '')


def _check_exists(location: str) -> None:
  """Refuses a prefix that is no scheme, unless it is part of an existing path: it may be a misspelt form."""
  scheme, colon, _ = location.partition(':')
  if not colon or scheme in readers.SCHEMES or os.path.exists(location):
    return
  file, bracket, part = location.partition('[')
  if bracket and os.path.exists(file):
    raise ValueError(
      f'{location}: [{part} is not a part of a file; parts are [:1000], [1000:2000], [split:5%], [rest:5%]'
    )
  close = difflib.get_close_matches(scheme, FORMS, n=1)
  hint = f'; did you mean {close[0]}?' if close else ''
  raise ValueError(
    f'{location}: no such file, and {values.quote(scheme)} is neither a form ({", ".join(FORMS)}) nor a scheme '
    f'to read from ({", ".join(readers.SCHEMES)}){hint}'
  )


class _Parser:
  """Turns the fields of a row into examples, usually one.

  Args:
    expression: the form and its column map.
    ignored: names and paths of fields to ignore.
    alike: what earlier rows had.
    report: counts unknown columns; None refuses them.
    kept: names of columns to keep as `Example.fields`.
  """

  def __init__(
    self,
    expression: expressions.Expression,
    ignored: frozenset[str],
    alike: uniform.Uniform,
    report: drops.DropReport | None,
    kept: Collection[str] = (),
  ):
    self.columns = expressions.ColumnMap(expression.columns)
    self._name, self._form = expression.form, FORMS[expression.form]
    given, options = dict(expression.options), self._form.options
    chosen = [each[given.get(name, next(iter(each)))] for name, each in options.items()]
    self._expand = next(filter(None, chosen), None)
    self._ignored = ignored
    self._alike = alike
    self._report = report
    self._kept = kept
    self._left_out = ignored.union(self._form.unused, kept)
    self._used = frozenset(self._form.columns) - ignored
    self._nested = ignored.difference(self._form.columns)  # a column of the form is no field of a message
    self._hints = HINTS

  def __call__(self, fields: dict[str, Any], location: str, number: int) -> list[rows.Example | rows.Dropped]:
    row = self.columns(fields)
    unknown = ()
    if not row.keys() <= self._used:
      unknown = [name for name in row if name not in self._used and name not in self._left_out]
    try:
      if unknown and not self._notes(unknown):
        self._refuse(row, unknown)
      example = self._form.parse(row if row.keys() <= self._used else _with(row, self._used), self._nested)
      self._alike.check(example, row)
    except rows.Dropped:
      raise
    except rows.Refused as problem:
      hint = '' if ' is null' in problem.message else self._hint(fields, problem.reason)
      message = self.columns.explain(problem.message) + hint
      raise rows.Refused(problem.reason, message) from None
    if unknown:
      self._note(unknown, f'{location}:{number}')
    if self._kept:
      example = example._replace(fields={name: fields[name] for name in self._kept if name in fields})
    example = example._replace(path=location, line=number)
    return [example] if self._expand is None else list(self._expand(example))

  def _notes(self, unknown: Collection[str]) -> bool:
    """Whether unknown columns are noted rather than refused."""
    return self._report is not None and MEANINGFUL.isdisjoint(unknown)

  def _refuse(self, row: Mapping[str, Any], unknown: Collection[str]) -> None:
    """Raises Refused: for a missing column if there is one, because that is the worse fault."""
    try:
      self._form.parse(_with(row, self._used), self._nested)
    except rows.Dropped:
      pass
    except rows.Refused as problem:
      if problem.reason == 'missing_field' and ' is missing' in problem.message:
        names = ', '.join(sorted(map(values.quote, unknown)))
        raise rows.Refused(problem.reason, f'{problem.message}; unknown fields: {names}') from None
    if meaningful := sorted(MEANINGFUL.intersection(unknown)) if self._report is not None else []:
      raise rows.Refused(
        'unknown_field',
        f"field '{meaningful[0]}': changes what the model should see, but the form {self._name} does not read it; map "
        'it to a column of the form, or add it to ignore_fields',
      )
    values.known(row, self._form.columns, self._left_out)

  def _note(self, unknown: Collection[str], origin: str) -> None:
    for name in unknown:
      reason = f'unused column {values.quote(name)}'
      if reason not in self._report.noted and len(self._report.noted) >= UNUSED_NAMED:
        reason = 'unused column, others'
      self._report.note(reason, origin, 'no form reads it')

  def _hint(self, fields: Mapping[str, Any], reason: str) -> str:
    """Proposes an expression that reads a row; '' if none does."""
    if reason not in ('missing_field', 'unknown_field', 'wrong_type', 'mixed_forms', 'wrong_role') or not self._hints:
      return ''
    self._hints -= 1
    if reason == 'unknown_field' and self._reads(f'{self._name}:', fields):
      return ', or set unknown_columns=note'
    readable = (text for text in SUGGESTED if text != self._name and self._reads(f'{text}:', fields))
    found = next(readable, None)
    return f'; these rows look like {found}:' if found else ''

  def _reads(self, text: str, fields: Mapping[str, Any]) -> bool:
    expression = parse_expression(text)
    form = FORMS[expression.form]
    row = expressions.ColumnMap(expression.columns)(fields)
    others = row.keys() - {*form.columns, *form.unused}
    if not MEANINGFUL.isdisjoint(others):
      return False
    try:
      form.parse(_with(row, form.columns), frozenset())
    except rows.Refused:
      return False
    return True


def _with(row: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
  """The fields of a row with these names."""
  kept = values.Sparse({name: value for name, value in row.items() if name in names})
  kept.nulls = getattr(row, 'nulls', frozenset())
  return kept

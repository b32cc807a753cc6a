r"""Reads examples from files and other places, and checks them field by field while streaming.

One expression names the data: `[form:]location`. The form defines the columns of a row and their meaning (`FORMS`,
`preference` by default). The location is a file with one of the endings in `readers.ENDINGS`, or starts with one of
`readers.SCHEMES`:

  pairs.jsonl    hh:train.jsonl.gz    ultrafeedback_pair:data.parquet    unpaired:x.csv    hh:hf:Anthropic/hh-rlhf:train

If a path itself starts with the name of a form and a colon, write ./hh:x.jsonl or pass a `pathlib.Path`.

To add a form, write its function and add a line to FORMS.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
import functools
import os
from typing import Any, NamedTuple

from alignjax.data.reading import drops, generic_forms, public_forms, readers, rows, values

Source = str | os.PathLike


class Form(NamedTuple):
  """How a row becomes an `Example`."""

  # Called with the fields of a row and the names to ignore in messages and nested objects. Raises Refused or Dropped.
  # Its docstring documents the columns.
  parse: Callable[[Mapping[str, Any], Collection[str]], rows.Example]
  columns: tuple[str, ...]
  unused: tuple[str, ...] = ()  # columns of the published dataset that are not read


DEFAULT = 'preference'
FORMS: dict[str, Form] = {
  'preference': Form(generic_forms.preference, generic_forms.PREFERENCE),
  'unpaired': Form(generic_forms.unpaired, generic_forms.UNPAIRED),
  'ranked': Form(generic_forms.ranked, generic_forms.RANKED),
  'scored': Form(generic_forms.scored, generic_forms.SCORED),
  'scored_pair': Form(generic_forms.scored_pair, generic_forms.SCORED),
  'prompts': Form(generic_forms.prompts, generic_forms.PROMPTS, generic_forms.PROMPTS_UNUSED),
  'hh': Form(public_forms.hh, public_forms.HH),
  'hh_text': Form(public_forms.hh_text, public_forms.HH),
  'ultrafeedback': Form(public_forms.ultrafeedback, public_forms.ULTRAFEEDBACK, public_forms.ULTRAFEEDBACK_UNUSED),
  'ultrafeedback_pair': Form(
    public_forms.ultrafeedback_pair, public_forms.ULTRAFEEDBACK, public_forms.ULTRAFEEDBACK_UNUSED
  ),
  'binarised': Form(public_forms.binarised, public_forms.BINARISED, public_forms.BINARISED_UNUSED),
  'tldr': Form(public_forms.tldr, public_forms.TLDR, public_forms.TLDR_UNUSED),
}


class Expression(NamedTuple):
  """The two parts of `[form:]location`."""

  form: str
  location: str


def parse_expression(source: Source, default: str = DEFAULT) -> Expression:
  """Splits `[form:]location`. A prefix that is not the name of a form belongs to the location."""
  if isinstance(source, str):
    form, colon, location = source.partition(':')
    if colon and form in FORMS:
      return Expression(form, location)
  return Expression(default, os.fspath(source))


def read_examples(
  sources: Source | Iterable[Source],
  report: drops.DropReport,
  *,
  on_error: str = 'raise',
  ignore_fields: Iterable[str] = (),
  default: str = DEFAULT,
) -> Iterator[rows.Example]:
  """Yields the examples of one dataset in order, in linear time and constant memory.

  Args:
    sources: an expression `[form:]location`, or several that together make up the dataset.
    report: counts the rows as they are read. Rows with nothing to learn from, such as two identical responses, are
      dropped and counted.
    on_error: 'raise' stops at the first malformed row; 'skip' counts malformed rows by reason.
    ignore_fields: names of fields to ignore, in rows and in objects within them. Any other unknown field is an error.
    default: the form of expressions that name none.

  Raises:
    DataError: a malformed row; or, under either policy, a source that is empty or damaged.
    ValueError: no reader knows the location.
  """
  rows.check_policy(on_error)
  ignored, uniform = frozenset(ignore_fields), _Uniform()
  for source in [sources] if isinstance(sources, Source) else sources:
    form, location = parse_expression(source, default)
    _check_exists(location)
    opened = functools.partial(readers.open_rows, location)
    yield from _read(location, opened, _Parser(FORMS[form], ignored, uniform), report, on_error)


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
    return ((number, dict(row)) for number, row in enumerate(fields, start=1))

  yield from _read('<memory>', opened, _Parser(FORMS[form], frozenset(), _Uniform()), report, 'raise')


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
    yield from _read(os.fspath(path), opened, parse, report, on_error)


def _read[Row](
  location: str,
  opened: Callable[[], Iterable[tuple[int, dict[str, Any] | rows.Refused]]],
  parse: Callable[[dict[str, Any], str, int], Row],
  report: drops.DropReport,
  on_error: str,
) -> Iterator[Row]:
  empty = True
  for number, fields in opened():  # opened here, so that an error closes the file even while its traceback is kept
    empty = False
    report.read += 1
    try:
      if isinstance(fields, rows.Refused):
        raise fields
      row = parse(fields, location, number)
    except rows.Dropped as problem:
      report.drop(problem.reason, f'{location}:{number}', problem.message)
    except rows.Refused as problem:
      if on_error == 'raise':
        raise rows.DataError(f'{location}:{number}', problem.reason, problem.message) from None
      report.drop(problem.reason, f'{location}:{number}', problem.message)
    else:
      yield row
  if empty:
    raise rows.DataError(f'{location}:1', 'empty_file', 'the file is empty; it must have at least one row')


def _check_exists(location: str) -> None:
  """Refuses a prefix that is no scheme, unless it is part of an existing path: it may be a misspelt form."""
  scheme, colon, _ = location.partition(':')
  if colon and scheme not in readers.SCHEMES and not os.path.exists(location):
    raise ValueError(
      f'{location}: no such file, and {values.quote(scheme)} is neither a form ({", ".join(FORMS)}) nor a scheme to '
      f'read from ({", ".join(readers.SCHEMES)})'
    )


class _Parser:
  """Turns the fields of a row into an Example."""

  def __init__(self, form: Form, ignored: frozenset[str], uniform: '_Uniform'):
    self._form = form
    self._ignored = ignored
    self._uniform = uniform
    self._left_out = ignored.union(form.unused)
    self._used = frozenset(form.columns) - ignored

  def __call__(self, fields: dict[str, Any], location: str, number: int) -> rows.Example:
    if not fields.keys() <= self._used:
      values.known(fields, self._form.columns, self._left_out)
      fields = {name: value for name, value in fields.items() if name not in self._left_out}
    example = self._form.parse(fields, self._ignored)
    self._uniform.check(example)
    return example._replace(path=location, line=number)


class _Uniform:
  """Checks what must be the same in all rows of a dataset: the number of responses, and which columns they have."""

  def __init__(self):
    self._first: dict[str, Any] = {}

  def check(self, example: rows.Example) -> None:
    """Raises Refused if an example differs from the first one."""
    count = len(example.responses)
    if self._first.setdefault('responses', count) != count:
      raise rows.Refused(
        'mixed_responses',
        f"field 'responses': this row has {count}, earlier rows have {self._first['responses']}; every row of a "
        'dataset needs the same number of responses',
      )
    kinds = {name: 'missing' if getattr(example, name) is None else 'present' for name in rows.PER_RESPONSE}
    if example.behaviour_token_logp is not None:
      kinds['behaviour_logp'] = 'given per token'
    for name, kind in kinds.items():
      if self._first.setdefault(name, kind) != kind:
        raise rows.Refused(
          f'mixed_{name}',
          f"field '{name}': {kind} in this row but {self._first[name]} in earlier rows; make all rows alike",
        )

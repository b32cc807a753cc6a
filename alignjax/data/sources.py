r"""Preference data from files and elsewhere, checked field by field while it streams.

One expression says what is read: `[form:]location`. The form says which columns a row has and what they mean
(`forms.FORMS`); without one it is `preference`. The location is a file of a kind that `readers.ENDINGS` has, or starts
with one of `readers.SCHEMES`:

  pairs.jsonl    hh:train.jsonl.gz    ultrafeedback_pair:data.parquet    unpaired:x.csv    hh:hf:Anthropic/hh-rlhf:train

A path that itself starts with the name of a form and a colon is written ./hh:x.jsonl, or given as a `pathlib.Path`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import os
from typing import Any, NamedTuple

from alignjax.data import forms, readers, rows, values
from alignjax.data import report as report_lib

# What callers meet.
Message = rows.Message
Prompt = rows.Prompt
Pair = rows.Pair
DataError = rows.DataError
Refused = rows.Refused
Dropped = rows.Dropped

Source = str | os.PathLike


class Expression(NamedTuple):
  """What is read, taken apart."""

  form: str
  location: str


def parse_expression(source: Source) -> Expression:
  """Takes `[form:]location` apart; what comes before a colon and is no form belongs to the location."""
  if isinstance(source, str):
    form, colon, location = source.partition(':')
    if colon and form in forms.FORMS:
      return Expression(form, location)
  return Expression(forms.DEFAULT, os.fspath(source))


def check_policy(on_error: str) -> None:
  """Raises ValueError unless `on_error` is 'raise' or 'skip'."""
  if on_error not in ('raise', 'skip'):
    raise ValueError(
      f"on_error={on_error!r}: must be 'raise' (stop at the first bad row) or 'skip' (count it and go on)"
    )


def read_pairs(
  sources: Source | Iterable[Source],
  report: report_lib.DropReport,
  *,
  on_error: str = 'raise',
  ignore_fields: Iterable[str] = (),
) -> Iterator[rows.Pair]:
  """Yields the pairs of one data set in order, in linear time and constant memory.

  Args:
    sources: an expression `[form:]location`, or several that together are the data set.
    report: counts the rows as they are read; rows that have nothing to teach, such as pairs whose two responses are the
      same text, are dropped and counted.
    on_error: 'raise' stops at the first malformed row; 'skip' counts malformed rows by reason.
    ignore_fields: fields of a row, or of an object in it, that are not used. Any other unknown field is refused.

  Raises:
    DataError: a malformed row; a source without rows, or one that is damaged (these two under either policy).
    ValueError: no such form, or no reader of such a location.
  """
  check_policy(on_error)
  ignored, uniform = frozenset(ignore_fields), _Uniform()
  for source in [sources] if isinstance(sources, Source) else sources:
    form, location = parse_expression(source)
    _check_exists(location)
    parser = _PairParser(forms.FORMS[form], ignored, uniform)
    yield from _read(location, readers.open_rows(location), parser, report, on_error)


def parse_pairs(
  fields: Iterable[Mapping[str, Any]], report: report_lib.DropReport, *, form: str = forms.DEFAULT
) -> Iterator[rows.Pair]:
  """Yields the pairs of rows in memory, with the same checks as `read_pairs`.

  Args:
    fields: the rows: fields by name.
    report: as for `read_pairs`.
    form: the form of the rows.

  Raises:
    DataError: for a malformed row, named '<memory>:number', or no rows.
  """
  parser = _PairParser(forms.FORMS[form], frozenset(), _Uniform())
  numbered = ((number, dict(row)) for number, row in enumerate(fields, start=1))
  yield from _read('<memory>', numbered, parser, report, 'raise')


def read_rows[Row](
  paths: Source | Iterable[Source],
  parse: Callable[[dict[str, Any], str, int], Row],
  report: report_lib.DropReport,
  *,
  on_error: str = 'raise',
) -> Iterator[Row]:
  """Yields `parse(fields, location, number)` for each row; `parse` raises `Refused` or `Dropped` (see `read_pairs`)."""
  check_policy(on_error)
  for path in [paths] if isinstance(paths, Source) else paths:
    yield from _read(os.fspath(path), readers.open_rows(os.fspath(path)), parse, report, on_error)


def _read[Row](
  location: str,
  numbered: Iterable[tuple[int, dict[str, Any] | rows.Refused]],
  parse: Callable[[dict[str, Any], str, int], Row],
  report: report_lib.DropReport,
  on_error: str,
) -> Iterator[Row]:
  empty = True
  for number, fields in numbered:
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
    raise rows.DataError(f'{location}:1', 'empty_file', 'the file is empty; give one that has rows')


def _check_exists(location: str) -> None:
  """What cannot be a file may have been meant to name a form."""
  scheme, colon, _ = location.partition(':')
  if colon and scheme not in readers.SCHEMES and not os.path.exists(location):
    raise ValueError(
      f'{location}: no such file, and {values.quote(scheme)} is neither a form of rows ({", ".join(forms.FORMS)}) nor '
      f'a place to read from ({", ".join(readers.SCHEMES)})'
    )


class _PairParser:
  """Turns the fields of a row into a Pair."""

  def __init__(self, form: forms.Form, ignored: frozenset[str], uniform: '_Uniform'):
    self._form = form
    self._ignored = ignored
    self._uniform = uniform
    self._left_out = ignored.union(form.unused)
    self._used = frozenset(form.columns) - ignored

  def __call__(self, fields: dict[str, Any], location: str, number: int) -> rows.Pair:
    if not fields.keys() <= self._used:
      values.known(fields, self._form.columns, self._left_out)
      fields = {name: value for name, value in fields.items() if name not in self._left_out}
    pair = self._form.parse(fields, self._ignored)
    self._uniform.check(pair)
    return pair._replace(path=location, line=number)


class _Uniform:
  """Remembers what rows have that all of a data set have, or none: N responses, and one number for each of them."""

  def __init__(self):
    self._first: dict[str, Any] = {}

  def check(self, pair: rows.Pair) -> None:
    """Raises Refused for a pair that differs from the first."""
    count = len(pair.responses)
    if self._first.setdefault('responses', count) != count:
      raise rows.Refused(
        'mixed_responses',
        f"field 'responses': this row has {count} and earlier rows have {self._first['responses']}; every row of a "
        'data set needs the same number of responses',
      )
    for name in rows.PER_RESPONSE:
      present = getattr(pair, name) is not None
      if self._first.setdefault(name, present) != present:
        seen = 'has it but earlier rows do not' if present else 'is missing but earlier rows have it'
        raise rows.Refused(f'mixed_{name}', f"field '{name}': this row's {seen}; give it in every row, or in none")

"""OpenAI's comparisons of summaries of Reddit posts, from Learning to summarize from human feedback."""

from collections.abc import Iterable, Iterator
import pathlib
from typing import Any

from alignjax.data import forms, rows, sources, values
from alignjax.data import report as report_lib
from alignjax.data.builders import base


class TldrPreferences(base.PreferenceBuilder):
  """Reddit posts, and two summaries of each, of which a person chose one.

  Every file has rows of several splits; those of another one are counted as `another_split`.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download batch3.json to batch20.json and batch22.json of the comparisons of
  https://github.com/openai/summarize-from-feedback into --manual_dir, under names that end with .jsonl, since each of
  their lines is an object.
  """
  splits = ('train', 'valid1', 'valid2')
  form = 'tldr'

  def patterns(self, split: str) -> tuple[str, ...]:
    del split  # stands in the rows
    return ('batch*.jsonl',)

  def pairs(self, files: Iterable[pathlib.Path], split: str, report: report_lib.DropReport) -> Iterator[rows.Pair]:
    form = forms.FORMS[self.form]

    def parse(fields: dict[str, Any], location: str, number: int) -> rows.Pair:
      if fields.get('split') not in self.splits:
        raise rows.Refused('wrong_split', f"field 'split': must be one of {', '.join(self.splits)}")
      if fields['split'] != split:
        raise rows.Dropped('another_split', f'belongs to {fields["split"]}')
      values.known(fields, form.columns, form.unused)
      return form.parse(fields, ())._replace(path=location, line=number)

    return sources.read_rows(files, parse, report, on_error=self.on_error)

"""OpenAI's comparisons of summaries of Reddit posts, from Learning to summarize from human feedback."""

from collections.abc import Iterable, Iterator
import pathlib
from typing import Any

from alignjax.data.builders import base
from alignjax.data.reading import drops, rows, sources, values


class TldrPreferences(base.PreferenceBuilder):
  """Reddit posts with two summaries each, of which a person chose one.

  Every file has rows of several splits. Rows of other splits are counted as `another_split`.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download batch3.json to batch20.json and batch22.json of the comparisons of
  https://github.com/openai/summarize-from-feedback into --manual_dir, and rename them to end with .jsonl, because each
  line is an object.
  """
  splits = ('train', 'valid1', 'valid2')
  form = 'tldr'

  def patterns(self, split: str) -> tuple[str, ...]:
    del split  # the rows name their split
    return ('batch*.jsonl',)

  def pairs(self, files: Iterable[pathlib.Path], split: str, report: drops.DropReport) -> Iterator[rows.Example]:
    form = sources.FORMS[self.form]

    def parse(fields: dict[str, Any], location: str, number: int) -> rows.Example:
      if fields.get('split') not in self.splits:
        raise rows.Refused('wrong_split', f"field 'split': must be one of {', '.join(self.splits)}")
      if fields['split'] != split:
        raise rows.Dropped('another_split', f'belongs to {fields["split"]}')
      values.known(fields, form.columns, form.unused)
      return form.parse(fields, ())._replace(path=location, line=number)

    return sources.read_rows(files, parse, report, on_error=self.on_error)

"""OpenAI's comparisons of summaries of Reddit posts, from Learning to summarize from human feedback."""

from collections.abc import Iterable
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from alignjax.data import sources
from alignjax.data.builders import base


class TldrPreferences(base.PreferenceBuilder):
  """A Reddit post and two summaries of it, the one that a person chose first.

  The prompt is that of the paper: 'SUBREDDIT: r/...', 'TITLE: ...', 'POST: ...' and 'TL;DR:', blank lines between them;
  a summary follows it after one space, or after the white space that it brings. Comparisons of summaries of news are in
  the same files: they are dropped, and counted as `not_a_post`.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download batch3.json to batch20.json and batch22.json of the comparisons of
  https://github.com/openai/summarize-from-feedback into --manual_dir. What is train, valid1 or valid2 stands in each
  row.
  """
  HOMEPAGE = 'https://github.com/openai/summarize-from-feedback'
  FILES: ClassVar = dict.fromkeys(('train', 'valid1', 'valid2'), ('**/batch*.json',))

  def features(self) -> dict[str, tfds.features.FeatureConnector]:
    return {'prompt': base.text(), 'chosen': base.text(), 'rejected': base.text()}

  def rows(self, fields: dict[str, Any], split: str) -> Iterable[base.Row] | None:
    if base.field(fields, 'split', str) not in self.FILES:
      raise sources.Refused('wrong_type', f"field 'split': must be one of {', '.join(self.FILES)}")
    if fields['split'] != split:
      return None
    info, summaries = base.field(fields, 'info', dict), base.field(fields, 'summaries', list)
    if info.get('post') is None:
      raise sources.Dropped('not_a_post', 'a comparison of summaries of another kind of text')
    if len(summaries) != 2 or fields.get('choice') not in (0, 1):
      raise sources.Refused('wrong_type', "fields 'summaries' and 'choice': must be two summaries, and 0 or 1")
    subreddit, title, post = (base.field(info, name, str) for name in ('subreddit', 'title', 'post'))
    prompt = f'SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:'
    texts = [base.field(summary, 'text', str) for summary in summaries]
    chosen, rejected = (text if text[:1].isspace() else f' {text}' for text in texts[:: -1 if fields['choice'] else 1])
    return [{'prompt': prompt, 'chosen': chosen, 'rejected': rejected}]

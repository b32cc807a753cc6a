"""Examines a tokenised dataset. Sound data gives notes at most.

A finding reports how many examples it concerns and where the first one is. The shares above which it becomes a warning
or an error are in `shares`, `tokens` and `preferences`.
"""

import itertools

from alignjax.data.tokens import dataset, tokenization
from alignjax.doctor import findings, preferences, tokens


def examine(
  data: dataset.TokenDataset,
  tokenizer: tokenization.Tokenizer,
  *,
  vocab_size: int,
  max_positions: int | None = None,
) -> list[findings.Finding]:
  """Examines a dataset, and the report of the rows that were dropped from it.

  With more than two responses, contradictions and lengths are not examined.

  Args:
    data: the dataset as training will see it. With one response per prompt, labels mark desirable and undesirable
      responses. `declarations.relevant` drops findings about labels that the objective does not read.
    tokenizer: the tokenizer that produced the data.
    vocab_size: rows of the model's embedding.
    max_positions: tokens of the longest sequence that the model supports; None for no limit.

  Returns:
    Findings, in the order of the checks; `findings.worst_first` sorts them.
  """
  names = preferences.identify(data)[0]
  found = (
    tokens.outside_vocabulary(data, vocab_size),
    () if max_positions is None else tokens.beyond_positions(data, max_positions),
    tokens.missing_bos(data, tokenizer),
    tokens.double_bos(data, tokenizer),
    tokens.untrained_end(data, tokenizer),
    tokens.end_token_inside(data, tokenizer),
    tokens.unused_template(data, tokenizer),
    tokens.report_shares(data),
    preferences.identical_responses(data, names),
    preferences.duplicates(data, names),
    preferences.contradictions(data, names),
    preferences.dominating_prompt(data, names),
    preferences.weights(data),
    preferences.labels(data),
    preferences.scores(data),
    preferences.length_bias(data),
  )
  return list(itertools.chain.from_iterable(found))


def examine_split(train: dataset.TokenDataset, evaluation: dataset.TokenDataset) -> list[findings.Finding]:
  """Looks for evaluation examples, and for their prompts, among the training examples.

  Neither is an error: training is not affected, but the evaluation means less.
  """
  return list(preferences.shared(train, evaluation))

"""What is wrong with a tokenizer and with preference data, said before training starts.

Sound data get notes at most. A finding about pairs says how many there are, and where the first one stands; the share
above which it is a warning, or an error, is a constant in `checks`, `token_checks` or `preference_checks`.
"""

from collections.abc import Iterator
import itertools
import json

from alignjax.data import findings, preference_checks, token_checks, tokenization
from alignjax.data import pairs as pairs_lib

UNUSED_ROWS = 0.1  # of an embedding: more than padding explains


def examine_tokenizer(tokenizer: tokenization.Tokenizer, *, vocab_size: int) -> list[findings.Finding]:
  """Examines a tokenizer with its chat template and generation settings.

  Args:
    tokenizer: of the model.
    vocab_size: rows of the model's embedding.

  Returns:
    Findings, in the order of the checks; `findings.worst_first` sorts them.
  """
  found = (
    _special_ids(tokenizer, vocab_size),
    _embedding_rows(tokenizer, vocab_size),
    _template_bos(tokenizer),
    _template_end(tokenizer),
    _generation_end(tokenizer),
    _pad_is_end(tokenizer),
    _unreachable_tokens(tokenizer),
  )
  return list(itertools.chain.from_iterable(found))


def examine_pairs(
  pairs: pairs_lib.TokenizedPairs,
  tokenizer: tokenization.Tokenizer,
  *,
  vocab_size: int,
  max_positions: int | None = None,
) -> list[findings.Finding]:
  """Examines tokenised pairs, and the report of what became of the rows that are not among them.

  Of more than two responses, neither contradictions nor lengths are examined.

  Args:
    pairs: as training will see them. With one response each they are desirable or undesirable, by label: for
      training that has no use for labels, `one_class` is of no concern.
    tokenizer: the one that made them.
    vocab_size: rows of the model's embedding.
    max_positions: tokens of the longest sequence that the model knows; None is no limit.

  Returns:
    Findings, in the order of the checks; `findings.worst_first` sorts them.
  """
  names = preference_checks.identify(pairs)[0]
  found = (
    token_checks.outside_vocabulary(pairs, vocab_size),
    () if max_positions is None else token_checks.beyond_positions(pairs, max_positions),
    token_checks.missing_bos(pairs, tokenizer),
    token_checks.double_bos(pairs, tokenizer),
    token_checks.untrained_end(pairs, tokenizer),
    token_checks.end_token_inside(pairs, tokenizer),
    token_checks.report_shares(pairs),
    preference_checks.identical_responses(pairs, names),
    preference_checks.duplicate_pairs(pairs, names),
    preference_checks.contradictory_pairs(pairs, names),
    preference_checks.dominating_prompt(pairs, names),
    preference_checks.weights(pairs),
    preference_checks.labels(pairs),
    preference_checks.length_bias(pairs),
  )
  return list(itertools.chain.from_iterable(found))


def examine_split(train: pairs_lib.TokenizedPairs, evaluation: pairs_lib.TokenizedPairs) -> list[findings.Finding]:
  """Looks for evaluation pairs, and for their prompts, among the training pairs.

  Neither is an error: training goes as it would without; it is the evaluation that says less.
  """
  return list(preference_checks.shared_pairs(train, evaluation))


def _special_ids(tokenizer: tokenization.Tokenizer, vocab_size: int) -> Iterator[findings.Finding]:
  """The embedding must have a row, and the tokenizer a token, for each id that starts or ends a text."""
  needed = {*tokenizer.prefix, tokenizer.eos_id, tokenizer.turn_end_id}
  for token in sorted({*tokenizer.prefix, *tokenizer.end_ids}):
    if token >= vocab_size or tokenizer.backend.id_to_token(token) is None:
      yield findings.Finding(
        'unknown_special_id',
        findings.ERROR if token in needed else findings.WARNING,  # a further end token may never come
        f'special token id {token} is not among the {vocab_size} rows of the embedding, or no token has it',
        'Correct generation_config.json, or use the tokenizer that belongs to the model',
      )


def _embedding_rows(tokenizer: tokenization.Tokenizer, vocab_size: int) -> Iterator[findings.Finding]:
  unused = vocab_size - tokenizer.vocab_size
  seen = f'the tokenizer has ids up to {tokenizer.vocab_size - 1}, the embedding has {vocab_size} rows'
  if unused < 0:
    yield findings.Finding(
      'embedding_too_small',
      findings.WARNING,  # texts may not have those tokens; `examine_pairs` knows
      seen,
      'Use the tokenizer that belongs to the model, or give the new tokens rows',
    )
  elif unused:
    severity = findings.WARNING if unused > UNUSED_ROWS * vocab_size else findings.NOTE
    yield findings.Finding(
      'unused_rows', severity, seen, 'A few rows are padding; for many, see whether the tokenizer fits'
    )


def _template_bos(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  ids = None if tokenizer.template is None else token_checks.encode(tokenizer, token_checks.TURN)
  if ids and tokenizer.prefix and tokenizer.bos_id not in tokenizer.end_ids:
    count = ids.count(tokenizer.bos_id)
    if count != 1:
      yield findings.Finding(
        'template_bos',
        findings.ERROR,
        f'a chat of one question has {token_checks.spell(tokenizer, [tokenizer.bos_id])} {count} times',
        'Let the chat template write it once, as its very first text, or not at all',
      )


def _template_end(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  """How the chat template closes an assistant's turn."""
  if tokenizer.template is None:
    return
  if tokenizer.turn_end_id is not None:
    if tokenizer.turn_end_id != tokenizer.eos_id:
      turn_end, end = (token_checks.spell(tokenizer, [token]) for token in (tokenizer.turn_end_id, tokenizer.eos_id))
      seen = f'the chat template ends turns with {turn_end}, eos_token is {end}'
      yield findings.Finding(
        'turn_end_is_not_eos', findings.NOTE, seen, 'Sampling stops at both; other programs must be told to'
      )
    return
  try:
    ids = tokenizer.encode_pair(token_checks.TURN, ['answer']).responses[0]
  except tokenization.EncodingError:
    return
  closing = tokenizer.decode(ids[:-1]).partition('answer')[2].strip()
  eos = token_checks.spell(tokenizer, [tokenizer.eos_id])
  if closing:
    yield findings.Finding(
      'turn_end_is_text',
      findings.WARNING,
      f'the chat template closes turns with {closing!r}, which is no special token, so {eos} follows it',
      'Add it to the special tokens, with a row of the embedding, or take a template of tokens that the model has',
    )
  else:
    yield findings.Finding(
      'template_without_end',
      findings.NOTE,
      f'the chat template closes no turn, so {eos} follows a response',
      'See that the model was trained so before, or take a template that ends turns with a token',
    )


def _generation_end(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  """Whether programs that read generation_config.json stop where training ends a response."""
  end = tokenizer.eos_id if tokenizer.turn_end_id is None else tokenizer.turn_end_id
  if tokenizer.generation_end_ids and end not in tokenizer.generation_end_ids:
    stops = token_checks.spell(tokenizer, tokenizer.generation_end_ids)
    yield findings.Finding(
      'generation_goes_on',
      findings.WARNING,
      f'responses end with {token_checks.spell(tokenizer, [end])}, but generation_config.json stops at {stops}',
      'Add it to eos_token_id of generation_config.json, or other programs will not stop there',
    )


def _pad_is_end(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  if tokenizer.pad_id in tokenizer.end_ids:
    pad = token_checks.spell(tokenizer, [tokenizer.pad_id])
    yield findings.Finding(
      'pad_is_end', findings.NOTE, f'{pad} pads and ends', 'Harmless: padding is told by lengths, so ends are trained'
    )


def _unreachable_tokens(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  """Tokens that no text becomes: pieces of a byte-pair vocabulary that no merge makes."""
  model = json.loads(tokenizer.backend.to_str())['model']
  if model['type'] != 'BPE' or model.get('ignore_merges'):
    return
  if model.get('continuing_subword_prefix') or model.get('end_of_word_suffix'):
    return  # these change what a merge makes
  reachable = {''.join(merge.split(' ') if isinstance(merge, str) else merge) for merge in model['merges']}
  reachable |= {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()}
  if model.get('byte_fallback'):
    reachable |= {f'<0x{byte:02X}>' for byte in range(256)}
  lost = [piece for piece in model['vocab'] if len(piece) > 1 and piece not in reachable]
  if lost:
    seen = f'{len(lost):,} of {tokenizer.vocab_size:,} tokens are made by no merge, such as {lost[0]!r}'
    yield findings.Finding(
      'unreachable_tokens', findings.NOTE, seen, 'No text becomes them; see that tokenizer.json is the original'
    )

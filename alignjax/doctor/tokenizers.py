"""Examines a tokenizer with its chat template and generation settings."""

from collections.abc import Iterator
import itertools
import json

from alignjax.data.tokens import chat_template, tokenization
from alignjax.doctor import findings, tokens

SHOWN = 60  # characters of a text that a finding quotes
UNUSED_ROWS = 0.1  # share of an embedding: more than padding explains


def examine(tokenizer: tokenization.Tokenizer, *, vocab_size: int) -> list[findings.Finding]:
  """Examines the tokenizer of a model.

  Args:
    tokenizer: the tokenizer of the model.
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
    _added_bos(tokenizer),
    _template_date(tokenizer),
    _template_place(tokenizer),
    _template_reasoning(tokenizer),
    _unreachable_tokens(tokenizer),
  )
  return list(itertools.chain.from_iterable(found))


def _special_ids(tokenizer: tokenization.Tokenizer, vocab_size: int) -> Iterator[findings.Finding]:
  """Each id that starts or ends a text needs a row of the embedding and a token of the tokenizer."""
  needed = {*tokenizer.prefix, tokenizer.eos_id, tokenizer.turn_end_id}
  for token in sorted({*tokenizer.prefix, *tokenizer.end_ids}):
    if token >= vocab_size or tokenizer.backend.id_to_token(token) is None:
      yield findings.Finding(
        'unknown_special_id',
        findings.ERROR if token in needed else findings.WARNING,  # other end tokens may never occur
        f'special token id {token} is outside the {vocab_size} rows of the embedding, or no token has it',
        'Correct generation_config.json, or use the tokenizer that belongs to the model',
      )


def _embedding_rows(tokenizer: tokenization.Tokenizer, vocab_size: int) -> Iterator[findings.Finding]:
  unused = vocab_size - tokenizer.vocab_size
  seen = f'the tokenizer has ids up to {tokenizer.vocab_size - 1}, the embedding has {vocab_size} rows'
  if unused < 0:
    yield findings.Finding(
      'embedding_too_small',
      findings.WARNING,  # the data may not use those tokens; `examples.examine` checks it
      seen,
      'Use the tokenizer that belongs to the model, or add rows for the new tokens',
    )
  elif unused:
    severity = findings.WARNING if unused > UNUSED_ROWS * vocab_size else findings.NOTE
    yield findings.Finding(
      'unused_rows',
      severity,
      seen,
      'A few rows are padding; if there are many, check that the tokenizer fits the model',
    )


def _template_bos(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  ids = None if tokenizer.template is None else tokens.encode(tokenizer, tokens.TURN)
  if ids and tokenizer.prefix and tokenizer.bos_id not in tokenizer.end_ids:
    count = ids.count(tokenizer.bos_id)
    if count != 1:
      yield findings.Finding(
        'template_bos',
        findings.ERROR,
        f'a chat with one question has {tokens.spell(tokenizer, [tokenizer.bos_id])} {count} times',
        'The chat template must write it once, at the very start, or not at all',
      )


def _template_end(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  """How the chat template ends an assistant turn."""
  if tokenizer.template is None:
    return
  if tokenizer.turn_end_id is not None:
    if tokenizer.turn_end_id != tokenizer.eos_id:
      turn_end, end = (tokens.spell(tokenizer, [token]) for token in (tokenizer.turn_end_id, tokenizer.eos_id))
      seen = f'the chat template ends turns with {turn_end}, eos_token is {end}'
      advice = 'Sampling stops at both here; configure other programs to do the same'
      yield findings.Finding('turn_end_is_not_eos', findings.NOTE, seen, advice)
    return
  try:
    ids = tokenizer.encode(tokens.TURN, ['answer']).responses[0]
  except tokenization.EncodingError:
    return
  closing = tokenizer.decode(ids[:-1]).partition('answer')[2].strip()
  eos = tokens.spell(tokenizer, [tokenizer.eos_id])
  if closing:
    yield findings.Finding(
      'turn_end_is_text',
      findings.WARNING,
      f'the chat template ends turns with {closing!r}, which is not a special token, so {eos} is appended',
      'Add it to the special tokens, with a row in the embedding, or use a template with tokens that the model has',
    )
  else:
    yield findings.Finding(
      'template_without_end',
      findings.NOTE,
      f'the chat template does not mark the end of turns, so {eos} is appended to responses',
      'Check that the model was trained this way, or use a template that ends turns with a token',
    )


def _generation_end(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  """Whether programs that read generation_config.json stop at the token that ends responses in training."""
  end = tokenizer.eos_id if tokenizer.turn_end_id is None else tokenizer.turn_end_id
  if tokenizer.generation_end_ids and end not in tokenizer.generation_end_ids:
    stops = tokens.spell(tokenizer, tokenizer.generation_end_ids)
    yield findings.Finding(
      'generation_goes_on',
      findings.WARNING,
      f'responses end with {tokens.spell(tokenizer, [end])}, but generation_config.json stops at {stops}',
      'Add it to eos_token_id in generation_config.json, or other programs will not stop there',
    )


def _pad_is_end(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  if tokenizer.pad_id in tokenizer.end_ids:
    pad = tokens.spell(tokenizer, [tokenizer.pad_id])
    yield findings.Finding(
      'pad_is_end',
      findings.NOTE,
      f'{pad} is both the pad token and an end token',
      'Harmless: padding is masked by length, so end tokens are trained',
    )


def _added_bos(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  """Whether add_bos_token and tokenizer.json agree on what starts a text."""
  encoding = tokenizer.backend.encode('a', add_special_tokens=True)
  own = tuple(encoding.ids[: encoding.special_tokens_mask.index(0)])
  if own != tokenizer.prefix:
    here = f'put {tokens.spell(tokenizer, tokenizer.prefix)} before' if tokenizer.prefix else 'put no BOS before'
    there = f'puts {tokens.spell(tokenizer, own)} there' if own else 'puts nothing there'
    yield findings.Finding(
      'added_bos',
      findings.NOTE,  # some tokenizer classes follow the flag, others the file
      f'add_bos_token of tokenizer_config.json makes alignjax {here} every text, but tokenizer.json {there}',
      'Some programs follow only one of the two: correct the wrong file, so that all of them give the model the same '
      'tokens',
    )


def _template_date(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  if tokenizer.template is not None and tokenizer.template.date is not None:
    yield findings.Finding(
      'template_date',
      findings.NOTE,
      f'the chat template can print the date, which is {tokenizer.template.date:%Y-%m-%d} in this run',
      'A run keeps the date of its first start; other runs and programs render other prompts on other days',
    )


def _template_place(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  """Whether an answer is rendered in the same way when the conversation goes on."""
  answered = [*tokens.TURN, {'role': 'assistant', 'content': 'answer'}]
  try:
    first, later = (
      tokenizer.template.render(messages, add_generation_prompt=False) if tokenizer.template else ''
      for messages in (answered, [*answered, *tokens.TURN])
    )
  except chat_template.TemplateError:
    return
  if later.startswith(first.rstrip()):
    return
  common = next((i for i, (a, b) in enumerate(zip(first, later, strict=False)) if a != b), 0)
  yield findings.Finding(
    'template_place',
    findings.NOTE,
    f'the chat template writes {first[common:][:SHOWN]!r} in the last turn, but {later[common:][:SHOWN]!r} for the '
    'same turn when the conversation goes on',
    'An answer is trained as the last turn. In later turns the model sees another text of it',
  )


def _template_reasoning(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  """Whether the reasoning of an answer is trained."""
  if tokenizer.template is None:
    return
  answer = '<think>\nreasoning\n</think>\n\nanswer'
  try:
    tokenizer.encode(tokens.TURN, [answer])
  except tokenization.EncodingError as error:
    if error.reason == 'template_changes_response':
      yield findings.Finding(
        'template_drops_reasoning',
        findings.WARNING,
        f'of the answer {answer!r}, the chat template leaves out what is before </think>',
        'Rows with such reasoning are errors, because it would not be trained: use a template that keeps it, or '
        'reasoning_content if the template shows that',
      )


def _unreachable_tokens(tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  """Tokens that no text can produce: entries of a byte-pair vocabulary that no merge creates."""
  model = json.loads(tokenizer.backend.to_str())['model']
  if model['type'] != 'BPE' or model.get('ignore_merges'):
    return
  if model.get('continuing_subword_prefix') or model.get('end_of_word_suffix'):
    return  # these change what a merge produces
  reachable = {''.join(merge.split(' ') if isinstance(merge, str) else merge) for merge in model['merges']}
  reachable |= {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()}
  if model.get('byte_fallback'):
    reachable |= {f'<0x{byte:02X}>' for byte in range(256)}
  lost = [piece for piece in model['vocab'] if len(piece) > 1 and piece not in reachable]
  if lost:
    yield findings.Finding(
      'unreachable_tokens',
      findings.NOTE,
      f'{len(lost):,} of {tokenizer.vocab_size:,} tokens are not created by any merge, such as {lost[0]!r}',
      'No text is tokenised to them; check that tokenizer.json is the original',
    )

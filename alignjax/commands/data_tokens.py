"""Prints one example token by token: which tokens are given, which are trained, and where it ends."""

from collections.abc import Iterator, Sequence

import numpy as np
from rich import console as rich_console
from rich import text as rich_text

from alignjax.data.tokens import dataset, tokenization

SHOWN = 400  # tokens per text; the middle of a longer text is left out
GIVEN, TRAINED, END, BOS = KINDS = ('given, not trained', 'trained', 'end token, trained', 'BOS')
STYLES = {GIVEN: 'cyan', TRAINED: 'green', END: 'bold white on red', BOS: 'bold black on yellow'}
MARKS = {GIVEN: '{}', TRAINED: '[{}]', END: '<{}>', BOS: '^{}'}  # used without colours
VISIBLE = {' ': '·', '\n': '↵', '\t': '→'}


def names(responses: int) -> list[str]:
  """The names of the responses."""
  return ['chosen', 'rejected'] if responses == 2 else [f'response {i + 1}' for i in range(responses)]


def of_row(tokenized: dataset.TokenDataset, row: int) -> int:
  """The index of the example from a row of the first file, counted from 1; 0 for row 0.

  Raises:
    ValueError: no example is from this row.
  """
  if row == 0:
    return 0
  found = np.flatnonzero((tokenized.line == row) & (tokenized.path_index == tokenized.path_index[0]))
  if not found.size:
    path = tokenized.paths[tokenized.path_index[0]]
    raise ValueError(f'--row={row}: no example is from row {row} of {path}: it was dropped, or the file is shorter')
  return int(found[0])


def show(
  tokenized: dataset.TokenDataset, index: int, tokenizer: tokenization.Tokenizer, console: rich_console.Console
) -> None:
  """Prints an example: each token with its id, in the colour of its kind or with its mark."""
  example = tokenized[index]
  facts = [f'label {example.label:g}', f'weight {example.weight:g}']
  facts += [f'{name} {", ".join(f"{v:g}" for v in column[index])}' for name, column in tokenized.per_response.items()]
  which = 'first example' if index == 0 else 'example'
  console.print(rich_text.Text(f'{which}, {tokenized.origin(index)}: {", ".join(facts)}'))  # a string may hold :codes:
  console.print(
    rich_text.Text('  ').join([rich_text.Text('text/id:'), *(_marked(kind, kind, console) for kind in KINDS)])
  )
  sections = [('prompt', example.prompt, GIVEN)]
  sections += [(name, ids, TRAINED) for name, ids in zip(names(tokenized.responses), example.responses, strict=True)]
  for name, ids, kind in sections:
    cut = '' if kind == GIVEN or ids[-1] in tokenizer.end_ids else ', cut: no end token'
    console.print(rich_text.Text(f'\n{name}, {len(ids)} tokens{cut}', style='bold'))
    for line in _lines([int(i) for i in ids], kind, tokenizer, console):
      console.print(line)


def _lines(
  ids: Sequence[int], kind: str, tokenizer: tokenization.Tokenizer, console: rich_console.Console
) -> Iterator[rich_text.Text]:
  """Yields the tokens of one text, with a line break after each token that ends a line."""
  kinds = [END if kind == TRAINED and i in tokenizer.end_ids else kind for i in ids]
  for place, i in enumerate(ids):
    if kind != GIVEN or i != tokenizer.bos_id:
      break
    kinds[place] = BOS
  tokens = list(zip(spell(ids, tokenizer), ids, kinds, strict=True))
  line: list[rich_text.Text] = []
  for place, (text, i, each) in enumerate(tokens):
    if len(ids) > SHOWN and SHOWN // 2 <= place < len(ids) - SHOWN // 2:
      if place == SHOWN // 2:
        line.append(rich_text.Text(f'... {len(ids) - SHOWN} tokens ...'))
      continue
    line.append(_marked(f'{text}/{i}', each, console))
    if text.endswith(VISIBLE['\n']):
      yield rich_text.Text(' ').join(line)
      line = []
  if line:
    yield rich_text.Text(' ').join(line)


def spell(ids: Sequence[int], tokenizer: tokenization.Tokenizer) -> list[str]:
  """Decodes each token alone, and makes spaces and line breaks visible.

  A token that holds only part of a character is spelt as in the tokenizer's vocabulary.
  """
  # Some decoders drop a space at the start of a text, so each token is decoded after another one.
  anchor = tokenizer.backend.encode('a', add_special_tokens=False).ids[-1:]
  start, *texts = tokenizer.backend.decode_batch([anchor, *([*anchor, i] for i in ids)], skip_special_tokens=False)
  alone = [text[len(start) :] for text in texts]
  whole = [
    tokenizer.backend.id_to_token(i) if not text or '\ufffd' in text else text
    for i, text in zip(ids, alone, strict=True)
  ]
  return [''.join(map(_visible, text)) for text in whole]


def _visible(character: str) -> str:
  """Makes a character visible, so that data cannot send control sequences to the terminal."""
  return VISIBLE.get(character) or (character if character.isprintable() else ascii(character)[1:-1])


def _marked(text: str, kind: str, console: rich_console.Console) -> rich_text.Text:
  if console.color_system is None or console.no_color:
    return rich_text.Text(MARKS[kind].format(text))
  return rich_text.Text(text, style=STYLES[kind])

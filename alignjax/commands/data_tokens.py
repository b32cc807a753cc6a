"""One example, token by token, as the model sees it: what is given, what is trained, and where it ends."""

from collections.abc import Iterator, Sequence

from rich import console as rich_console
from rich import text as rich_text

from alignjax.data.tokens import dataset, tokenization

SHOWN = 400  # tokens of a text; the middle of a longer one is left out
GIVEN, TRAINED, END, BOS = KINDS = ('given, not trained', 'trained', 'end token, trained', 'BOS')
STYLES = {GIVEN: 'cyan', TRAINED: 'green', END: 'bold white on red', BOS: 'bold black on yellow'}
MARKS = {GIVEN: '{}', TRAINED: '[{}]', END: '<{}>', BOS: '^{}'}  # where there are no colours
VISIBLE = {' ': '·', '\n': '↵', '\t': '→'}


def names(responses: int) -> list[str]:
  """What the responses are called."""
  return ['chosen', 'rejected'] if responses == 2 else [f'response {i + 1}' for i in range(responses)]


def show(tokenized: dataset.TokenDataset, tokenizer: tokenization.Tokenizer, console: rich_console.Console) -> None:
  """Prints the first example: each token with its id, in the colour or with the mark of its kind."""
  example = tokenized[0]
  told = [f'label {example.label:g}', f'weight {example.weight:g}']
  told += [f'{name} {", ".join(f"{v:g}" for v in column[0])}' for name, column in tokenized.per_response.items()]
  console.print(
    rich_text.Text(f'first example, {tokenized.origin(0)}: {", ".join(told)}')
  )  # a string could hold :codes:
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
  """The tokens of one text, a new line after each that ends one."""
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
  """The text of each token alone, with spaces and line ends made visible.

  A token that is not whole characters is spelt as the tokenizer's own file spells it.
  """
  # Some decoders take the space from the start of a text, so each token comes after another one.
  anchor = tokenizer.backend.encode('a', add_special_tokens=False).ids[-1:]
  start, *texts = tokenizer.backend.decode_batch([anchor, *([*anchor, i] for i in ids)], skip_special_tokens=False)
  alone = [text[len(start) :] for text in texts]
  whole = [
    tokenizer.backend.id_to_token(i) if not text or '\ufffd' in text else text
    for i, text in zip(ids, alone, strict=True)
  ]
  return [''.join(map(_visible, text)) for text in whole]


def _visible(character: str) -> str:
  """Also keeps the data from steering the terminal."""
  return VISIBLE.get(character) or (character if character.isprintable() else ascii(character)[1:-1])


def _marked(text: str, kind: str, console: rich_console.Console) -> rich_text.Text:
  if console.color_system is None or console.no_color:
    return rich_text.Text(MARKS[kind].format(text))
  return rich_text.Text(text, style=STYLES[kind])

"""Keeps text that spells a special token apart from the special tokens that a chat template writes.

A user's message may spell '<|im_end|>'. Encoded with its surroundings, it would end the user's turn. So each special
token that a message spells is masked by one private character before the template is rendered. In the result, every
special token comes from the template. Each of these is marked, the original text is restored in place of the masks,
and a second tokenizer, which recognises only marked special tokens, encodes the result.
"""

from collections.abc import Mapping, Sequence
import functools
import json
import re
from typing import Any

import tokenizers

FIRST_MASK = 0x100000  # a private plane of Unicode
OPEN, CLOSE = '\U0010fffc', '\U0010fffd'  # around a special token that the template wrote
PRIVATE = re.compile('[\U00100000-\U0010fffd]')
# Marks of reasoning belong to an answer, so an assistant's message may hold them even if they are special tokens.
REASONING = re.compile(r'[<\[]/?(?:think|thinking|reasoning)[>\]]', re.IGNORECASE)
FOREIGN = (  # control tokens of common chat formats
  '<|im_start|>',
  '<|im_end|>',
  '<|endoftext|>',
  '<|eot_id|>',
  '<|start_header_id|>',
  '<|begin_of_text|>',
  '<|user|>',
  '<|assistant|>',
  '<start_of_turn>',
  '<end_of_turn>',
  '[INST]',
  '[/INST]',
  '<s>',
  '</s>',
)


class Guard:
  """Masks special tokens in messages, and encodes the renderings of masked messages.

  Args:
    backend: the tokenizer of the model.
  """

  def __init__(self, backend: tokenizers.Tokenizer):
    self._backend = backend
    tokens = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    self._ids = {content: tokens[content] for content in sorted(tokens, key=len, reverse=True) if content}
    self._starts = {content[:2] for content in self._ids}
    self._pattern = re.compile('|'.join(map(re.escape, self._ids)) or r'(?!)')
    self._masks = {content: chr(FIRST_MASK + number) for number, content in enumerate(self._ids)}
    self._texts = {ord(mask): content for content, mask in self._masks.items()}
    self._foreign = tuple(content for content in FOREIGN if content not in tokens)

  def special_in(self, value: Any) -> str | None:
    """A special token that a text in a nested value spells; None if there is none."""
    for text in texts_in(value):
      if any(start in text for start in self._starts) and (found := self._pattern.search(text)):
        return found.group()
    return None

  def foreign_in(self, value: Any) -> str | None:
    """A control token of another chat format that a text in a nested value spells."""
    texts = (text for text in texts_in(value) if '<' in text or '[' in text)
    return next((mark for text in texts for mark in self._foreign if mark in text), None)

  def mask(self, value: Any) -> Any:
    """Masks the special tokens that a nested value spells. An assistant's message keeps its marks of reasoning."""
    if isinstance(value, dict) and value.get('role') == 'assistant':
      return {name: self._mask_answer(each) if name == 'content' else self.mask(each) for name, each in value.items()}
    if isinstance(value, dict):
      return {self.mask(name): self.mask(each) for name, each in value.items()}
    if isinstance(value, list):
      return [self.mask(each) for each in value]
    return self._pattern.sub(lambda found: self._masks[found.group()], value) if isinstance(value, str) else value

  def mask_answer(self, text: str) -> str:
    """Masks the special tokens that an assistant's text spells, except marks of reasoning."""
    return self._pattern.sub(
      lambda found: found.group() if REASONING.fullmatch(found.group()) else self._masks[found.group()], text
    )

  def _mask_answer(self, value: Any) -> Any:
    return self.mask_answer(value) if isinstance(value, str) else value

  def is_masked(self, text: str) -> bool:
    """Whether a text has masks, or other private characters that would be taken for masks."""
    return PRIVATE.search(text) is not None

  def spell(self, text: str) -> str:
    """Restores the original text in place of the masks."""
    return text.translate(self._texts)

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of renderings of masked messages.

    Raises:
      ValueError: the tokenizer makes a special token of a text even so.
    """
    marked, counts = [], []
    for text in texts:
      text, count = self._pattern.subn(lambda found: OPEN + found.group() + CLOSE, text)
      marked.append(self.spell(text))
      counts.append(count)
    backend, ids_of = self._shadow
    encoded = [
      [ids_of.get(i, i) for i in encoding.ids]
      for encoding in backend.encode_batch_fast(marked, add_special_tokens=False)
    ]
    special = set(self._ids.values()) - {self._unknown}
    for text, ids, count in zip(texts, encoded, counts, strict=True):
      if sum(i in special for i in ids) > count:
        raise ValueError(f'{self.special_in(self.spell(text))!r} has no tokens except the special token itself')
    return encoded

  @functools.cached_property
  def _unknown(self) -> int | None:
    unknown = getattr(self._backend.model, 'unk_token', None)
    return None if unknown is None else self._backend.token_to_id(unknown)

  @functools.cached_property
  def _shadow(self) -> tuple[tokenizers.Tokenizer, Mapping[int, int]]:
    """A tokenizer whose special tokens are spelt with marks, and the ids that differ from those of the model."""
    content = json.loads(self._backend.to_str())
    names = {name: OPEN + name + CLOSE for name in self._ids}
    for token in content['added_tokens']:
      token['content'] = names.get(token['content'], token['content'])
    model = content['model']
    model['vocab'] = (
      [[names.get(piece, piece), score] for piece, score in model['vocab']]
      if isinstance(model['vocab'], list)
      else {names.get(piece, piece): i for piece, i in model['vocab'].items()}
    )
    if model.get('unk_token') in names:
      model['unk_token'] = names[model['unk_token']]
    content['post_processor'] = None
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    moved = {backend.token_to_id(names[name]): i for name, i in self._ids.items()}
    return backend, {here: there for here, there in moved.items() if here != there}


def texts_in(value: Any) -> list[str]:
  """Every string in a nested value, names of members included."""
  found, stack = [], [value]
  while stack:
    item = stack.pop()
    if isinstance(item, str):
      found.append(item)
    elif isinstance(item, dict):
      stack.extend((*item, *item.values()))
    elif isinstance(item, list | tuple):
      stack.extend(item)
  return found

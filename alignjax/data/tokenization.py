"""The tokenizer and chat template of a Hugging Face folder, and the one way in which text becomes tokens.

A prompt and each of its responses are tokenised JOINTLY, as the model would meet them in running text, and then split.
Where the prompt's own tokens are not a prefix of the joint ones (the tokenizer merged across the boundary), the split
moves back to the last place up to which the prompt alone and every joint text have the same tokens: the merged token
belongs to the response, and what the model is conditioned on in training is a prefix of what it sees when it samples.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import datetime
import json
import os
import pathlib
from typing import Any, NamedTuple

import tokenizers

from alignjax.data import chat_template
from alignjax.data.sources import Prompt


class Encoded(NamedTuple):
  """One prompt and its responses as token ids, before any limit on their lengths."""

  prompt: list[int]
  responses: list[list[int]]  # each ends with an end token
  merged: int  # prompt tokens that went to the responses because the tokenizer merged across the boundary
  end_inside: bool  # a response has an end token before its last token
  end_added: bool  # the chat template closes no turn with an end token, so one was appended


class EncodingError(ValueError):
  """These texts cannot be encoded. `reason` names the kind, as in a drop report."""

  def __init__(self, reason: str, message: str):
    super().__init__(reason, message)
    self.reason = reason

  def __str__(self) -> str:
    return self.args[1]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to token ids and back.

  `prefix` is what the tokenizer puts before any text: (bos_id,), or nothing. Sequences start with it exactly once,
  whether or not a template has already written it.
  """

  backend: tokenizers.Tokenizer
  template: chat_template.ChatTemplate | None
  bos_id: int | None
  eos_id: int
  pad_id: int
  end_ids: frozenset[int]  # a response, and sampling, ends with any of these
  turn_end_id: int | None  # the special token with which the template closes an assistant's turn
  generation_end_ids: frozenset[int]  # what generation_config.json names: other programs stop at these alone
  space_ids: frozenset[int]  # tokens of white space
  prefix: tuple[int, ...]
  vocab_size: int  # largest id + 1

  @classmethod
  def load(cls, folder: str | os.PathLike, now: datetime.datetime | None = None) -> 'Tokenizer':
    """Reads tokenizer.json, tokenizer_config.json, generation_config.json and the chat template of a model's folder.

    Args:
      folder: in Hugging Face layout.
      now: the date that a chat template may print; None is the clock.

    Raises:
      ValueError: a file is missing or unusable.
    """
    folder = pathlib.Path(folder)
    backend = _load_backend(folder / 'tokenizer.json')
    config = _load_json(folder / 'special_tokens_map.json') | _load_json(folder / 'tokenizer_config.json')
    special = _special_tokens(config)
    ids = {name: backend.token_to_id(text) for name, text in special.items()}
    for name in ('bos_token', 'eos_token', 'pad_token'):
      if name in special and ids[name] is None:
        raise ValueError(f'{folder}: {name} {special[name]!r} is not in tokenizer.json; correct tokenizer_config.json')
    end_ids = _generation_end_ids(folder)
    eos_id = ids.get('eos_token', end_ids[0] if end_ids else None)
    if eos_id is None:
      raise ValueError(f'{folder}: no end token; name eos_token in tokenizer_config.json')
    template = _load_template(folder, config, special, now)
    turn_end = None if template is None else _turn_end(backend, template)
    bos_id = ids.get('bos_token')
    vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    return cls(
      backend=backend,
      template=template,
      bos_id=bos_id,
      eos_id=eos_id,
      pad_id=ids.get('pad_token', eos_id),
      end_ids=frozenset({eos_id, *end_ids} | ({turn_end} - {None})),
      turn_end_id=turn_end,
      generation_end_ids=frozenset(end_ids),
      space_ids=_space_ids(backend, vocab_size),
      prefix=_prefix(folder, backend, config, bos_id),
      vocab_size=vocab_size,
    )

  def encode_prompt(self, prompt: Prompt, max_length: int | None = None) -> list[int]:
    """The tokens of a prompt, up to where the response starts; if too long, cut on the left (see `truncate_prompt`)."""
    ids = self._encode([self._prompt_text(prompt)])[0]
    return ids if max_length is None else self.truncate_prompt(ids, max_length)

  def encode_pair(self, prompt: Prompt, responses: Sequence[str]) -> Encoded:
    """Encodes one prompt with its responses. See `encode_pairs`.

    Raises:
      EncodingError: the template refuses the prompt, or no prompt token is left.
    """
    result = next(self.encode_pairs([(prompt, responses)]))
    if isinstance(result, EncodingError):
      raise result
    return result

  def encode_pairs(self, pairs: Iterable[tuple[Prompt, Sequence[str]]]) -> Iterator[Encoded | EncodingError]:
    """Encodes many pairs at once, on all cores; a pair that cannot be encoded yields its error instead.

    Args:
      pairs: prompts with their responses: texts that directly follow a string, or an assistant's answers to messages.
    """
    texts, errors = [], []
    for prompt, responses in pairs:
      try:
        texts.append(self._pair_texts(prompt, responses))
        errors.append(None)
      except EncodingError as error:
        errors.append(error)
    flat = iter(self._encode([text for group in texts for text in group]))
    groups = iter(texts)
    for error in errors:
      if error is None:
        prompt_ids, *joint_ids = [next(flat) for _ in next(groups)]
        yield self._split(prompt_ids, joint_ids)
      else:
        yield error

  def truncate_prompt(self, ids: list[int], max_length: int) -> list[int]:
    """The last `max_length` tokens: the end of a prompt matters most. A BOS in front stays in front."""
    if len(ids) <= max_length:
      return ids
    head = list(self.prefix)
    if not head and ids[0] == self.bos_id:
      head = [self.bos_id]  # written by the chat template
    if max_length <= len(head):
      raise ValueError(f'max_length={max_length}: leaves no room after the {len(head)} tokens that start every prompt')
    tail = ids[len(ids) - max_length + len(head) :]
    return tail if tail[: len(head)] == head else head + tail  # the cut may fall right before a turn that BOS opens

  def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True, continues: bool = False) -> str:
    """The text of token ids.

    Args:
      ids: of a whole text, or of a part.
      skip_special_tokens: leaves out end tokens and their like.
      continues: the ids follow other text, as those of a response do. A tokenizer that puts a space before the first
        word of a text takes it away when it decodes; here that space is part of the text, and stays.
    """
    ids = [int(i) for i in ids]
    before = self.backend.encode('a', add_special_tokens=False).ids if continues else []
    text = self.backend.decode([*before, *ids], skip_special_tokens=skip_special_tokens)
    return text[len(self.backend.decode(before)) :]

  def _prompt_text(self, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else self._render(prompt, add_generation_prompt=True)

  def _render(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
    if self.template is None:
      raise ValueError(
        'the prompt is a list of messages but the model has no chat template; give strings, or add chat_template.jinja'
      )
    try:
      return self.template.render(messages, add_generation_prompt=add_generation_prompt)
    except chat_template.TemplateError as error:
      raise EncodingError('template_refused', f"field 'prompt': {error}") from None

  def _pair_texts(self, prompt: Prompt, responses: Sequence[str]) -> list[str]:
    """The prompt's text, then prompt and response for each response."""
    text = self._prompt_text(prompt)
    if isinstance(prompt, str):
      return [text] + [text + response for response in responses]
    joint = []
    for response in responses:
      messages = [*prompt, {'role': 'assistant', 'content': response}]
      joint.append(self._render(messages, add_generation_prompt=False))
    if not all(whole.startswith(text) for whole in joint):
      # Some templates open an assistant's turn with more than they keep of it later (an open <think>). That much may
      # differ, and the split finds the place; the conversation before it may not.
      shared = self._render(prompt, add_generation_prompt=False)
      if not all(whole.startswith(shared) for whole in joint):
        raise EncodingError(
          'template_changes_prompt',
          "field 'prompt': the chat template renders the prompt differently once a response follows; use one "
          'that only appends',
        )
    return [text, *joint]

  def _encode(self, texts: list[str]) -> list[list[int]]:
    encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
    size = len(self.prefix)
    ids = (encoding.ids for encoding in encodings)
    return [each if tuple(each[:size]) == self.prefix else [*self.prefix, *each] for each in ids]

  def _split(self, prompt: list[int], joint: list[list[int]]) -> Encoded | EncodingError:
    shared = min(_common_prefix(prompt, ids) for ids in joint)
    if shared == 0:
      return EncodingError('prompt_gone', "field 'prompt': no token of the prompt is left once a response follows")
    closed = [self._close(ids[shared:]) for ids in joint]
    return Encoded(
      prompt=prompt[:shared],
      responses=[ids for ids, _ in closed],
      merged=len(prompt) - shared,
      end_inside=any(not self.end_ids.isdisjoint(ids[:-1]) for ids, _ in closed),
      end_added=any(added for _, added in closed),
    )

  def _close(self, ids: list[int]) -> tuple[list[int], bool]:
    """Cuts a response after the end token that follows its text, or appends one; says whether it appended."""
    last = self.text_length(ids)
    for i in range(last, len(ids)):
      if ids[i] in self.end_ids:
        return ids[: i + 1], False
    return [*ids, self.eos_id], True

  def text_length(self, ids: Sequence[int]) -> int:
    """One past the last token that is neither an end token nor white space: 0 where a response says nothing."""
    last = len(ids)
    while last and (ids[last - 1] in self.end_ids or ids[last - 1] in self.space_ids):
      last -= 1
    return last


def _common_prefix(a: list[int], b: list[int]) -> int:
  if b[: len(a)] == a:
    return len(a)
  return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _load_backend(path: pathlib.Path) -> tokenizers.Tokenizer:
  if not path.is_file():
    raise ValueError(f'{path}: no such file; a model folder needs its tokenizer.json')
  try:
    backend = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises a bare Exception
    raise ValueError(f'{path}: cannot be read as a tokenizer: {error}') from None
  backend.no_truncation()  # limits may be stored in the file, and would cut responses without a word
  backend.no_padding()
  return backend


def _load_json(path: pathlib.Path) -> dict[str, Any]:
  """The fields of a JSON file that are not null; {} where there is no such file."""
  if not path.is_file():
    return {}
  try:
    fields = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path}: not JSON: {error}') from None
  if not isinstance(fields, dict):
    raise ValueError(f'{path}: must hold a JSON object')
  return {name: value for name, value in fields.items() if value is not None}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
  """`bos_token` and its like, by name; each is stored as text or as {'content': text}."""
  tokens = {}
  for name, value in config.items():
    text = value.get('content') if isinstance(value, dict) else value
    if name.endswith('_token') and isinstance(text, str):
      tokens[name] = text
  return tokens


def _generation_end_ids(folder: pathlib.Path) -> list[int]:
  path = folder / 'generation_config.json'
  value = _load_json(path).get('eos_token_id', [])
  ids = value if isinstance(value, list) else [value]
  if not all(type(i) is int and i >= 0 for i in ids):
    raise ValueError(f'{path}: eos_token_id must be a token id or a list of them, not {value!r}')
  return ids


def _load_template(
  folder: pathlib.Path, config: dict[str, Any], special: dict[str, str], now: datetime.datetime | None
) -> chat_template.ChatTemplate | None:
  path = folder / 'chat_template.jinja'
  source = path.read_text(encoding='utf-8') if path.is_file() else config.get('chat_template')
  if isinstance(source, list):  # several templates by name
    source = {entry['name']: entry['template'] for entry in source}.get('default')
  if source is None:
    return None
  try:
    return chat_template.ChatTemplate(source, special, now)
  except chat_template.TemplateError as error:
    raise ValueError(f'{folder}: {error}') from None


def _turn_end(backend: tokenizers.Tokenizer, template: chat_template.ChatTemplate) -> int | None:
  """The special token with which the template closes an assistant's turn.

  A base model's eos_token often differs from it, and a model that is not trained to end its turn never stops.
  """
  messages = [{'role': 'user', 'content': 'question'}, {'role': 'assistant', 'content': 'answer'}]
  try:
    text = template.render(messages, add_generation_prompt=False)
  except chat_template.TemplateError:
    return None  # it wants other messages, so it tells nothing
  ids = backend.encode(text[text.rfind('answer') + len('answer') :].lstrip(), add_special_tokens=False).ids
  added = backend.get_added_tokens_decoder()
  return ids[0] if ids and ids[0] in added and added[ids[0]].special else None


def _prefix(
  folder: pathlib.Path, backend: tokenizers.Tokenizer, config: dict[str, Any], bos_id: int | None
) -> tuple[int, ...]:
  """What goes before any text: BOS if tokenizer_config.json says so, else what tokenizer.json puts there."""
  add_bos = config.get('add_bos_token')
  if add_bos is None:
    encoding = backend.encode('a', add_special_tokens=True)
    return tuple(encoding.ids[: encoding.special_tokens_mask.index(0)])
  if add_bos and bos_id is None:
    raise ValueError(f'{folder}: tokenizer_config.json has add_bos_token but no bos_token; name it')
  return (bos_id,) if add_bos else ()


def _space_ids(backend: tokenizers.Tokenizer, size: int) -> frozenset[int]:
  texts = backend.decode_batch([[i] for i in range(size)], skip_special_tokens=False)
  return frozenset(i for i, text in enumerate(texts) if not text.strip())

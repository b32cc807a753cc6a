"""The tokenizer and chat template of a Hugging Face folder, and the single code path from text to token ids.

A prompt and each of its responses are tokenised JOINTLY, as one text, and then split. If the tokenizer merges text
across the boundary, the prompt's own tokens are not a prefix of the joint tokens. The split then moves back to the last
position at which the prompt alone and all joint texts still agree: the merged token belongs to the response, and what
the model is conditioned on in training is a prefix of what it sees when sampling.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
import datetime
import os
import pathlib
from typing import Any, NamedTuple

import tokenizers

from alignjax import files
from alignjax.data.reading import rows
from alignjax.data.tokens import chat_template

FILES = (  # all that `Tokenizer.load` reads
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'generation_config.json',
  'chat_template.jinja',
)


class Encoded(NamedTuple):
  """One prompt and its responses as token ids, before length limits are applied."""

  prompt: list[int]
  responses: list[list[int]]  # each ends with an end token
  merged: int  # prompt tokens that became part of the responses: the tokenizer merged across the boundary
  end_inside: bool  # a response has an end token before its last token
  end_added: bool  # the text had no end token after a response, so one was appended


class EncodingError(ValueError):
  """The texts cannot be encoded. `reason` is a key of a drop report."""

  def __init__(self, reason: str, message: str):
    super().__init__(reason, message)
    self.reason = reason

  def __str__(self) -> str:
    return self.args[1]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Converts text to token ids and back.

  `prefix` is what the tokenizer puts before every text: (bos_id,) or nothing. Sequences start with it exactly once,
  whether or not the chat template writes it too.
  """

  backend: tokenizers.Tokenizer
  template: chat_template.ChatTemplate | None
  bos_id: int | None
  eos_id: int
  pad_id: int
  end_ids: frozenset[int]  # any of these ends a response, and stops sampling
  turn_end_id: int | None  # the special token that the template writes after an assistant turn
  generation_end_ids: frozenset[int]  # from generation_config.json: other programs stop only at these
  space_ids: frozenset[int]  # tokens that are only white space
  prefix: tuple[int, ...]
  vocab_size: int  # largest id + 1
  origin: str = 'tokenizer.json'  # the file, for messages

  @classmethod
  def load(cls, folder: str | os.PathLike, clock: chat_template.Clock = datetime.datetime.now) -> 'Tokenizer':
    """Reads tokenizer.json, tokenizer_config.json, generation_config.json and the chat template of a model folder.

    Args:
      folder: a folder in Hugging Face layout.
      clock: called for the date if the chat template prints it.

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
      raise ValueError(f'{folder}: no end token; set eos_token in tokenizer_config.json')
    template = _load_template(folder, config, special, clock)
    bos_id = ids.get('bos_token')
    vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    with _naming(folder / 'tokenizer.json'):
      turn_end = None if template is None else _turn_end(backend, template)
      space_ids = _space_ids(backend, vocab_size)
    return cls(
      backend=backend,
      template=template,
      bos_id=bos_id,
      eos_id=eos_id,
      pad_id=ids.get('pad_token', eos_id),
      end_ids=frozenset({eos_id, *end_ids} | ({turn_end} - {None})),
      turn_end_id=turn_end,
      generation_end_ids=frozenset(end_ids),
      space_ids=space_ids,
      prefix=_prefix(folder, backend, config, bos_id),
      vocab_size=vocab_size,
      origin=str(folder / 'tokenizer.json'),
    )

  def encode_prompt(self, prompt: rows.Prompt, max_length: int | None = None) -> list[int]:
    """The tokens of a prompt, up to where the response starts. Long prompts are cut by `truncate_prompt`."""
    ids = self._encode([self._prompt_text(prompt)])[0]
    return ids if max_length is None else self.truncate_prompt(ids, max_length)

  def encode(self, prompt: rows.Prompt, responses: Sequence[str]) -> Encoded:
    """Encodes one prompt with its responses. See `encode_all`.

    Raises:
      EncodingError: the template rejects the messages, or no prompt token is left.
    """
    result = next(self.encode_all([(prompt, responses)]))
    if isinstance(result, EncodingError):
      raise result
    return result

  def encode_all(self, texts: Iterable[tuple[rows.Prompt, Sequence[str]]]) -> Iterator[Encoded | EncodingError]:
    """Encodes many prompts at once, on all cores. Yields the error of each prompt that cannot be encoded.

    Args:
      texts: prompts with their responses. A response continues a string verbatim, or is the assistant's answer to
        messages.
    """
    groups, errors = [], []
    for prompt, responses in texts:
      try:
        groups.append(self._joint_texts(prompt, responses))
        errors.append(None)
      except EncodingError as error:
        errors.append(error)
    encoded = iter(self._encode([text for group in groups for text in group]))
    remaining = iter(groups)
    for error in errors:
      if error is None:
        prompt_ids, *joint_ids = [next(encoded) for _ in next(remaining)]
        yield self._split(prompt_ids, joint_ids)
      else:
        yield error

  def truncate_prompt(self, ids: list[int], max_length: int) -> list[int]:
    """Keeps the last `max_length` tokens, because the end of a prompt matters most. A leading BOS stays in front."""
    if len(ids) <= max_length:
      return ids
    head = list(self.prefix)
    if not head and ids[0] == self.bos_id:
      head = [self.bos_id]  # the chat template wrote it
    if max_length <= len(head):
      raise ValueError(f'max_length={max_length}: too small: every prompt starts with {len(head)} special tokens')
    tail = ids[len(ids) - max_length + len(head) :]
    return tail if tail[: len(head)] == head else head + tail  # the cut may be right before a turn that starts with BOS

  def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True, continues: bool = False) -> str:
    """The text of token ids.

    Args:
      ids: the tokens of a whole text or of a part of one.
      skip_special_tokens: omit special tokens such as end tokens.
      continues: the ids follow other text, as a response does. Some tokenizers put a space before the first word of a
        text and remove it when decoding; with `continues` that space is part of the text and is kept.
    """
    ids = [int(i) for i in ids]
    before = self.backend.encode('a', add_special_tokens=False).ids if continues else []
    text = self.backend.decode([*before, *ids], skip_special_tokens=skip_special_tokens)
    return text[len(self.backend.decode(before)) :]

  def _prompt_text(self, prompt: rows.Prompt) -> str:
    return prompt if isinstance(prompt, str) else self._render(prompt, add_generation_prompt=True)

  def _render(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
    if self.template is None:
      raise ValueError(
        'the prompt is a list of messages but the model has no chat template; use strings, or add chat_template.jinja'
      )
    try:
      return self.template.render(messages, add_generation_prompt=add_generation_prompt)
    except chat_template.TemplateError as error:
      raise EncodingError('template_refused', f"field 'prompt': {error}") from None

  def _joint_texts(self, prompt: rows.Prompt, responses: Sequence[str]) -> list[str]:
    """The text of the prompt alone, then prompt and response together for each response."""
    text = self._prompt_text(prompt)
    if isinstance(prompt, str):
      return [text] + [text + response for response in responses]
    joint = []
    for response in responses:
      messages = [*prompt, {'role': 'assistant', 'content': response}]
      joint.append(self._render(messages, add_generation_prompt=False))
    if not all(whole.startswith(text) for whole in joint):
      # Some templates open an assistant turn with text that they drop later (such as <think>). Such a difference is
      # fine, because the split finds the boundary, but the conversation before it must stay the same.
      shared = self._render(prompt, add_generation_prompt=False)
      if not all(whole.startswith(shared) for whole in joint):
        raise EncodingError(
          'template_changes_prompt',
          "field 'prompt': the chat template renders the prompt differently when a response follows; use a "
          'template that only appends',
        )
    return [text, *joint]

  def _encode(self, texts: list[str]) -> list[list[int]]:
    with _naming(self.origin):
      encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
    size = len(self.prefix)
    ids = (encoding.ids for encoding in encodings)
    return [each if tuple(each[:size]) == self.prefix else [*self.prefix, *each] for each in ids]

  def _split(self, prompt: list[int], joint: list[list[int]]) -> Encoded | EncodingError:
    shared = min((_common_prefix(prompt, ids) for ids in joint), default=len(prompt))
    if shared == 0:
      return EncodingError(
        'prompt_gone', "field 'prompt': all tokens of the prompt merge with the response; use a longer prompt"
      )
    closed = [self._close(ids[shared:]) for ids in joint]
    return Encoded(
      prompt=prompt[:shared],
      responses=[ids for ids, _ in closed],
      merged=len(prompt) - shared,
      end_inside=any(not self.end_ids.isdisjoint(ids[:-1]) for ids, _ in closed),
      end_added=any(added for _, added in closed),
    )

  def _close(self, ids: list[int]) -> tuple[list[int], bool]:
    """Cuts a response after the end token that follows its text, or appends one. Returns whether it appended one."""
    last = self.text_length(ids)
    for i in range(last, len(ids)):
      if ids[i] in self.end_ids:
        return ids[: i + 1], False
    return [*ids, self.eos_id], True

  def text_length(self, ids: Sequence[int]) -> int:
    """One past the last token that is neither an end token nor white space; 0 if a response has no text."""
    last = len(ids)
    while last and (ids[last - 1] in self.end_ids or ids[last - 1] in self.space_ids):
      last -= 1
    return last


def _common_prefix(a: list[int], b: list[int]) -> int:
  if b[: len(a)] == a:
    return len(a)
  return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _load_backend(path: pathlib.Path) -> tokenizers.Tokenizer:
  if not path.exists():
    raise ValueError(f'{path}: no such file; a model folder must have a tokenizer.json')
  files.check_regular(path)
  with _naming(path, 'not readable as a tokenizer: '):
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.encode('a')  # some regular expressions fail only when they are used
  backend.no_truncation()  # the file may set limits, which would silently cut responses
  backend.no_padding()
  return backend


@contextlib.contextmanager
def _naming(path: str | os.PathLike, what: str = '') -> Iterator[None]:
  """Turns any exception in the block into a ValueError that names the file."""
  try:
    yield
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # the library raises a bare Exception, or PanicException, a BaseException
    raise ValueError(f'{path}: {what}{error}') from None


def _load_json(path: pathlib.Path) -> dict[str, Any]:
  """The non-null fields of a JSON file; {} if the file does not exist."""
  if not path.exists():
    return {}
  fields = files.read_json(path)
  if not isinstance(fields, dict):
    raise ValueError(f'{path}: must contain a JSON object')
  return {name: value for name, value in fields.items() if value is not None}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
  """Special tokens such as `bos_token` by name. Each is stored as text or as {'content': text}."""
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
    raise ValueError(f'{path}: eos_token_id must be a token id or a list of token ids, not {value!r}')
  return ids


def _load_template(
  folder: pathlib.Path, config: dict[str, Any], special: dict[str, str], clock: chat_template.Clock
) -> chat_template.ChatTemplate | None:
  path = folder / 'chat_template.jinja'
  if path.exists():
    return chat_template.ChatTemplate(files.read_text(path), special, clock, str(path))
  path, source = folder / 'tokenizer_config.json', config.get('chat_template')
  if isinstance(source, list):  # several named templates
    if not all(isinstance(entry, dict) and {'name', 'template'} <= entry.keys() for entry in source):
      raise ValueError(f'{path}: chat_template must be a list of objects with the fields name and template')
    source = next((entry['template'] for entry in reversed(source) if entry['name'] == 'default'), None)
  return None if source is None else chat_template.ChatTemplate(source, special, clock, str(path))


def _turn_end(backend: tokenizers.Tokenizer, template: chat_template.ChatTemplate) -> int | None:
  """The special token that the template writes after an assistant turn.

  It often differs from the eos_token of a base model, and a model that never learns to end its turn does not stop.
  """
  messages = [{'role': 'user', 'content': 'question'}, {'role': 'assistant', 'content': 'answer'}]
  try:
    text = template.render(messages, add_generation_prompt=False)
  except chat_template.TemplateError:
    return None  # the template wants other messages
  ids = backend.encode(text[text.rfind('answer') + len('answer') :].lstrip(), add_special_tokens=False).ids
  added = backend.get_added_tokens_decoder()
  return ids[0] if ids and ids[0] in added and added[ids[0]].special else None


def _prefix(
  folder: pathlib.Path, backend: tokenizers.Tokenizer, config: dict[str, Any], bos_id: int | None
) -> tuple[int, ...]:
  """What goes before every text: BOS if add_bos_token is set, otherwise what tokenizer.json adds."""
  add_bos = config.get('add_bos_token')
  if add_bos is None:
    encoding = backend.encode('a', add_special_tokens=True)
    return tuple(encoding.ids[: encoding.special_tokens_mask.index(0)])
  if add_bos and bos_id is None:
    raise ValueError(f'{folder}: tokenizer_config.json has add_bos_token but no bos_token; set it')
  return (bos_id,) if add_bos else ()


def _space_ids(backend: tokenizers.Tokenizer, size: int) -> frozenset[int]:
  texts = backend.decode_batch([[i] for i in range(size)], skip_special_tokens=False)
  return frozenset(i for i, text in enumerate(texts) if not text.strip())

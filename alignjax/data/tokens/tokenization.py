"""The tokenizer and chat template of a Hugging Face folder, and the single code path from text to token ids.

A prompt and each of its responses are tokenised JOINTLY, as one text, and then split. If the tokenizer merges text
across the boundary, the prompt's own tokens are not a prefix of the joint tokens. The split then moves back to the last
position at which the prompt alone and all joint texts still agree: the merged token belongs to the response, and what
the model is conditioned on in training is a prefix of what it sees when sampling.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import datetime
import functools
import os
import pathlib
from typing import Any, NamedTuple

import tokenizers

from alignjax.data.reading import rows
from alignjax.data.tokens import chat_template, control_text, rendering, tokenizer_files

EncodingError = rendering.EncodingError


class _Rendered(NamedTuple):
  """The text of a prompt alone, then prompt and response together for each response."""

  texts: list[str]
  notes: tuple[tuple[str, str], ...]
  masked: bool  # the texts have masks of `control_text`


class Encoded(NamedTuple):
  """One prompt and its responses as token ids, before length limits are applied."""

  prompt: list[int]
  responses: list[list[int]]  # each ends with an end token
  merged: int  # prompt tokens that became part of the responses: the tokenizer merged across the boundary
  end_inside: bool  # a response has an end token before its last token
  end_added: bool  # the text had no end token after a response, so one was appended
  notes: tuple[tuple[str, str], ...] = ()  # what else is worth knowing: reasons and details for the report


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
  other_templates: str = ''  # if there are only named templates and none is the default: their names, for messages

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
    backend = tokenizer_files.load_backend(folder / 'tokenizer.json')
    config = tokenizer_files.load_config(folder)
    special = tokenizer_files.special_tokens(config)
    tokenizer_files.add_tokens(folder, backend, config)
    ids = {name: backend.token_to_id(text) for name, text in special.items()}
    for name in ('bos_token', 'eos_token', 'pad_token'):
      if name in special and ids[name] is None:
        raise ValueError(f'{folder}: {name} {special[name]!r} is not in tokenizer.json; correct tokenizer_config.json')
    end_ids = tokenizer_files.generation_end_ids(folder)
    eos_id = ids.get('eos_token', end_ids[0] if end_ids else None)
    if eos_id is None:
      raise ValueError(f'{folder}: no end token; set eos_token in tokenizer_config.json')
    template, others = tokenizer_files.load_template(folder, config, special, clock)
    bos_id = ids.get('bos_token')
    vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    with tokenizer_files.naming(folder / 'tokenizer.json'):
      turn_end = None if template is None else tokenizer_files.turn_end(backend, template)
      space_ids = tokenizer_files.space_ids(backend, vocab_size)
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
      prefix=tokenizer_files.prefix(folder, backend, config, bos_id),
      vocab_size=vocab_size,
      origin=str(folder / 'tokenizer.json'),
      other_templates=others,
    )

  def with_template_arguments(self, arguments: Mapping[str, Any]) -> 'Tokenizer':
    """This tokenizer with variables of the chat template for all conversations that lack their own.

    Raises:
      ValueError: there is no chat template, or it does not read one of the variables.
    """
    if not arguments:
      return self
    if self.template is None:
      raise ValueError(f'{self.origin}: the model has no chat template{self.other_templates}, so it takes no arguments')
    return dataclasses.replace(self, template=self.template.with_arguments(arguments))

  def encode_prompt(self, prompt: rows.Prompt, max_length: int | None = None) -> list[int]:
    """The tokens of a prompt, up to where the response starts. Long prompts are cut by `truncate_prompt`."""
    (ids,) = self._encode_rendered([self._rendered(prompt, None)])[0]
    return ids if max_length is None else self.truncate_prompt(ids, max_length)

  def encode(self, prompt: rows.Prompt, responses: Sequence[rows.Response]) -> Encoded:
    """Encodes one prompt with its responses. See `encode_all`.

    Raises:
      EncodingError: the template rejects the messages, or no prompt token is left.
    """
    result = next(self.encode_all([(prompt, responses)]))
    if isinstance(result, EncodingError):
      raise result
    return result

  def encode_all(
    self, texts: Iterable[tuple[rows.Prompt, Sequence[rows.Response]]]
  ) -> Iterator[Encoded | EncodingError]:
    """Encodes many prompts at once, on all cores. Yields the error of each prompt that cannot be encoded.

    Args:
      texts: prompts with their responses. A response continues a string verbatim, or is the assistant's answer to
        messages.
    """
    groups, errors = [], []
    for prompt, responses in texts:
      try:
        groups.append(self._rendered(prompt, responses))
        errors.append(None)
      except EncodingError as error:
        errors.append(error)
    encoded = iter(zip(groups, self._encode_rendered(groups), strict=True))
    for error in errors:
      if error is None:
        group, ids = next(encoded)
        yield ids if isinstance(ids, EncodingError) else self._split(ids[0], ids[1:], group)
      else:
        yield error

  def check_ids(self, ids: Sequence[int], vocab_size: int, what: str) -> None:
    """Raises ValueError if the model, whose embedding has `vocab_size` rows, cannot read one of the token ids.

    Args:
      ids: the token ids.
      vocab_size: rows of the model's embedding.
      what: name of the text with these ids, used in the error message.
    """
    largest = max(ids, default=0)
    if largest >= vocab_size:
      text = self.decode([largest], skip_special_tokens=False)
      raise ValueError(
        f'{what} has token id {largest} ({text!r}), but the model has {vocab_size} embeddings; use the tokenizer that '
        'belongs to the model'
      )

  def truncate_prompt(self, ids: list[int], max_length: int) -> list[int]:
    """Keeps the last `max_length` tokens, because the end of a prompt matters most. A leading BOS stays in front."""
    if len(ids) <= max_length:
      return ids
    head = list(self.prefix)
    if not head and ids[0] == self.bos_id and ids.count(self.bos_id) == 1:
      head = [self.bos_id]  # the chat template wrote it, and does not start every turn with it
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

  @functools.cached_property
  def guard(self) -> control_text.Guard:
    """Keeps what messages spell from becoming special tokens."""
    return control_text.Guard(self.backend)

  def _rendered(self, prompt: rows.Prompt, responses: Sequence[rows.Response] | None) -> _Rendered:
    """The texts of a prompt with its responses; only that of the prompt if there are no responses to it (None)."""
    special = self.guard.special_in([prompt, responses])
    if isinstance(prompt, str):
      notes = (('control_tokens_in_text', f'the text spells {special!r}, which becomes a token'),) if special else ()
      return _Rendered([prompt, *(prompt + response for response in responses or ())], notes, False)
    if self.template is None:
      raise ValueError(
        f'the prompt is a list of messages but the model has no chat template{self.other_templates}; use strings, or '
        'add chat_template.jinja'
      )
    notes = []
    if foreign := self.guard.foreign_in([prompt, responses]):
      notes.append(('foreign_control_text', f'a message spells {foreign!r}, a control token of another chat format'))
    if special:
      notes.append(('control_text', f'a message spells {special!r}, which is encoded as text'))
      prompt, responses = self._masked(prompt, responses)
    if responses is None:
      texts = rendering.Texts([rendering.render_prompt(self.template, prompt)])
    else:
      texts = rendering.render(self.template, prompt, responses)
    return _Rendered(texts.texts, (*notes, *texts.notes), bool(special))

  def _masked(
    self, prompt: list[rows.Message] | rows.Dialogue, responses: Sequence[rows.Response] | None
  ) -> tuple[rows.Prompt, Sequence[rows.Response] | None]:
    """A prompt and responses with their special tokens masked."""
    if any(map(self.guard.is_masked, control_text.texts_in([prompt, responses]))):
      raise EncodingError(
        'private_characters',
        "field 'prompt': the row has characters of Unicode's last private plane and spells special tokens; remove one",
      )
    masked = self.guard.mask(rows.messages_of(prompt))
    if isinstance(prompt, rows.Dialogue):
      masked = rows.Dialogue(masked, self.guard.mask(prompt.variables))
    if responses is None:
      return masked, None
    return masked, [
      self.guard.mask_answer(each) if isinstance(each, str) else self.guard.mask(each) for each in responses
    ]

  def _encode_rendered(self, groups: Sequence[_Rendered]) -> list[list[list[int]] | EncodingError]:
    """The token ids of each text of each group."""
    encoded = iter(self._encode([text for group in groups if not group.masked for text in group.texts]))
    results = []
    for group in groups:
      try:
        if group.masked:
          results.append([self._with_prefix(ids) for ids in self.guard.encode(group.texts)])
        else:
          results.append([next(encoded) for _ in group.texts])
      except ValueError as error:
        results.append(EncodingError('control_text', f"field 'prompt': {error}; remove it from the messages"))
    return results

  def _encode(self, texts: list[str]) -> list[list[int]]:
    with tokenizer_files.naming(self.origin):
      encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
    return [self._with_prefix(encoding.ids) for encoding in encodings]

  def _with_prefix(self, ids: list[int]) -> list[int]:
    return ids if tuple(ids[: len(self.prefix)]) == self.prefix else [*self.prefix, *ids]

  def _split(self, prompt: list[int], joint: list[list[int]], rendered: _Rendered) -> Encoded | EncodingError:
    shared = min((_common_prefix(prompt, ids) for ids in joint), default=len(prompt))
    if shared == 0 and not rendered.texts[0]:
      prompt, shared = joint[0], 1  # a plain text without BOS: its first token is given
    if shared == 0:
      return EncodingError(
        'prompt_gone', "field 'prompt': all tokens of the prompt merge with the response; use a longer prompt"
      )
    closed = [self._close(ids[shared:]) for ids in joint]
    return Encoded(
      prompt=prompt[:shared],
      responses=[ids for ids, _ in closed],
      merged=len(prompt) - shared if rendered.texts[0] else 0,
      end_inside=any(not self.end_ids.isdisjoint(ids[:-1]) for ids, _ in closed),
      end_added=any(added for _, added in closed),
      notes=rendered.notes,
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

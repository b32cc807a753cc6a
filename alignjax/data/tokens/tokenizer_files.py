"""Reads the tokenizer files of a model folder."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
from typing import Any

import tokenizers

from alignjax import files
from alignjax.data.tokens import chat_template

FILES = (  # all that `Tokenizer.load` reads
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'generation_config.json',
  'chat_template.jinja',
  'additional_chat_templates/tool_use.jinja',
)
DEFAULT_TEMPLATE, TOOL_TEMPLATE = 'default', 'tool_use'  # of several named templates, the second is for rows with tools


def load_backend(path: pathlib.Path) -> tokenizers.Tokenizer:
  """The tokenizer in tokenizer.json."""
  if not path.exists():
    raise ValueError(f'{path}: no such file; a model folder must have a tokenizer.json')
  files.check_regular(path)
  with naming(path, 'not readable as a tokenizer: '):
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.encode('a')  # some regular expressions fail only when they are used
  backend.no_truncation()  # the file may set limits, which would silently cut responses
  backend.no_padding()
  return backend


@contextlib.contextmanager
def naming(path: str | os.PathLike, what: str = '') -> Iterator[None]:
  """Turns any exception in the block into a ValueError that names the file."""
  try:
    yield
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # the library raises a bare Exception, or PanicException, a BaseException
    raise ValueError(f'{path}: {what}{error}') from None


def load_json(path: pathlib.Path) -> dict[str, Any]:
  """The non-null fields of a JSON file; {} if the file does not exist."""
  if not path.exists():
    return {}
  fields = files.read_json(path)
  if not isinstance(fields, dict):
    raise ValueError(f'{path}: must contain a JSON object')
  return {name: value for name, value in fields.items() if value is not None}


def load_config(folder: pathlib.Path) -> dict[str, Any]:
  """The fields of tokenizer_config.json, and those that only special_tokens_map.json has."""
  return load_json(folder / 'special_tokens_map.json') | load_json(folder / 'tokenizer_config.json')


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
  """Special tokens such as `bos_token` by name. Each is stored as text or as {'content': text}."""
  tokens = {}
  for name, value in config.items():
    text = value.get('content') if isinstance(value, dict) else value
    if name.endswith('_token') and isinstance(text, str):
      tokens[name] = text
  return tokens


def generation_end_ids(folder: pathlib.Path) -> list[int]:
  """The end tokens of generation_config.json."""
  path = folder / 'generation_config.json'
  value = load_json(path).get('eos_token_id', [])
  ids = value if isinstance(value, list) else [value]
  if not all(type(i) is int and i >= 0 for i in ids):
    raise ValueError(f'{path}: eos_token_id must be a token id or a list of token ids, not {value!r}')
  return ids


def add_tokens(folder: pathlib.Path, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
  """Declares the added tokens of the other files that tokenizer.json lacks.

  Raises:
    ValueError: a declared id is taken or cannot be given.
  """
  path, special = folder / 'tokenizer_config.json', special_tokens(config)
  known = {token.content for token in backend.get_added_tokens_decoder().values()}
  declared = {
    str(number): {'content': content, 'special': content in special.values()}
    for content, number in load_json(folder / 'added_tokens.json').items()
  }
  decoder = config.get('added_tokens_decoder', {})
  declared |= decoder if isinstance(decoder, dict) else {}
  if not isinstance(decoder, dict) or not all(
    number.isdecimal() and isinstance(token, dict) and isinstance(token.get('content'), str)
    for number, token in declared.items()
  ):
    raise ValueError(f'{path}: added_tokens_decoder must be an object {{id: {{content, special, ...}}}}')
  for name in sorted(declared, key=int):
    number, token, content = int(name), declared[name], declared[name]['content']
    if content not in known:
      flags = {flag: bool(token[flag]) for flag in ('lstrip', 'rstrip', 'normalized', 'single_word') if flag in token}
      added = tokenizers.AddedToken(content, special=bool(token.get('special', False)), **flags)
      (backend.add_special_tokens if added.special else backend.add_tokens)([added])
    if backend.token_to_id(content) != number:
      raise ValueError(
        f'{path}: the added token {content!r} has the id {number}, but tokenizer.json gives it '
        f'{backend.token_to_id(content)}; correct the wrong file'
      )
  missing = {*special.values(), *_extra_tokens(config)} - {
    token.content for token in backend.get_added_tokens_decoder().values()
  }
  # A token that the vocabulary lacks has no row in the embedding, so it is not added.
  backend.add_special_tokens(sorted(text for text in missing if text and backend.token_to_id(text) is not None))


def _extra_tokens(config: dict[str, Any]) -> Iterator[str]:
  """The special tokens without a name, as transformers 4 and 5 store them."""
  for name in ('additional_special_tokens', 'extra_special_tokens'):
    value = config.get(name, [])
    value = list(value.values()) if isinstance(value, dict) else value
    for each in value if isinstance(value, list) else []:
      text = each.get('content') if isinstance(each, dict) else each
      if isinstance(text, str):
        yield text


def load_template(
  folder: pathlib.Path, config: dict[str, Any], special: dict[str, str], clock: chat_template.Clock
) -> tuple[chat_template.ChatTemplate | None, str]:
  """The chat template, with the one for tools; and what to report if there are only others."""
  path, named = folder / 'tokenizer_config.json', {}
  source = config.get('chat_template')
  if isinstance(source, list):
    if not all(
      isinstance(entry, dict) and {'name', 'template'} <= entry.keys() and isinstance(entry['name'], str)
      for entry in source
    ):
      raise ValueError(f'{path}: chat_template must be a list of objects with the fields name and template')
    named = {entry['name']: (entry['template'], path) for entry in source}
  elif source is not None:
    named = {DEFAULT_TEMPLATE: (source, path)}
  if (file := folder / 'chat_template.jinja').exists():
    named = {DEFAULT_TEMPLATE: (files.read_text(file), file)}
  if (file := folder / 'additional_chat_templates' / f'{TOOL_TEMPLATE}.jinja').exists():
    named[TOOL_TEMPLATE] = (files.read_text(file), file)
  found = {
    name: chat_template.ChatTemplate(text, special, clock, str(origin))
    for name, (text, origin) in named.items()
    if name in (DEFAULT_TEMPLATE, TOOL_TEMPLATE)
  }
  if DEFAULT_TEMPLATE not in found:
    others = f' named {DEFAULT_TEMPLATE}, only {", ".join(sorted(named))}' if named else ''
    return None, others
  template = found[DEFAULT_TEMPLATE]
  template.with_tools = found.get(TOOL_TEMPLATE)
  if template.with_tools is not None and template.date is None:
    template.date = template.with_tools.date
  return template, ''


def turn_end(backend: tokenizers.Tokenizer, template: chat_template.ChatTemplate) -> int | None:
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


def prefix(
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


def space_ids(backend: tokenizers.Tokenizer, size: int) -> frozenset[int]:
  texts = backend.decode_batch([[i] for i in range(size)], skip_special_tokens=False)
  return frozenset(i for i, text in enumerate(texts) if not text.strip())

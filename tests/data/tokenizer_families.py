"""Model folders with small tokenizers that behave as those of well-known families do.

Vocabularies are laid out so that an id can be worked out by hand:

  byte level      0..255 the bytes in GPT-2's order (a printable c is ord(c) - 33, a new line 198, a space 220), then
                  256 Th The  258 Ġf Ġfi Ġfil Ġfilm  262 Ġw Ġwa Ġwas  265 us use user  268 as .. assistant
                  276 sy .. system  281 ĊĊ, then special tokens from 282
  SentencePiece   special tokens, byte b at +b, then '▁', a..z, A..Z and merged pieces. After three special tokens:
                  3 + b, 259 ▁, 260 a.., 286 A.., 312 IN INS INST  315 ▁T ▁Th ▁The  318 ▁f .. ▁film  322 ▁w ▁wa ▁was
                  325 us use user  328 as .. assistant
"""

from collections.abc import Callable, Sequence
import json
import pathlib
import string
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

_LETTERS = ('▁', *string.ascii_lowercase, *string.ascii_uppercase)
_BYTE_WORDS = ('The', 'Ġfilm', 'Ġwas', 'user', 'assistant', 'system', 'ĊĊ')
_PIECE_WORDS = ('INST', '▁The', '▁film', '▁was', 'user', 'assistant')
_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write(folder: str | pathlib.Path, name: str, **config) -> pathlib.Path:
  """Writes the folder of a family.

  Args:
    folder: created if absent.
    name: one of FAMILIES.
    **config: replaces fields of tokenizer_config.json.
  """
  family = FAMILIES[name]
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  backend = family.build()
  backend.save(str(folder / 'tokenizer.json'))
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', **family.config, **config}
  special = {key: value for key, value in config.items() if key.endswith('_token') and isinstance(value, str)}
  generation = {'eos_token_id': [backend.token_to_id(token) for token in family.stops]}
  if len(family.stops) == 1:
    generation = {'eos_token_id': generation['eos_token_id'][0]}
  contents = {'tokenizer_config': config, 'special_tokens_map': special, 'generation_config': generation}
  for stem, content in contents.items():
    (folder / f'{stem}.json').write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding='utf-8')
  if family.template is not None:
    (folder / 'chat_template.jinja').write_text(family.template, encoding='utf-8')
  return folder


def _byte_alphabet() -> list[str]:
  """The 256 characters that stand for bytes, in GPT-2's order: printable ones first."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _bpe(alphabet: Sequence[str], words: Sequence[str], **options) -> models.BPE:
  """Ids in order: the alphabet, then what each word is merged from, left to right, until it is one token."""
  vocabulary = {piece: i for i, piece in enumerate(alphabet)}
  merges = []
  for word in words:
    model = models.BPE(vocab=vocabulary, merges=merges, **options)
    piece, *rest = [token.value for token in model.tokenize(word)]
    for following in rest:
      merges.append((piece, following))
      piece += following
      vocabulary[piece] = len(vocabulary)
  return models.BPE(vocab=vocabulary, merges=merges, **options)


def _add(backend: tokenizers.Tokenizer, special: Sequence[str], ordinary: Sequence[str] = ()) -> None:
  backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in special])
  backend.add_tokens([tokenizers.AddedToken(token, normalized=False, special=False) for token in ordinary])


def _bos_first(backend: tokenizers.Tokenizer, bos: str) -> processors.TemplateProcessing:
  return processors.TemplateProcessing(
    single=f'{bos} $A', pair=f'{bos} $A {bos} $B', special_tokens=[(bos, backend.token_to_id(bos))]
  )


def _byte_level(*special: str, ordinary: Sequence[str] = (), bos: str | None = None) -> tokenizers.Tokenizer:
  """Llama 3's and Qwen's way: a regular expression cuts words, each is a sequence of bytes."""
  backend = tokenizers.Tokenizer(_bpe(_byte_alphabet(), _BYTE_WORDS))
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_SPLIT), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  _add(backend, special, ordinary)
  if bos is not None:
    backend.post_processor = processors.Sequence([processors.ByteLevel(), _bos_first(backend, bos)])
  return backend


def _sentencepiece(
  special: Sequence[str], *, letters: Sequence[str] = _LETTERS, words: Sequence[str] = _PIECE_WORDS
) -> tokenizers.Tokenizer:
  """A space is '▁', part of the word after it; a character without a piece becomes its bytes; words may merge."""
  alphabet = [*special, *(f'<0x{byte:02X}>' for byte in range(256)), *letters]
  backend = tokenizers.Tokenizer(_bpe(alphabet, words, byte_fallback=True, unk_token='<unk>', fuse_unk=True))
  _add(backend, special)
  return backend


def _with_prefix_space(special: Sequence[str] = ('<unk>', '<s>', '</s>')) -> tokenizers.Tokenizer:
  """Llama 2's way: the normaliser puts a space before the text, and before the text after every special token."""
  backend = _sentencepiece(special)
  backend.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  backend.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
  )
  backend.post_processor = _bos_first(backend, '<s>')
  return backend


def _metaspace() -> tokenizers.Tokenizer:
  """Mistral's way: a space is put before a text that starts with a word, never after a special token."""
  backend = _sentencepiece(('<unk>', '<s>', '</s>'))
  backend.pre_tokenizer = pre_tokenizers.Metaspace('▁', prepend_scheme='first', split=False)
  backend.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
  )
  backend.post_processor = _bos_first(backend, '<s>')
  return backend


def _gemma() -> tokenizers.Tokenizer:
  """No space before the first word, a piece for the new line, turns between special tokens."""
  backend = _sentencepiece(
    ('<pad>', '<eos>', '<bos>', '<unk>', '<start_of_turn>', '<end_of_turn>'),
    letters=('\n', *_LETTERS),
    words=('user', 'model', '▁film'),
  )
  backend.normalizer = normalizers.Replace(' ', '▁')
  backend.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()])
  return backend


def _gpt2() -> tokenizers.Tokenizer:
  backend = tokenizers.Tokenizer(_bpe(_byte_alphabet(), _BYTE_WORDS))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  backend.decoder = decoders.ByteLevel()
  backend.post_processor = processors.ByteLevel(trim_offsets=False)
  _add(backend, ['<|endoftext|>'])
  return backend


def _unsplit() -> tokenizers.Tokenizer:
  """Byte pairs over the whole text: 256 is 'm ', and 257 is 'm w', with a space in the middle; 259 is 'The'."""
  backend = tokenizers.Tokenizer(_bpe(_byte_alphabet(), ('mĠw', 'The')))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  _add(backend, ['<end>'])
  return backend


_LLAMA_2 = (
  "{% if messages[0]['role'] == 'system' %}{% set messages = messages[1:] %}{% endif %}"
  '{% for message in messages %}'
  "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
  "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
  "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA_3 = (
  '{% set loop_messages = messages %}{% for message in loop_messages %}'
  "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
  " + message['content'] | trim + '<|eot_id|>' %}"
  '{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_QWEN = (
  "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
  '{% for message in messages %}'
  "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_QWEN_THINKING = (
  "{% set last = namespace(user=0) %}{% for message in messages %}{% if message.role == 'user' %}"
  '{% set last.user = loop.index0 %}{% endif %}{% endfor %}'
  "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
  "{% if message.role == 'assistant' and loop.index0 > last.user %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
  "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
_GEMMA = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
  '{% for message in messages %}'
  "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
  "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_MISTRAL = (
  '{{ bos_token }}{% for message in messages %}'
  "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
  "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
  "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_ZEPHYR = (
  '{% for message in messages %}\n'
  "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n"
  "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)


class Family(NamedTuple):
  """What a model folder of the family holds."""

  build: Callable[[], tokenizers.Tokenizer]
  config: dict[str, Any]  # of tokenizer_config.json
  template: str | None
  stops: tuple[str, ...]  # generation_config.json's end tokens


FAMILIES = {
  'llama_2': Family(
    _with_prefix_space,
    {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>', 'add_bos_token': True, 'add_eos_token': False},
    _LLAMA_2,
    ('</s>',),
  ),
  'llama_3': Family(
    lambda: _byte_level(
      '<|begin_of_text|>',
      '<|end_of_text|>',
      '<|start_header_id|>',
      '<|end_header_id|>',
      '<|eot_id|>',
      bos='<|begin_of_text|>',
    ),
    {'bos_token': '<|begin_of_text|>', 'eos_token': '<|end_of_text|>'},
    _LLAMA_3,
    ('<|end_of_text|>', '<|eot_id|>'),
  ),
  'qwen': Family(
    lambda: _byte_level('<|endoftext|>', '<|im_start|>', '<|im_end|>'),
    {'bos_token': None, 'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>', 'add_bos_token': False},
    _QWEN,
    ('<|im_end|>', '<|endoftext|>'),
  ),
  'qwen_thinking': Family(
    lambda: _byte_level('<|endoftext|>', '<|im_start|>', '<|im_end|>', ordinary=('<think>', '</think>')),
    {'bos_token': None, 'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>', 'add_bos_token': False},
    _QWEN_THINKING,
    ('<|im_end|>', '<|endoftext|>'),
  ),
  'gpt_2': Family(
    _gpt2,
    {
      'bos_token': '<|endoftext|>',
      'eos_token': '<|endoftext|>',
      'pad_token': '<|endoftext|>',
      'unk_token': '<|endoftext|>',
      'add_prefix_space': False,
    },
    None,
    ('<|endoftext|>',),
  ),
  'gemma': Family(
    _gemma,
    {
      'bos_token': '<bos>',
      'eos_token': '<eos>',
      'pad_token': '<pad>',
      'unk_token': '<unk>',
      'add_bos_token': True,
      'add_eos_token': False,
    },
    _GEMMA,
    ('<eos>', '<end_of_turn>'),
  ),
  'mistral': Family(_metaspace, {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}, _MISTRAL, ('</s>',)),
  'unsplit': Family(_unsplit, {'eos_token': '<end>'}, None, ('<end>',)),
  'zephyr': Family(
    _with_prefix_space,
    {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': '</s>', 'add_bos_token': True},
    _ZEPHYR,
    ('</s>',),
  ),
}

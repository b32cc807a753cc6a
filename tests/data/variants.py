"""Model folders whose tokenizers and chat templates differ in what goes wrong elsewhere."""

import json
import pathlib

import tokenizers
from tokenizers import models, pre_tokenizers, processors

from tests import assets

TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
GENERATION = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def edit_json(path: pathlib.Path, **fields) -> None:
  """Sets fields of a JSON file; None removes one."""
  content = json.loads(path.read_text()) | fields
  path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def byte_level(folder, *, template=None, bos_processor=False, end_ids=None, edit=None, **config) -> pathlib.Path:
  """The tiny byte-level BPE tokenizer of `assets`, with changes.

  Args:
    folder: to write.
    template: replaces the ChatML template.
    bos_processor: tokenizer.json itself puts <|endoftext|> first, as a Llama's does.
    end_ids: replaces eos_token_id of generation_config.json.
    edit: called with the tokenizer before it is saved.
    **config: fields of tokenizer_config.json; None removes one.
  """
  folder = pathlib.Path(folder)
  assets.write_tiny_tokenizer(folder)
  backend = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  if bos_processor:
    backend.post_processor = processors.TemplateProcessing(
      single='<|endoftext|> $A', special_tokens=[('<|endoftext|>', 0)]
    )
    config = {'bos_token': '<|endoftext|>', 'add_bos_token': None} | config
  if edit is not None:
    edit(backend)
  backend.save(str(folder / 'tokenizer.json'))
  if template is not None:
    config['chat_template'] = template
  edit_json(folder / 'tokenizer_config.json', **config)
  if end_ids is not None:
    edit_json(folder / 'generation_config.json', eos_token_id=end_ids)
  return folder


WORDS = ('<unk>', '<s>', '</s>', '▁The', '▁film', '▁was', 'good', '▁good', '▁')


def sentencepiece_style(folder) -> pathlib.Path:
  """Words that carry the space before them; a space is put before the first word of a text, and BOS before that."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token='<unk>'))
  backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first')
  backend.add_special_tokens(list(WORDS[:3]))
  backend.save(str(folder / 'tokenizer.json'))
  config = {'bos_token': '<s>', 'eos_token': {'content': '</s>', 'special': True}, 'add_bos_token': True}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return folder

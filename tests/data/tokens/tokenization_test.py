"""Tests of `tokenization`: token ids, the split between prompt and response, and end tokens."""

import json
import os

import pytest
import tokenizers

from alignjax.data.tokens import tokenization
from tests.data import variants

USER = [{'role': 'user', 'content': 'The film?'}]
TALK = [*USER, {'role': 'assistant', 'content': 'Good.'}, {'role': 'user', 'content': 'Why?'}]
USER_TEXT = '<|im_start|>user\nThe film?<|im_end|>\n<|im_start|>assistant\n'
DEEP = '{"a":' * 100_000 + '1' + '}' * 100_000
FOLDER, PIPE = object(), object()  # in place of a file
END_OF_TEXT, START, END = 0, 1, 2  # ids of <|endoftext|>, <|im_start|>, <|im_end|>


def load(folder, **changes) -> tokenization.Tokenizer:
  return tokenization.Tokenizer.load(variants.byte_level(folder, **changes))


def ids_of(tokenizer, text) -> list[int]:
  """What the tokenizer itself makes of a text, without anything around it."""
  return tokenizer.backend.encode(text, add_special_tokens=False).ids


def text_of(tokenizer, ids) -> str:
  return tokenizer.decode(ids, skip_special_tokens=False)


# --- chat


def test_chat_pair_is_the_joint_text_cut_after_the_end_of_turn(tmp_path):
  tokenizer = load(tmp_path)
  encoded = tokenizer.encode(USER, ['It was great', 'No'])
  for response, text in zip(encoded.responses, ['It was great', 'No'], strict=True):
    joint = ids_of(tokenizer, f'{USER_TEXT}{text}<|im_end|>\n')
    assert encoded.prompt + response == joint[:-1]
    assert text_of(tokenizer, response) == text + '<|im_end|>'
    assert response[-1] == tokenizer.eos_id == tokenizer.pad_id == END
  assert text_of(tokenizer, encoded.prompt) == USER_TEXT
  assert (encoded.merged, encoded.end_inside, encoded.end_added) == (0, False, False)


def test_sampling_and_training_see_the_same_prompt(tmp_path):
  tokenizer = load(tmp_path)
  for prompt in (USER, TALK, 'The film'):
    assert tokenizer.encode_prompt(prompt) == tokenizer.encode(prompt, [' was', ' is']).prompt


def test_earlier_assistant_turns_belong_to_the_prompt(tmp_path):
  tokenizer = load(tmp_path)
  encoded = tokenizer.encode(TALK, ['Because', 'So'])
  assert text_of(tokenizer, encoded.prompt).endswith(
    'Good.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n'
  )
  assert not encoded.end_inside


def test_text_after_the_first_end_token_is_not_trained(tmp_path):
  closing = "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"
  template = variants.TURNS + variants.GENERATION + closing
  tokenizer = load(tmp_path, template=template, end_ids=[END, END_OF_TEXT])
  encoded = tokenizer.encode(USER, ['Yes', 'No'])
  assert [text_of(tokenizer, ids) for ids in encoded.responses] == ['Yes<|im_end|>', 'No<|im_end|>']


@pytest.mark.parametrize('text', ['Yes<|im_end|> and no', 'Yes<|im_end|>'])
def test_an_end_token_that_a_response_spells_is_text(tmp_path, text):
  tokenizer = load(tmp_path)
  encoded = tokenizer.encode(USER, [text, 'No'])
  assert text_of(tokenizer, encoded.responses[0]) == text + '<|im_end|>'
  assert encoded.responses[0].count(END) == 1
  assert not encoded.end_inside
  assert encoded.notes[0][0] == 'control_text'
  verbatim = tokenizer.encode('The film?', [text, 'No'])  # a string is what the model continues, as it is written
  assert verbatim.responses[0].count(END) == 1 + (text[-1] != '>')
  assert verbatim.notes[0][0] == 'control_tokens_in_text'


def test_template_that_closes_no_turn_gets_an_end_token(tmp_path):
  template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
  template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
  tokenizer = load(tmp_path, template=template)
  encoded = tokenizer.encode(USER, ['Yes', 'No'])
  assert [text_of(tokenizer, ids) for ids in encoded.responses] == [' Yes\n<|im_end|>', ' No\n<|im_end|>']
  assert encoded.end_added


def test_end_ids_are_eos_those_of_generation_config_and_the_end_of_a_turn(tmp_path):
  assert load(tmp_path / 'a').end_ids == {END}
  assert load(tmp_path / 'b', end_ids=[END, 7]).end_ids == {END, 7}
  assert load(tmp_path / 'c', end_ids=7).end_ids == {END, 7}
  # A base model ends texts, not turns; its chat template ends turns.
  base = load(tmp_path / 'd', end_ids=END_OF_TEXT, eos_token='<|endoftext|>', pad_token=None)
  assert base.end_ids == {END_OF_TEXT, END}
  assert base.eos_id == base.pad_id == END_OF_TEXT
  assert text_of(base, base.encode(USER, ['Yes', 'No']).responses[0]) == 'Yes<|im_end|>'
  assert load(tmp_path / 'e', end_ids=[7, END], eos_token=None).eos_id == 7


def test_generation_prompt_that_a_later_turn_does_not_keep(tmp_path):
  opened = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>' }}{% endif %}"
  tokenizer = load(tmp_path, template=variants.TURNS + opened)
  encoded = tokenizer.encode(USER, ['Yes', 'No'])
  assert text_of(tokenizer, encoded.prompt) == USER_TEXT
  assert [text_of(tokenizer, ids) for ids in encoded.responses] == ['Yes<|im_end|>', 'No<|im_end|>']
  assert encoded.merged == len(ids_of(tokenizer, '<think>'))


def test_template_that_rewrites_the_prompt_is_refused(tmp_path):
  tokenizer = load(tmp_path, template='{{ messages | length }}' + variants.TURNS + variants.GENERATION)
  with pytest.raises(
    tokenization.EncodingError, match="field 'prompt': the chat template renders the prompt differently"
  ):
    tokenizer.encode(USER, ['Yes', 'No'])


def test_template_that_refuses_is_an_error_of_the_pair(tmp_path):
  refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
  tokenizer = load(tmp_path, template=refusing + variants.TURNS + variants.GENERATION)
  system = [{'role': 'system', 'content': 'Be kind'}, *USER]
  results = list(tokenizer.encode_all([(USER, ['a', 'b']), (system, ['a', 'b']), (TALK, ['a', 'b'])]))
  assert [type(result) for result in results] == [
    tokenization.Encoded,
    tokenization.EncodingError,
    tokenization.Encoded,
  ]
  assert results[1].reason == 'template_refused'
  assert 'no system' in str(results[1])
  assert results[2] == tokenizer.encode(TALK, ['a', 'b'])


# --- plain text


def test_plain_pair_is_the_concatenation_with_an_end_token(tmp_path):
  tokenizer = load(tmp_path)
  encoded = tokenizer.encode('The film was', [' great', ' dull.\n'])
  for ids, text in zip(encoded.responses, [' great', ' dull.\n'], strict=True):
    assert encoded.prompt + ids == [*ids_of(tokenizer, 'The film was' + text), END]


def test_plain_response_that_has_its_end_token_gets_no_second(tmp_path):
  tokenizer = load(tmp_path)
  encoded = tokenizer.encode('The film was', [' great<|im_end|>', ' dull<|im_end|>\n'])
  assert [text_of(tokenizer, ids) for ids in encoded.responses] == [' great<|im_end|>', ' dull<|im_end|>']


def test_token_that_crosses_the_boundary_belongs_to_the_response(tmp_path):
  tokenizer = load(tmp_path)
  assert len(ids_of(tokenizer, 'The film ')) == 3  # the space at the end stands alone ...
  assert len(ids_of(tokenizer, 'The film was')) == 3  # ... but is part of ' was'
  encoded = tokenizer.encode('The film ', ['was', '9'])
  assert text_of(tokenizer, encoded.prompt) == 'The film'
  assert [text_of(tokenizer, ids) for ids in encoded.responses] == [' was<|im_end|>', ' 9<|im_end|>']
  assert encoded.merged == 1
  for ids, text in zip(encoded.responses, ['was', '9'], strict=True):
    assert encoded.prompt + ids[:-1] == ids_of(tokenizer, 'The film ' + text)


def test_prompt_that_merges_away_is_an_error(tmp_path):
  tokenizer = load(tmp_path)
  assert len(ids_of(tokenizer, ' was')) == 1
  with pytest.raises(tokenization.EncodingError, match='all tokens of the prompt merge'):
    tokenizer.encode(' ', ['was', 'would'])


# --- the start of a sequence


def test_no_bos_where_the_tokenizer_adds_none(tmp_path):
  tokenizer = load(tmp_path)
  assert tokenizer.prefix == ()
  assert tokenizer.encode_prompt('The film') == ids_of(tokenizer, 'The film')


@pytest.mark.parametrize('form', ['tokenizer.json', 'tokenizer_config.json'])
def test_exactly_one_bos(tmp_path, form):
  changes = (
    {'bos_processor': True} if form == 'tokenizer.json' else {'add_bos_token': True, 'bos_token': '<|endoftext|>'}
  )
  with_bos = '{{ bos_token }}' + variants.TURNS + variants.GENERATION
  for name, template in (('with', with_bos), ('without', variants.TURNS + variants.GENERATION)):
    tokenizer = load(tmp_path / name, template=template, **changes)
    assert tokenizer.bos_id == END_OF_TEXT
    for prompt in (USER, 'The film', '<|endoftext|>The film'):
      encoded = tokenizer.encode(prompt, [' Yes', ' No'])
      for ids in encoded.responses:
        assert (encoded.prompt + ids).count(END_OF_TEXT) == 1
        assert encoded.prompt[0] == END_OF_TEXT
    assert text_of(tokenizer, tokenizer.encode_prompt(USER)) == '<|endoftext|>' + USER_TEXT


def test_flag_of_tokenizer_config_wins_over_tokenizer_json(tmp_path):
  assert load(tmp_path, bos_processor=True, add_bos_token=False).prefix == ()


def test_bos_that_only_the_template_writes(tmp_path):
  tokenizer = load(
    tmp_path, template='{{ bos_token }}' + variants.TURNS + variants.GENERATION, bos_token='<|endoftext|>'
  )
  assert tokenizer.encode_prompt(USER)[0] == END_OF_TEXT
  assert END_OF_TEXT not in tokenizer.encode_prompt('The film')


def test_space_before_the_first_word_is_not_put_before_a_response(tmp_path):
  tokenizer = tokenization.Tokenizer.load(variants.sentencepiece_style(tmp_path))
  words = {word: i for i, word in enumerate(variants.WORDS)}
  encoded = tokenizer.encode('The film', [' was', ' good'])
  assert encoded.prompt == [words['<s>'], words['▁The'], words['▁film']]
  assert encoded.responses == [[words['▁was'], words['</s>']], [words['▁good'], words['</s>']]]
  encoded = tokenizer.encode('The fi', ['lm', 'lm was'])  # '▁fi' is unknown; jointly it is '▁film'
  assert encoded.prompt == [words['<s>'], words['▁The']]
  assert encoded.responses == [[words['▁film'], words['</s>']], [words['▁film'], words['▁was'], words['</s>']]]
  assert encoded.merged == 1


# --- limits


def test_prompt_is_cut_on_the_left(tmp_path):
  tokenizer = load(tmp_path)
  whole = tokenizer.encode_prompt('The film was good')
  assert tokenizer.encode_prompt('The film was good', max_length=3) == whole[-3:]
  assert tokenizer.encode_prompt('The film was good', max_length=len(whole)) == whole


@pytest.mark.parametrize(
  'changes',
  [{'bos_processor': True}, {'template': '{{ bos_token }}' + variants.TURNS + variants.GENERATION}],
)
def test_bos_stays_in_front_of_a_cut_prompt(tmp_path, changes):
  tokenizer = load(tmp_path, **{'bos_token': '<|endoftext|>'} | changes)
  whole = tokenizer.encode_prompt(USER)
  assert whole[0] == END_OF_TEXT
  assert tokenizer.encode_prompt(USER, max_length=4) == [END_OF_TEXT, *whole[-3:]]
  with pytest.raises(ValueError, match='max_length=1: too small'):
    tokenizer.encode_prompt(USER, max_length=1)


def test_limits_stored_in_tokenizer_json_are_lifted(tmp_path):
  def limit(backend: tokenizers.Tokenizer) -> None:
    backend.enable_truncation(4)
    backend.enable_padding(length=64)

  tokenizer, free = load(tmp_path / 'a', edit=limit), load(tmp_path / 'b')
  text = 'The film was good, and the story is warm'
  assert tokenizer.encode_prompt(text) == free.encode_prompt(text)


# --- folders


def test_decode_gives_the_text_back(tmp_path):
  tokenizer = load(tmp_path)
  text = 'Naïve café \U0001f600, 12\n\tend'
  ids = tokenizer.encode_prompt(text)
  assert tokenizer.decode([*ids, END]) == text
  assert text_of(tokenizer, [*ids, END]) == text + '<|im_end|>'
  assert tokenizer.vocab_size == 384


def test_template_file_wins_and_default_is_chosen_by_name(tmp_path):
  named = [{'name': 'tools', 'template': 'no'}, {'name': 'default', 'template': variants.TURNS + variants.GENERATION}]
  folder = variants.byte_level(tmp_path, chat_template=named)
  assert text_of(*_prompt(folder)) == USER_TEXT
  (folder / 'chat_template.jinja').write_text('{{ messages[0].content }}')
  assert text_of(*_prompt(folder)) == 'The film?'


def _prompt(folder):
  tokenizer = tokenization.Tokenizer.load(folder)
  return tokenizer, tokenizer.encode_prompt(USER)


def test_messages_need_a_template(tmp_path):
  tokenizer = load(tmp_path, chat_template=None)
  assert tokenizer.encode_prompt('The film')
  with pytest.raises(ValueError, match='no chat template'):
    tokenizer.encode_prompt(USER)


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('tokenizer.json', None, 'no such file'),
    ('tokenizer.json', '{}', 'not readable as a tokenizer'),
    ('tokenizer_config.json', '[', 'not JSON'),
    ('tokenizer_config.json', '[]', 'must contain a JSON object'),
    ('tokenizer_config.json', '{"eos_token": "<nowhere>"}', 'is not in tokenizer.json'),
    ('tokenizer_config.json', '{"eos_token": "<|im_end|>", "chat_template": "{% if %}"}', 'not valid Jinja'),
    ('tokenizer_config.json', '{"eos_token": "<|im_end|>", "add_bos_token": true}', 'no bos_token'),
    ('generation_config.json', '{"eos_token_id": "2"}', 'must be a token id'),
    ('generation_config.json', DEEP, 'nested too deeply'),
    ('special_tokens_map.json', DEEP, 'nested too deeply'),
    ('tokenizer_config.json', DEEP, 'nested too deeply'),
    ('tokenizer_config.json', '{"eos_token": "<|im_end|>", "chat_template": 3}', 'must be text, not int'),
    ('tokenizer_config.json', '{"eos_token": "<|im_end|>", "chat_template": [3]}', 'the fields name and template'),
    ('tokenizer_config.json', b'\xff', 'byte 1 is not valid UTF-8'),
    ('chat_template.jinja', b'{{ messages }}\xff', 'byte 15 is not valid UTF-8'),
    ('chat_template.jinja', '{% if %}', 'not valid Jinja'),
    ('chat_template.jinja', FOLDER, 'is a folder'),
    ('chat_template.jinja', PIPE, 'is a pipe'),
    ('tokenizer.json', PIPE, 'is a pipe'),
  ],
)
def test_unusable_folder_is_refused_by_file(tmp_path, name, content, message):
  folder = variants.byte_level(tmp_path)
  (folder / name).unlink(missing_ok=True)
  if content is PIPE:
    os.mkfifo(folder / name)
  elif content is FOLDER:
    (folder / name).mkdir()
  elif content is not None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(ValueError, match=message) as caught:
    tokenization.Tokenizer.load(folder)
  assert str(folder) in str(caught.value)


def test_a_regular_expression_that_does_not_end_is_an_error_of_its_file(tmp_path):
  folder = variants.byte_level(tmp_path)
  contents = json.loads((folder / 'tokenizer.json').read_text())
  split = {'type': 'Split', 'pattern': {'Regex': '(?:a|a|a)*$'}, 'behavior': 'Isolated', 'invert': False}
  (folder / 'tokenizer.json').write_text(json.dumps(contents | {'pre_tokenizer': split}))
  tokenizer = tokenization.Tokenizer.load(folder)
  with pytest.raises(ValueError, match=r'tokenizer\.json: Onig: Regex search error'):
    tokenizer.encode_prompt('a' * 60 + '!')


def test_folder_without_an_end_token_is_refused(tmp_path):
  folder = variants.byte_level(tmp_path, eos_token=None)
  (folder / 'generation_config.json').unlink()
  with pytest.raises(ValueError, match='no end token'):
    tokenization.Tokenizer.load(folder)

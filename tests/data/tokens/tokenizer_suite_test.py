"""Exact token ids, BOS, end tokens and split for each family of tokenizers (`pytest -s` prints them)."""

import functools

import numpy as np
import pytest

from alignjax.data.batches import batching
from alignjax.data.reading import rows
from alignjax.data.tokens import encoding, tokenization
from tests.data import tokenizer_families, variants

USER = [{'role': 'user', 'content': 'The film?'}]
TALK = [*USER, {'role': 'assistant', 'content': 'No.'}, {'role': 'user', 'content': 'Oh?'}]

# piece=id of the prompt | a response | another response; what stands behind the first | is trained. Ids are worked out
# from the layout that tests/data/tokenizer_families.py describes.
CHAT = {
  'llama_2': '<s>=1 ▁=259 <0x5B>=94 INST=314 <0x5D>=96 ▁The=317 ▁film=321 <0x3F>=66 ▁=259 <0x5B>=94 <0x2F>=50 INST=314 '
  '<0x5D>=96 | ▁=259 G=292 o=274 o=274 d=263 ▁=259 </s>=2 | ▁=259 N=299 o=274 ▁=259 </s>=2',
  'llama_3': '<|begin_of_text|>=282 <|start_header_id|>=284 user=267 <|end_header_id|>=285 ĊĊ=281 The=257 Ġfilm=261 '
  '?=30 <|eot_id|>=286 <|start_header_id|>=284 assistant=275 <|end_header_id|>=285 ĊĊ=281 '
  '| G=38 o=78 o=78 d=67 <|eot_id|>=286 | N=45 o=78 <|eot_id|>=286',
  'qwen': '<|im_start|>=283 system=280 Ċ=198 H=39 e=68 l=75 p=79 .=13 <|im_end|>=284 Ċ=198 <|im_start|>=283 user=267 '
  'Ċ=198 The=257 Ġfilm=261 ?=30 <|im_end|>=284 Ċ=198 <|im_start|>=283 assistant=275 Ċ=198 '
  '| G=38 o=78 o=78 d=67 <|im_end|>=284 | N=45 o=78 <|im_end|>=284',
  # The prompt to sample from ends with <think>=285 Ċ=198; with the new line that follows it, that is ĊĊ=281.
  'qwen_thinking': '<|im_start|>=283 user=267 Ċ=198 The=257 Ġfilm=261 ?=30 <|im_end|>=284 Ċ=198 <|im_start|>=283 '
  'assistant=275 Ċ=198 <think>=285 | ĊĊ=281 </think>=286 ĊĊ=281 G=38 o=78 o=78 d=67 <|im_end|>=284 '
  '| ĊĊ=281 </think>=286 ĊĊ=281 N=45 o=78 <|im_end|>=284',
  'gemma': '<bos>=2 <start_of_turn>=4 user=318 ⏎=262 T=309 h=271 e=268 ▁film=326 <0x3F>=69 <end_of_turn>=5 ⏎=262 '
  '<start_of_turn>=4 model=322 ⏎=262 | G=296 o=278 o=278 d=267 <end_of_turn>=5 | N=303 o=278 <end_of_turn>=5',
  'mistral': '<s>=1 <0x5B>=94 INST=314 <0x5D>=96 ▁The=317 ▁film=321 <0x3F>=66 ▁=259 <0x5B>=94 <0x2F>=50 INST=314 '
  '<0x5D>=96 | ▁=259 G=292 o=274 o=274 d=263 </s>=2 | ▁=259 N=299 o=274 </s>=2',
  'zephyr': '<s>=1 ▁=259 <0x3C>=63 <0x7C>=127 user=327 <0x7C>=127 <0x3E>=65 <0x0A>=13 T=305 h=267 e=264 ▁film=321 '
  '<0x3F>=66 </s>=2 ▁=259 <0x0A>=13 <0x3C>=63 <0x7C>=127 assistant=335 <0x7C>=127 <0x3E>=65 <0x0A>=13 '
  '| G=292 o=274 o=274 d=263 </s>=2 | N=299 o=274 </s>=2',
}
PLAIN = {
  'llama_2': '<s>=1 ▁The=317 ▁film=321 | ▁was=324 </s>=2 | <0x39>=60 ▁=259 <0xC3>=198 <0xA9>=172 </s>=2',
  'llama_3': '<|begin_of_text|>=282 The=257 Ġfilm=261 | Ġwas=264 <|end_of_text|>=283 '
  '| 9=24 Ġ=220 Ã=127 ©=102 <|end_of_text|>=283',
  'qwen': 'The=257 Ġfilm=261 | Ġwas=264 <|im_end|>=284 | 9=24 Ġ=220 Ã=127 ©=102 <|im_end|>=284',
  'qwen_thinking': 'The=257 Ġfilm=261 | Ġwas=264 <|im_end|>=284 | 9=24 Ġ=220 Ã=127 ©=102 <|im_end|>=284',
  'gpt_2': 'The=257 Ġfilm=261 | Ġwas=264 <|endoftext|>=282 | 9=24 Ġ=220 Ã=127 ©=102 <|endoftext|>=282',
  'gemma': '<bos>=2 T=309 h=271 e=268 ▁film=326 | ▁=263 w=286 a=264 s=282 <eos>=1 '
  '| <0x39>=63 ▁=263 <0xC3>=201 <0xA9>=175 <eos>=1',
  'mistral': '<s>=1 ▁The=317 ▁film=321 | ▁was=324 </s>=2 | <0x39>=60 ▁=259 <0xC3>=198 <0xA9>=172 </s>=2',
  # 'm' belongs to both responses, because one of them makes 'm w' of it.
  'unsplit': 'The=259 Ġ=220 f=69 i=72 l=75 | mĠw=257 a=64 s=82 <end>=260 | m=76 9=24 Ġ=220 Ã=127 ©=102 <end>=260',
  'zephyr': '<s>=1 ▁The=317 ▁film=321 | ▁was=324 </s>=2 | <0x39>=60 ▁=259 <0xC3>=198 <0xA9>=172 </s>=2',
}
# What the template writes around 'The film?' and an answer, up to the end of the answer's turn.
CHAT_TEXT = {
  'llama_2': '<s>[INST] The film? [/INST] {} </s>',
  'llama_3': '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nThe film?<|eot_id|>'
  '<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>',
  'qwen': '<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\nThe film?<|im_end|>\n'
  '<|im_start|>assistant\n{}<|im_end|>',
  'qwen_thinking': '<|im_start|>user\nThe film?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n{}<|im_end|>',
  'gemma': '<bos><start_of_turn>user\nThe film?<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn>',
  'mistral': '<s>[INST] The film? [/INST] {}</s>',
  'zephyr': '<s><|user|>\nThe film?</s>\n<|assistant|>\n{}</s>',
}
BOS = {'llama_2': '<s>', 'llama_3': '<|begin_of_text|>', 'gemma': '<bos>', 'mistral': '<s>', 'zephyr': '<s>'}
EOS = {
  **dict.fromkeys(('llama_2', 'mistral', 'zephyr'), '</s>'),
  **dict.fromkeys(('qwen', 'qwen_thinking'), '<|im_end|>'),
  'llama_3': '<|end_of_text|>',
  'gpt_2': '<|endoftext|>',
  'gemma': '<eos>',
  'unsplit': '<end>',
}
TURN_END = {**EOS, 'llama_3': '<|eot_id|>', 'gemma': '<end_of_turn>'}
ANSWERS = ['Good', 'No', 'Naïve café \U0001f600: 12\n\tthe film was it']

chat = pytest.mark.parametrize('name', CHAT)
every = pytest.mark.parametrize('name', PLAIN)


@pytest.fixture(scope='module')
def load(tmp_path_factory):
  """A function from a family's name to its tokenizer."""
  folder = tmp_path_factory.mktemp('families')
  return functools.cache(lambda name: tokenization.Tokenizer.load(tokenizer_families.write(folder / name, name)))


def piece(tokenizer, token) -> str:
  return tokenizer.backend.id_to_token(token).replace('\n', '⏎')


def table(tokenizer, encoded) -> str:
  """One line a token: its place, whether it is trained, its id, its piece."""
  lines = []
  for number, response in enumerate(encoded.responses):
    lines.append(f'response {number}\n place mask     id  piece')
    for place, token in enumerate([*encoded.prompt, *response]):
      trained = int(place >= len(encoded.prompt))
      lines.append(f'{place:6} {trained:4} {token:6}  {piece(tokenizer, token)}')
  return '\n'.join(lines)


def line(tokenizer, encoded) -> str:
  groups = [encoded.prompt, *encoded.responses]
  return ' | '.join(' '.join(f'{piece(tokenizer, token)}={token}' for token in ids) for ids in groups)


def requests(name):
  """A prompt and its responses in the forms that the family takes."""
  plain = [('The film', [' was', '9 é']), ('The film?\n', ANSWERS)]
  return plain + ([(USER, ANSWERS), (TALK, ANSWERS)] if name in CHAT else [])


# --- literal ids


@chat
def test_chat_ids_and_mask(load, name):
  tokenizer = load(name)
  encoded = tokenizer.encode(USER, ['Good', 'No'])
  print(f'\n{name}, chat\n{table(tokenizer, encoded)}')
  assert line(tokenizer, encoded) == CHAT[name]


@every
def test_plain_ids_and_mask(load, name):
  tokenizer = load(name)
  encoded = tokenizer.encode('The film', [' was', '9 é'])
  print(f'\n{name}, plain\n{table(tokenizer, encoded)}')
  assert line(tokenizer, encoded) == PLAIN[name]


# --- the start


@every
def test_one_bos_where_the_family_has_one(load, name):
  tokenizer = load(name)
  bos = BOS.get(name)
  if bos is None:
    assert tokenizer.prefix == ()
    assert all(tokenizer.bos_id not in tokenizer.encode_prompt(prompt) for prompt, _ in requests(name))
    return
  bos_id = tokenizer.backend.token_to_id(bos)
  assert tokenizer.prefix == (bos_id,)
  for prompt, responses in [*requests(name), (f'{bos}The film', [' was', ' no'])]:
    encoded = tokenizer.encode(prompt, responses)
    turns = 2 if name == 'llama_2' and prompt is TALK else 1  # a Llama 2 starts every exchange with BOS
    for ids in encoded.responses:
      assert encoded.prompt[0] == bos_id
      assert [*encoded.prompt, *ids].count(bos_id) == turns


@every
def test_cut_prompt_keeps_bos_and_its_end(load, name):
  tokenizer = load(name)
  start = list(tokenizer.prefix)
  for prompt, _ in requests(name):
    whole = tokenizer.encode_prompt(prompt)
    for limit in (len(start) + 1, len(whole) - 1):
      cut = tokenizer.encode_prompt(prompt, max_length=limit)
      assert cut == start + whole[len(whole) - limit + len(start) :]
      assert len(cut) == limit


def test_cut_right_before_a_turn_that_bos_opens_has_one_bos(load):
  tokenizer = load('llama_2')
  bos, whole = tokenizer.bos_id, tokenizer.encode_prompt(TALK)
  second = whole.index(bos, 1)
  turns = whole[second:]
  assert tokenizer.encode_prompt(TALK, max_length=len(turns) + 1) == turns
  assert tokenizer.encode_prompt(TALK, max_length=len(turns)) == [bos, *turns[1:]]
  assert tokenizer.encode_prompt(TALK, max_length=len(turns) + 2) == [bos, whole[second - 1], *turns]


def test_a_token_that_starts_every_turn_is_not_put_before_a_cut_prompt(tmp_path):
  chatml = tokenization.Tokenizer.load(variants.byte_level(tmp_path))
  assert chatml.prefix == ()  # its bos_token is <|im_start|>, which the template writes
  whole = chatml.encode_prompt(TALK)
  assert whole[0] == chatml.bos_id
  for limit in range(2, len(whole)):
    assert chatml.encode_prompt(TALK, max_length=limit) == whole[-limit:]


# --- the end


@every
def test_end_token_once_and_trained(load, name):
  tokenizer = load(name)
  for prompt, responses in requests(name):
    end = EOS[name] if isinstance(prompt, str) else TURN_END[name]
    encoded = tokenizer.encode(prompt, responses)
    for ids in encoded.responses:
      assert ids[-1] == tokenizer.backend.token_to_id(end)
      assert tokenizer.end_ids.isdisjoint(ids[:-1])
    assert not encoded.end_inside
    assert encoded.end_added == isinstance(prompt, str)


@chat
def test_turn_ends_without_a_word_from_generation_config(tmp_path, name):
  folder = tokenizer_families.write(tmp_path, name)
  (folder / 'generation_config.json').unlink()
  tokenizer = tokenization.Tokenizer.load(folder)
  assert tokenizer.end_ids == {tokenizer.backend.token_to_id(token) for token in (EOS[name], TURN_END[name])}
  assert line(tokenizer, tokenizer.encode(USER, ['Good', 'No'])) == CHAT[name]


@every
def test_mask_counts_the_end_token_whatever_pads(load, name):
  tokenizer = load(name)
  prompt, responses = requests(name)[-1]
  limits = encoding.Limits(96, 96, tokenizer.vocab_size)
  tokenized = encoding.tokenize([rows.Example(prompt, (responses[0], responses[-1]))], tokenizer, limits)
  batches = batching.make_batches(tokenized, batching.BatchSpec(batch_size=1, epochs=1, buckets=[(96, 96)]))
  data = next(iter(batches)).data
  mask = np.arange(data.response.shape[-1]) < data.response_length[..., None]
  for i, expected in enumerate(tokenizer.encode(prompt, [responses[0], responses[-1]]).responses):
    assert data.response[0, i][mask[0, i]].tolist() == expected
    assert mask[0, i].sum() < mask.shape[-1]  # there is padding
  assert (tokenizer.pad_id == tokenizer.eos_id) == (name not in ('qwen', 'qwen_thinking', 'gemma'))


# --- prompt and response together


@chat
def test_chat_pair_is_the_tokens_of_the_whole_text(load, name):
  tokenizer = load(name)
  encoded = tokenizer.encode(USER, ANSWERS)
  for ids, answer in zip(encoded.responses, ANSWERS, strict=True):
    text = CHAT_TEXT[name].format(answer)
    assert encoded.prompt + ids == tokenizer.backend.encode(text, add_special_tokens=False).ids


@every
def test_plain_pair_is_the_tokens_of_the_whole_text(load, name):
  tokenizer = load(name)
  for prompt, responses in requests(name)[:2]:
    encoded = tokenizer.encode(prompt, responses)
    for ids, response in zip(encoded.responses, responses, strict=True):
      joint = tokenizer.backend.encode(prompt + response, add_special_tokens=False).ids
      assert encoded.prompt + ids == [*tokenizer.prefix, *joint, tokenizer.eos_id]


@every
def test_training_conditions_on_a_prefix_of_what_sampling_sees(load, name):
  tokenizer = load(name)
  for prompt, responses in requests(name):
    encoded, sampled = tokenizer.encode(prompt, responses), tokenizer.encode_prompt(prompt)
    assert sampled[: len(encoded.prompt)] == encoded.prompt
    assert len(sampled) - len(encoded.prompt) == encoded.merged


@every
def test_merges_across_the_boundary_are_counted(load, name):
  tokenizer = load(name)
  forms = [rows.Example('The film', (' was', '9')), rows.Example('The fil', ('9', '8'))]
  if name in CHAT:
    forms.append(rows.Example(USER, ('Good', 'No')))
  limits = encoding.Limits(64, 64, tokenizer.vocab_size)
  noted = [
    encoding.tokenize([pair], tokenizer, limits).report.noted.get('boundary_merge') is not None for pair in forms
  ]
  # 'm w' is one token of the unsplit text; a new line after <think> becomes part of a double one.
  assert noted == [name == 'unsplit', False, name == 'qwen_thinking'][: len(forms)]


# --- back to text


@every
def test_decoding_gives_the_text_back(load, name):
  tokenizer = load(name)
  for prompt, responses in requests(name)[:2]:
    encoded = tokenizer.encode(prompt, responses)
    for ids, response in zip(encoded.responses, responses, strict=True):
      assert tokenizer.decode(encoded.prompt + ids) == prompt + response
  if name in CHAT:
    whole = [tokenizer.decode(ids, continues=True) for ids in tokenizer.encode(USER, ANSWERS).responses]
    head = '\n\n</think>\n\n' if name == 'qwen_thinking' else ''
    assert [text.removeprefix(head).strip() for text in whole] == ANSWERS


@every
def test_decoded_response_continues_its_prompt(load, name):
  tokenizer = load(name)
  responses = [' was', '9 é', '  two', 'x']
  encoded = tokenizer.encode('The fil', responses)
  assert tokenizer.decode(encoded.prompt) == 'The fil'
  assert [tokenizer.decode(ids, continues=True) for ids in encoded.responses] == responses
  assert tokenizer.decode([], continues=True) == ''
  ended = tokenizer.decode(encoded.responses[0], continues=True, skip_special_tokens=False)
  assert ended == ' was' + EOS[name]


# --- what only one family does


def test_prompt_that_a_system_message_starts(load):
  system = [{'role': 'system', 'content': 'Oh'}, *USER]
  qwen, gemma = load('qwen'), load('gemma')
  assert qwen.decode(qwen.encode_prompt(system)[:4], skip_special_tokens=False) == '<|im_start|>system\nO'
  with pytest.raises(tokenization.EncodingError, match='System role not supported') as refused:
    gemma.encode_prompt(system)
  assert refused.value.reason == 'template_refused'


def test_space_of_the_template_is_the_responses(load):
  for name, response in (('llama_2', ' Good '), ('mistral', ' Good'), ('gemma', 'Good')):
    tokenizer = load(name)
    assert tokenizer.decode(tokenizer.encode(USER, ['Good']).responses[0], continues=True) == response


def test_prefix_space_stands_before_a_text_and_never_before_a_response(load):
  for name in ('llama_2', 'mistral', 'zephyr'):
    tokenizer = load(name)
    assert [piece(tokenizer, token) for token in tokenizer.encode_prompt('film')] == ['<s>', '▁film']
    encoded = tokenizer.encode('The', ['film', ' film'])
    assert [piece(tokenizer, ids[0]) for ids in encoded.responses] == ['f', '▁film']
  # After a special token, Llama 2's normaliser puts a space, and Mistral's does not.
  after = {name: load(name).encode_prompt('<s>film') for name in ('llama_2', 'mistral')}
  assert [piece(load('llama_2'), token) for token in after['llama_2']] == ['<s>', '▁film']
  assert [piece(load('mistral'), token) for token in after['mistral']] == ['<s>', 'f', 'i', 'l', 'm']


def test_flag_of_tokenizer_config_takes_the_bos_away(tmp_path):
  tokenizer = tokenization.Tokenizer.load(tokenizer_families.write(tmp_path, 'llama_3', add_bos_token=False))
  assert [piece(tokenizer, token) for token in tokenizer.encode_prompt('The film')] == ['The', 'Ġfilm']
  assert tokenizer.encode_prompt(USER)[0] == tokenizer.bos_id  # the template writes it


def test_base_model_with_a_chat_template_of_tokens_it_lacks(tmp_path):
  folder = tokenizer_families.write(tmp_path, 'gpt_2')
  (folder / 'chat_template.jinja').write_text(variants.TURNS + variants.GENERATION)
  tokenizer = tokenization.Tokenizer.load(folder)
  encoded = tokenizer.encode(USER, ['Good', 'No'])
  assert encoded.end_added
  assert tokenizer.decode(encoded.responses[0], skip_special_tokens=False) == 'Good<|im_end|>\n<|endoftext|>'

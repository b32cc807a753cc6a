"""Tests of `alignjax.doctor`: each fault gives its own finding and no other, and sound data gives none."""

import functools
import itertools
import json

import pytest

from alignjax.data.tokens import dataset, tokenization
from alignjax.doctor import examples, findings, tokenizers
from tests.data import tokenizer_families, variants
from tests.doctor import sound_examples

ERROR, WARNING, NOTE = findings.SEVERITIES


@pytest.fixture(scope='module')
def load(tmp_path_factory):
  folder = tmp_path_factory.mktemp('families')
  return functools.cache(lambda name: tokenization.Tokenizer.load(tokenizer_families.write(folder / name, name)))


@pytest.fixture(scope='module')
def tokenizer(load):
  return load('llama_3')


@pytest.fixture(scope='module')
def sound(tokenizer):
  """Rows of token ids with nothing wrong."""
  return list(sound_examples.tokenize(sound_examples.texts(chat=True), tokenizer))


# --- sound


@pytest.mark.parametrize('name', tokenizer_families.FAMILIES)
def test_sound_data_have_no_fault(load, name):
  tokenizer = load(name)
  assert sound_examples.faults(tokenizers.examine(tokenizer, vocab_size=tokenizer.vocab_size)) == {}
  for chat in (False, True)[: 1 if tokenizer.template is None else 2]:
    findings = examples.examine(
      sound_examples.tokenize(sound_examples.texts(chat=chat), tokenizer),
      tokenizer,
      vocab_size=tokenizer.vocab_size,
      max_positions=128,
    )
    # What this family's generation prompt opens, and its answers go on with, is one token when they stand together.
    merges = name == 'qwen_thinking' and chat
    expected = {'boundary_merges': WARNING} if merges else {}
    spelt = ('llama_2', 'mistral')  # their templates mark questions with plain text
    if not chat and tokenizer.turn_end_id is not None and name not in spelt:
      expected = {'template_unused': WARNING}
    assert sound_examples.faults(findings) == expected


def test_sound_data_of_a_chatml_tokenizer_whose_bos_opens_turns(tmp_path):
  tokenizer = tokenization.Tokenizer.load(variants.byte_level(tmp_path))
  assert sound_examples.faults(tokenizers.examine(tokenizer, vocab_size=384)) == {}
  for chat in (False, True):
    for max_prompt in (64, 16):
      pairs = sound_examples.tokenize(sound_examples.texts(chat=chat), tokenizer, max_prompt=max_prompt)
      faults = sound_examples.faults(examples.examine(pairs, tokenizer, vocab_size=384))
      expected = {'prompts_cut': ERROR} if chat and max_prompt == 16 else {}
      assert faults == (expected if chat else {'template_unused': WARNING})


def test_sound_data_with_other_numbers_of_responses(tokenizer, sound):
  assert sound_examples.faults_of(sound_examples.unpaired(sound), tokenizer) == {}
  assert (
    sound_examples.faults_of(
      [row._replace(responses=[*row.responses, [30, sound_examples.END]]) for row in sound], tokenizer
    )
    == {}
  )


# --- token ids


def test_second_bos(tokenizer, sound):
  edits = {
    'doubled': lambda row: row._replace(prompt=[sound_examples.BOS, *row.prompt]),
    'within': lambda row: row._replace(prompt=[*row.prompt, sound_examples.BOS, 30]),
    'response': lambda row: row._replace(responses=[row.responses[0], [sound_examples.BOS, *row.responses[1]]]),
  }
  for edit in edits.values():
    findings = sound_examples.examine(sound_examples.some(sound, edit, 0.5), tokenizer)
    assert sound_examples.faults(findings) == {'double_bos': ERROR}
    seen = "100 of 200 examples (50.0%) have a second '<|begin_of_text|>' (282), within the prompt or in a response"
    assert sound_examples.named(findings, 'double_bos').seen == seen + '; the first is train.jsonl:101'
    assert sound_examples.faults_of(sound_examples.some(sound, edit, 1 / sound_examples.COUNT), tokenizer) == {
      'double_bos': WARNING
    }


def test_second_bos_where_every_exchange_starts_with_one(load):
  tokenizer = load('llama_2')
  start = [{'role': 'user', 'content': 'Oh'}, {'role': 'assistant', 'content': 'Yes'}]
  pairs = sound_examples.tokenize(
    [pair._replace(prompt=start + pair.prompt) for pair in sound_examples.texts(chat=True)], tokenizer
  )
  assert pairs[0].prompt.tolist().count(tokenizer.bos_id) == 2
  assert sound_examples.faults_of(pairs, tokenizer, vocab_size=336) == {}
  doubled = [row._replace(prompt=[1, *row.prompt]) for row in pairs]
  assert sound_examples.faults_of(doubled, tokenizer, vocab_size=336) == {'double_bos': ERROR}


def test_bos_that_is_also_the_end_may_part_texts_of_a_prompt(tmp_path):
  tokenizer = tokenization.Tokenizer.load(tokenizer_families.write(tmp_path, 'gpt_2', add_bos_token=True))
  parted = [pair._replace(prompt=f'Oh.<|endoftext|>{pair.prompt}') for pair in sound_examples.texts()]
  assert sound_examples.faults_of(sound_examples.tokenize(parted, tokenizer), tokenizer) == {}
  doubled = [pair._replace(prompt=f'<|endoftext|><|endoftext|>{pair.prompt}') for pair in sound_examples.texts()]
  assert sound_examples.faults_of(sound_examples.tokenize(doubled, tokenizer), tokenizer) == {'double_bos': ERROR}


def test_missing_bos(tokenizer, sound):
  findings = sound_examples.examine([row._replace(prompt=row.prompt[1:]) for row in sound], tokenizer)
  assert sound_examples.faults(findings) == {'missing_bos': ERROR}


def test_end_that_is_not_trained(tokenizer, sound):
  def cut(row):
    return row._replace(responses=[row.responses[0], row.responses[1][:-1]])

  assert sound_examples.faults_of(sound_examples.some(sound, cut, 1.0), tokenizer) == {'untrained_end': ERROR}
  assert sound_examples.faults_of(sound_examples.some(sound, cut, 0.1), tokenizer) == {'untrained_end': WARNING}
  assert sound_examples.faults_of(sound_examples.some(sound, cut, 0.02), tokenizer) == {}
  pairs = sound_examples.tokenize(sound_examples.texts(), tokenizer, max_response=4, truncate_response=True)
  findings = examples.examine(pairs, tokenizer, vocab_size=sound_examples.VOCABULARY)
  assert sound_examples.named(findings, 'untrained_end').severity == ERROR


def test_end_token_within_a_response(tokenizer, sound):
  def close_twice(row):
    return row._replace(responses=[[*row.responses[0], sound_examples.END], row.responses[1]])

  assert sound_examples.faults_of(sound_examples.some(sound, close_twice, 1.0), tokenizer) == {
    'end_token_inside': ERROR
  }
  assert sound_examples.faults_of(sound_examples.some(sound, close_twice, 0.1), tokenizer) == {
    'end_token_inside': WARNING
  }


def test_ids_that_the_embedding_has_not(tokenizer, sound):
  for side in ('prompt', 'responses'):
    for token in (sound_examples.VOCABULARY, -1):
      edit = {
        'prompt': lambda row, token=token: row._replace(prompt=[*row.prompt, token]),
        'responses': lambda row, token=token: row._replace(responses=[row.responses[0], [token, *row.responses[1]]]),
      }[side]
      findings = sound_examples.examine(sound_examples.some(sound, edit, 1 / sound_examples.COUNT), tokenizer)
      assert sound_examples.faults(findings) == {'outside_vocabulary': ERROR}
      assert sound_examples.named(findings, 'outside_vocabulary').seen.endswith('the first is train.jsonl:200')


def test_sequences_beyond_the_positions_of_the_model(tokenizer, sound):
  longest = max(len(row.prompt) + max(map(len, row.responses)) for row in sound)
  assert sound_examples.faults_of(sound, tokenizer, max_positions=longest - 1) == {}  # the last token is no input
  findings = sound_examples.examine(sound, tokenizer, max_positions=longest - 2)
  assert sound_examples.faults(findings) == {'beyond_positions': ERROR}
  assert f'up to {longest} tokens' in sound_examples.named(findings, 'beyond_positions').seen


# --- the report


def test_rows_that_were_dropped_or_cut(tokenizer):
  def long(share):
    return [
      pair._replace(responses=('so' * 99, 'no')) if pair.line > (1 - share) * sound_examples.COUNT else pair
      for pair in sound_examples.texts()
    ]

  def check(pairs, **options):
    data = sound_examples.tokenize(pairs, tokenizer, **options)
    found = examples.examine(data, tokenizer, vocab_size=sound_examples.VOCABULARY)
    return [finding for finding in found if finding.name != 'template_unused']

  assert sound_examples.faults(check(long(0.04))) == {}
  assert sound_examples.named(check(long(0.04)), 'responses_dropped').severity == NOTE
  findings = check(long(0.1))
  assert sound_examples.faults(findings) == {'responses_dropped': WARNING}
  assert sound_examples.named(findings, 'responses_dropped').seen.startswith('20 of 200 (10.0%) rows dropped')
  assert 'train.jsonl:181' in sound_examples.named(findings, 'responses_dropped').seen
  assert sound_examples.faults(check(long(0.6))) == {'responses_dropped': ERROR}
  same = [pair._replace(responses=('so', 'so')) if pair.line <= 20 else pair for pair in sound_examples.texts()]
  assert sound_examples.faults(check(same)) == {'rows_dropped': WARNING}
  assert 'identical_responses at train.jsonl:1:' in sound_examples.named(check(same), 'rows_dropped').seen
  assert sound_examples.faults(check(sound_examples.texts(), max_prompt=6)) == {'prompts_cut': ERROR}
  wordy = [
    pair._replace(prompt='Oh ' * 30 + str(pair.line)) if pair.line <= 20 else pair for pair in sound_examples.texts()
  ]
  assert sound_examples.faults(check(wordy, max_prompt=32)) == {'prompts_cut': WARNING}


def test_prompts_that_merge_with_their_responses(load):
  tokenizer = load('gpt_2')
  pairs = [pair._replace(responses=('was', 'film')) for pair in sound_examples.texts(ending=' ')]
  findings = examples.examine(sound_examples.tokenize(pairs, tokenizer), tokenizer, vocab_size=283)
  assert sound_examples.faults(findings) == {'boundary_merges': WARNING}
  half = [pair._replace(prompt=pair.prompt.strip()) if pair.line <= 100 else pair for pair in pairs]
  findings = examples.examine(sound_examples.tokenize(half, tokenizer), tokenizer, vocab_size=283)
  assert sound_examples.named(findings, 'boundary_merges').severity == NOTE


# --- evaluation and training


def test_evaluation_that_was_trained_on(sound):
  train, rest = sound[:150], sound[150:]

  def split(rows):
    return examples.examine_split(dataset.pack(train), dataset.pack(rows))

  assert split(rest) == []
  findings = split([*rest, train[3], train[4]._replace(responses=train[4].responses[::-1])])
  assert sound_examples.faults(findings) == {'shared_examples': WARNING}
  assert sound_examples.named(findings, 'shared_examples').seen.startswith(
    '2 of 52 examples (3.8%) are also training examples'
  )
  findings = split([*rest, train[3]._replace(responses=rest[0].responses)])
  assert sound_examples.faults(findings) == {'shared_prompts': WARNING}
  assert sound_examples.named(findings, 'shared_prompts').seen.endswith('the first is train.jsonl:4')
  single = [train[3]._replace(responses=train[3].responses[:1])]
  assert sound_examples.faults(split(single)) == {'shared_prompts': WARNING}


# --- the tokenizer


def examine_folder(folder, name, *, template=None, end_ids=None, edit=None, rows=None, **config):
  folder = tokenizer_families.write(folder, name, **config)
  if template is not None:
    (folder / 'chat_template.jinja').write_text(template)
  if end_ids is not None:
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': end_ids}))
  if edit is not None:
    variants.edit_json(folder / 'tokenizer.json', **edit(json.loads((folder / 'tokenizer.json').read_text())))
  tokenizer = tokenization.Tokenizer.load(folder)
  return tokenizers.examine(tokenizer, vocab_size=rows or tokenizer.vocab_size)


def lose_a_merge(content):
  """'user' stays in the vocabulary, but nothing makes it."""
  content['model']['merges'] = [merge for merge in content['model']['merges'] if ''.join(merge) != 'user']
  return {'model': content['model']}


TWO_BOS = '{{ bos_token }}' + variants.TURNS + '{{ bos_token }}'


@pytest.mark.parametrize(
  ('family', 'changes', 'expected', 'seen'),
  [
    ('qwen', {'end_ids': [284, 400]}, {'unknown_special_id': WARNING}, '400'),
    ('qwen', {'end_ids': [284, 285], 'rows': 290}, {'unknown_special_id': WARNING, 'unused_rows': NOTE}, 'id 285'),
    ('qwen', {'rows': 284}, {'unknown_special_id': ERROR, 'embedding_too_small': WARNING}, 'id 284'),
    ('qwen', {'rows': 400}, {'unused_rows': WARNING}, 'ids up to 284, the embedding has 400 rows'),
    ('qwen', {'rows': 288}, {'unused_rows': NOTE}, '288 rows'),
    (
      'llama_3',
      {'template': TWO_BOS},
      {'template_bos': ERROR, 'template_place': NOTE},
      "'<|begin_of_text|>' (282) 2 times",
    ),
    (
      'llama_3',
      {},
      {'turn_end_is_not_eos': NOTE},
      "ends turns with '<|eot_id|>' (286), eos_token is '<|end_of_text|>'",
    ),
    ('llama_3', {'end_ids': []}, {'turn_end_is_not_eos': NOTE}, "ends turns with '<|eot_id|>' (286)"),
    ('llama_3', {'end_ids': 283}, {'generation_goes_on': WARNING}, "end with '<|eot_id|>' (286), but"),
    (
      'gpt_2',
      {'template': variants.TURNS},
      {'turn_end_is_text': WARNING},
      "turns with '<|im_end|>', which is not a special",
    ),
    (
      'gpt_2',
      {'template': '{{ messages | map(attribute="content") | join(" ") }}'},
      {'template_without_end': NOTE},
      'no',
    ),
    ('zephyr', {}, {'pad_is_end': NOTE}, "'</s>' (2) is both the pad token and an end"),
    (
      'qwen',
      {'edit': lose_a_merge},
      {'unreachable_tokens': NOTE},
      "1 of 285 tokens are not created by any merge, such as 'user'",
    ),
  ],
)
def test_tokenizer(tmp_path, family, changes, expected, seen):
  findings = examine_folder(tmp_path, family, **changes)
  got = {finding.name: finding.severity for finding in findings}
  harmless = {'pad_is_end', 'turn_end_is_not_eos'}  # of the family as it is
  assert {name: severity for name, severity in got.items() if name not in harmless - expected.keys()} == expected
  assert seen in sound_examples.named(findings, next(iter(expected))).seen


def test_every_finding_says_what_to_do(tokenizer, sound):
  broken = [row._replace(prompt=[*row.prompt[1:], 400], label=2.0, weight=-1.0) for row in sound]
  findings = sound_examples.examine(broken + broken, tokenizer, max_positions=3)
  assert len(findings) >= 6
  for finding, other in itertools.combinations(findings, 2):
    assert finding.advice
    assert finding.name != other.name

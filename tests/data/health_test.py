"""Tests of `alignjax.data.health`: each fault is named, it alone, and sound data have none."""

import itertools
import json

import numpy as np
import pytest

from alignjax.data import health, preference_checks, sources, tokenization
from alignjax.data import pairs as pairs_lib
from alignjax.data.findings import ERROR, NOTE, WARNING
from tests.data import tokenizer_families, variants

COUNT = 200
BOS, END = 282, 286  # <|begin_of_text|> and <|eot_id|> of llama_3
VOCABULARY = 287


@pytest.fixture(scope='module')
def load(tmp_path_factory):
  folder = tmp_path_factory.mktemp('families')
  return lambda name: tokenization.Tokenizer.load(tokenizer_families.write(folder / name, name))


@pytest.fixture(scope='module')
def tokenizer(load):
  return load('llama_3')


@pytest.fixture(scope='module')
def sound(tokenizer):
  """Rows of token ids with nothing wrong."""
  return list(tokenize(texts(chat=True), tokenizer))


def texts(count=COUNT, chat=False, ending='?'):
  """Pairs of which either response is the longer one by turns."""
  for i in range(count):
    prompt, responses = f'The film {i}{ending}', (f' was it {i}', f' no {i}')
    prompt = [{'role': 'user', 'content': prompt}] if chat else prompt
    yield sources.Pair(prompt, responses if i % 2 else responses[::-1], path='train.jsonl', line=i + 1)


def tokenize(pairs, tokenizer, **options):
  options = {'max_prompt': 64, 'max_response': 64, 'vocab_size': tokenizer.vocab_size} | options
  return pairs_lib.tokenize(pairs, tokenizer, **options)


def faults(findings):
  """What is more than a note, worst or not."""
  return {finding.name: finding.severity for finding in findings if finding.severity != NOTE}


def named(findings, name):
  return next(finding for finding in findings if finding.name == name)


def examine(rows, tokenizer, **options):
  return health.examine_pairs(pairs_lib.pack(rows), tokenizer, **{'vocab_size': VOCABULARY} | options)


def some(rows, edit, share):
  """Edits the last `share` of the rows."""
  first = round((1 - share) * len(rows))
  return rows[:first] + [edit(row) for row in rows[first:]]


# --- sound


@pytest.mark.parametrize('name', tokenizer_families.FAMILIES)
def test_sound_data_have_no_fault(load, name):
  tokenizer = load(name)
  assert faults(health.examine_tokenizer(tokenizer, vocab_size=tokenizer.vocab_size)) == {}
  for chat in (False, True)[: 1 if tokenizer.template is None else 2]:
    findings = health.examine_pairs(
      tokenize(texts(chat=chat), tokenizer), tokenizer, vocab_size=tokenizer.vocab_size, max_positions=128
    )
    # What this family's generation prompt opens, and its answers go on with, is one token when they stand together.
    merges = name == 'qwen_thinking' and chat
    assert faults(findings) == ({'boundary_merges': WARNING} if merges else {})


def test_sound_data_with_other_numbers_of_responses(tokenizer, sound):
  assert faults(examine(unpaired(sound), tokenizer)) == {}
  assert faults(examine([row._replace(responses=[*row.responses, [30, END]]) for row in sound], tokenizer)) == {}


def unpaired(rows):
  """The first responses, two thirds of them desirable."""
  return [row._replace(responses=row.responses[:1], label=float(row.line % 3 > 0)) for row in rows]


# --- token ids


def test_second_bos(tokenizer, sound):
  edits = {
    'doubled': lambda row: row._replace(prompt=[BOS, *row.prompt]),
    'within': lambda row: row._replace(prompt=[*row.prompt, BOS, 30]),
    'response': lambda row: row._replace(responses=[row.responses[0], [BOS, *row.responses[1]]]),
  }
  for edit in edits.values():
    findings = examine(some(sound, edit, 0.5), tokenizer)
    assert faults(findings) == {'double_bos': ERROR}
    seen = "100 of 200 pairs (50.0%) have a second '<|begin_of_text|>' (282), within the prompt or in a response"
    assert named(findings, 'double_bos').seen == seen + '; the first is train.jsonl:101'
    assert faults(examine(some(sound, edit, 1 / COUNT), tokenizer)) == {'double_bos': WARNING}


def test_second_bos_where_every_exchange_starts_with_one(load):
  tokenizer = load('llama_2')
  start = [{'role': 'user', 'content': 'Oh'}, {'role': 'assistant', 'content': 'Yes'}]
  pairs = tokenize([pair._replace(prompt=start + pair.prompt) for pair in texts(chat=True)], tokenizer)
  assert pairs[0].prompt.tolist().count(tokenizer.bos_id) == 2
  assert faults(examine(pairs, tokenizer, vocab_size=336)) == {}
  doubled = [row._replace(prompt=[1, *row.prompt]) for row in pairs]
  assert faults(examine(doubled, tokenizer, vocab_size=336)) == {'double_bos': ERROR}


def test_missing_bos(tokenizer, sound):
  findings = examine([row._replace(prompt=row.prompt[1:]) for row in sound], tokenizer)
  assert faults(findings) == {'missing_bos': ERROR}


def test_end_that_is_not_trained(tokenizer, sound):
  def cut(row):
    return row._replace(responses=[row.responses[0], row.responses[1][:-1]])

  assert faults(examine(some(sound, cut, 1.0), tokenizer)) == {'untrained_end': ERROR}
  assert faults(examine(some(sound, cut, 0.1), tokenizer)) == {'untrained_end': WARNING}
  assert faults(examine(some(sound, cut, 0.02), tokenizer)) == {}
  pairs = tokenize(texts(), tokenizer, max_response=4, truncate_response=True)
  assert faults(health.examine_pairs(pairs, tokenizer, vocab_size=VOCABULARY))['untrained_end'] == ERROR


def test_end_token_within_a_response(tokenizer, sound):
  def close_twice(row):
    return row._replace(responses=[[*row.responses[0], END], row.responses[1]])

  assert faults(examine(some(sound, close_twice, 1.0), tokenizer)) == {'end_token_inside': ERROR}
  assert faults(examine(some(sound, close_twice, 0.1), tokenizer)) == {'end_token_inside': WARNING}


def test_ids_that_the_embedding_has_not(tokenizer, sound):
  for side in ('prompt', 'responses'):
    for token in (VOCABULARY, -1):
      edit = {
        'prompt': lambda row, token=token: row._replace(prompt=[*row.prompt, token]),
        'responses': lambda row, token=token: row._replace(responses=[row.responses[0], [token, *row.responses[1]]]),
      }[side]
      findings = examine(some(sound, edit, 1 / COUNT), tokenizer)
      assert faults(findings) == {'outside_vocabulary': ERROR}
      assert named(findings, 'outside_vocabulary').seen.endswith('the first is train.jsonl:200')


def test_sequences_beyond_the_positions_of_the_model(tokenizer, sound):
  longest = max(len(row.prompt) + max(map(len, row.responses)) for row in sound)
  assert faults(examine(sound, tokenizer, max_positions=longest)) == {}
  findings = examine(sound, tokenizer, max_positions=longest - 1)
  assert faults(findings) == {'beyond_positions': ERROR}
  assert f'up to {longest} tokens' in named(findings, 'beyond_positions').seen


# --- the report


def test_rows_that_were_dropped_or_cut(tokenizer):
  def long(share):
    return [pair._replace(responses=('so' * 99, 'no')) if pair.line > (1 - share) * COUNT else pair for pair in texts()]

  def check(pairs, **options):
    return health.examine_pairs(tokenize(pairs, tokenizer, **options), tokenizer, vocab_size=VOCABULARY)

  assert faults(check(long(0.04))) == {}
  assert named(check(long(0.04)), 'responses_dropped').severity == NOTE
  findings = check(long(0.1))
  assert faults(findings) == {'responses_dropped': WARNING}
  assert named(findings, 'responses_dropped').seen.startswith('20 of 200 (10.0%) rows dropped')
  assert 'train.jsonl:181' in named(findings, 'responses_dropped').seen
  assert faults(check(long(0.6))) == {'responses_dropped': ERROR}
  same = [pair._replace(responses=('so', 'so')) if pair.line <= 20 else pair for pair in texts()]
  assert faults(check(same)) == {'rows_dropped': WARNING}
  assert 'identical_responses at train.jsonl:1:' in named(check(same), 'rows_dropped').seen
  assert faults(check(texts(), max_prompt=6)) == {'prompts_cut': ERROR}
  wordy = [pair._replace(prompt='Oh ' * 30 + str(pair.line)) if pair.line <= 20 else pair for pair in texts()]
  assert faults(check(wordy, max_prompt=32)) == {'prompts_cut': WARNING}


def test_prompts_that_merge_with_their_responses(load):
  tokenizer = load('gpt_2')
  pairs = [pair._replace(responses=('was', 'film')) for pair in texts(ending=' ')]
  findings = health.examine_pairs(tokenize(pairs, tokenizer), tokenizer, vocab_size=283)
  assert faults(findings) == {'boundary_merges': WARNING}
  half = [pair._replace(prompt=pair.prompt.strip()) if pair.line <= 100 else pair for pair in pairs]
  findings = health.examine_pairs(tokenize(half, tokenizer), tokenizer, vocab_size=283)
  assert named(findings, 'boundary_merges').severity == NOTE


# --- preferences


def test_identical_responses(tokenizer, sound):
  def same(row):
    return row._replace(responses=[row.responses[0]] * 2)

  findings = examine(some(sound, same, 0.1), tokenizer)
  assert faults(findings) == {'identical_responses': WARNING}
  assert named(findings, 'identical_responses').seen.startswith('20 of 200 pairs (10.0%) prefer a response to itself')
  assert faults(examine(some(sound, same, 0.6), tokenizer)) == {'identical_responses': ERROR}


def flip(row):
  """The same preference, the other way round."""
  return row._replace(responses=row.responses[::-1], label=1 - row.label)


@pytest.mark.parametrize('edit', [lambda row: row, flip])
def test_duplicate_pairs(tokenizer, sound, edit):
  findings = examine(sound + [edit(row)._replace(line=900) for row in sound[:10]], tokenizer)
  assert faults(findings) == {'duplicate_pairs': WARNING}
  seen = '10 of 210 pairs (4.8%) repeat an earlier one; the first is train.jsonl:900'
  assert named(findings, 'duplicate_pairs').seen == seen


@pytest.mark.parametrize(
  'edit', [lambda row: row._replace(label=0.0), lambda row: row._replace(responses=row.responses[::-1])]
)
def test_contradictory_pairs(tokenizer, sound, edit):
  findings = examine(sound + [edit(row) for row in sound[50:60]], tokenizer)
  assert faults(findings) == {'contradictory_pairs': WARNING}
  assert named(findings, 'contradictory_pairs').seen.startswith('20 of 210 pairs (9.5%)')
  assert named(findings, 'contradictory_pairs').seen.endswith('train.jsonl:51')
  assert faults(examine(sound + [edit(row) for row in sound], tokenizer)) == {'contradictory_pairs': ERROR}


def test_equal_odds_contradict_nobody(tokenizer, sound):
  undecided = [row._replace(responses=row.responses[::-1], label=0.5) for row in sound[:10]]
  assert faults(examine(sound + undecided, tokenizer)) == {}


def test_unpaired_responses_that_repeat_or_contradict(tokenizer, sound):
  rows = unpaired(sound)
  assert faults(examine(rows + rows[:10], tokenizer)) == {'duplicate_pairs': WARNING}
  turned = [row._replace(label=1 - row.label) for row in rows[:10]]
  assert faults(examine(rows + turned, tokenizer)) == {'contradictory_pairs': WARNING}


def test_prompt_that_dominates(tokenizer, sound):
  def same(row):
    return row._replace(prompt=sound[0].prompt)

  findings = examine(some(sound, same, 0.2), tokenizer)
  assert faults(findings) == {'dominating_prompt': WARNING}
  assert named(findings, 'dominating_prompt').seen.startswith('41 of 200 pairs (20.5%)')
  assert faults(examine(some(sound, same, 0.05), tokenizer)) == {}
  assert faults(examine(sound[:9], tokenizer)) == {}  # each prompt has a ninth, which means nothing


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('bad_weight', {'weight': -1.0}),
    ('bad_weight', {'weight': float('nan')}),
    ('no_weight', {'weight': 0.0}),
    ('bad_label', {'label': 1.5}),
    ('bad_label', {'label': float('nan')}),
    ('no_signal', {'label': 0.5}),
    ('swapped_labels', {'label': 0.0}),
    ('swapped_labels', {'label': 0.4}),
  ],
)
def test_labels_and_weights(tokenizer, sound, name, change):
  assert faults(examine([row._replace(**change) for row in sound], tokenizer)) == {name: ERROR}
  alone = examine([sound[0]._replace(**change), *sound[1:]], tokenizer)
  assert faults(alone) == ({name: ERROR} if name.startswith('bad') else {})


def test_classes_of_unpaired_responses(tokenizer, sound):
  rows = unpaired(sound)
  for label in (0.0, 1.0):
    one = [row._replace(label=label) for row in rows]
    assert faults(examine(one, tokenizer)) == {'one_class': ERROR}
    findings = examine([*one[:-10], *[row._replace(label=1 - label) for row in one[-10:]]], tokenizer)
    assert faults(findings) == {'rare_class': WARNING}
    assert named(findings, 'rare_class').seen == f'{abs(label - 0.05):.1%} of 200 responses are desirable'
  assert faults(examine([row._replace(label=0.5) for row in rows], tokenizer)) == {'no_signal': ERROR}


@pytest.mark.parametrize('longer', [0, 1])
def test_length_bias(tokenizer, sound, longer):
  def lengthen(row):
    responses = [list(ids) for ids in row.responses]
    responses[longer] = [30] * 20 + responses[longer]
    return row._replace(responses=responses)

  rows = some(sound, lengthen, 0.9)
  differences = [len(row.responses[0]) - len(row.responses[1]) for row in rows]
  error = np.sqrt(np.var(differences) / (COUNT - 1))
  findings = examine(rows, tokenizer)
  assert faults(findings) == {'length_bias': WARNING}
  expected = f'chosen minus rejected responses are {np.mean(differences):+.1f} ± {error:.1f} tokens on average; of the '
  expected += f'pairs with unequal lengths, {(95, 5)[longer]}% have the longer one chosen'
  assert named(findings, 'length_bias').seen == expected
  half_turned = [flip(row) if row.line % 3 else row for row in rows]  # the preferences stay the same
  assert named(examine(half_turned, tokenizer), 'length_bias').seen == expected
  few = examine(rows[-preference_checks.LENGTH_PAIRS + 1 :], tokenizer)
  assert 'length_bias' not in {finding.name for finding in few}


def test_chance_differences_of_length_are_no_bias(tokenizer, sound):
  findings = examine(sound, tokenizer)
  assert named(findings, 'length_bias').severity == NOTE
  # A few extreme lengths move the mean, and most pairs lean the other way: both signs are needed.
  rows = some(sound, lambda row: row._replace(responses=[[30] * 60 + list(row.responses[0]), row.responses[1]]), 0.15)
  assert faults(examine(rows, tokenizer)) == {}


# --- evaluation and training


def test_evaluation_that_was_trained_on(sound):
  train, rest = sound[:150], sound[150:]

  def split(rows):
    return health.examine_split(pairs_lib.pack(train), pairs_lib.pack(rows))

  assert split(rest) == []
  findings = split([*rest, train[3], train[4]._replace(responses=train[4].responses[::-1])])
  assert faults(findings) == {'shared_pairs': WARNING}
  assert named(findings, 'shared_pairs').seen.startswith('2 of 52 pairs (3.8%) are among the training pairs')
  findings = split([*rest, train[3]._replace(responses=rest[0].responses)])
  assert faults(findings) == {'shared_prompts': WARNING}
  assert named(findings, 'shared_prompts').seen.endswith('the first is train.jsonl:4')
  single = [train[3]._replace(responses=train[3].responses[:1])]
  assert faults(split(single)) == {'shared_prompts': WARNING}


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
  return health.examine_tokenizer(tokenizer, vocab_size=rows or tokenizer.vocab_size)


def lose_a_merge(content):
  """'user' stays in the vocabulary, but nothing makes it."""
  content['model']['merges'] = [merge for merge in content['model']['merges'] if ''.join(merge) != 'user']
  return {'model': content['model']}


TWO_BOS = '{{ bos_token }}' + variants.TURNS + '{{ bos_token }}'


@pytest.mark.parametrize(
  ('family', 'changes', 'expected', 'seen'),
  [
    ('qwen', {'end_ids': [284, 400]}, {'unknown_special_id': ERROR}, '400'),
    ('qwen', {'rows': 284}, {'unknown_special_id': ERROR, 'embedding_too_small': ERROR}, 'id 284'),
    ('qwen', {'rows': 400}, {'unused_rows': WARNING}, 'ids up to 284, the embedding has 400 rows'),
    ('qwen', {'rows': 288}, {'unused_rows': NOTE}, '288 rows'),
    ('llama_3', {'template': TWO_BOS}, {'template_bos': ERROR}, "'<|begin_of_text|>' (282) 2 times"),
    (
      'llama_3',
      {},
      {'turn_end_is_not_eos': NOTE},
      "ends turns with '<|eot_id|>' (286), eos_token is '<|end_of_text|>'",
    ),
    ('llama_3', {'end_ids': 283}, {'generation_goes_on': WARNING}, "end with '<|eot_id|>' (286), but"),
    (
      'gpt_2',
      {'template': variants.TURNS},
      {'turn_end_is_text': WARNING},
      "turns with '<|im_end|>', which is no special",
    ),
    (
      'gpt_2',
      {'template': '{{ messages | map(attribute="content") | join(" ") }}'},
      {'template_without_end': NOTE},
      'no',
    ),
    ('zephyr', {}, {'pad_is_end': NOTE}, "'</s>' (2) pads and ends"),
    (
      'qwen',
      {'edit': lose_a_merge},
      {'unreachable_tokens': NOTE},
      "1 of 285 tokens are made by no merge, such as 'user'",
    ),
  ],
)
def test_tokenizer(tmp_path, family, changes, expected, seen):
  findings = examine_folder(tmp_path, family, **changes)
  got = {finding.name: finding.severity for finding in findings}
  harmless = {'pad_is_end', 'turn_end_is_not_eos'}  # of the family as it is
  assert {name: severity for name, severity in got.items() if name not in harmless - expected.keys()} == expected
  assert seen in named(findings, next(iter(expected))).seen


def test_every_finding_says_what_to_do(tokenizer, sound):
  broken = [row._replace(prompt=row.prompt[1:] + [400], label=2.0, weight=-1.0) for row in sound]
  findings = examine(broken + broken, tokenizer, max_positions=3)
  assert len(findings) >= 6
  for finding, other in itertools.combinations(findings, 2):
    assert finding.advice
    assert finding.name != other.name

"""Tests of `alignjax.data.preference_checks`, as `health` calls them: each fault is named, and it alone."""

import numpy as np
import pytest

from alignjax.data import findings as findings_lib
from alignjax.data import health, preference_checks, tokenization
from alignjax.data import pairs as pairs_lib
from tests.data import sound_pairs as given
from tests.data import tokenizer_families

ERROR, WARNING, NOTE = findings_lib.SEVERITIES


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return tokenization.Tokenizer.load(tokenizer_families.write(tmp_path_factory.mktemp('model'), 'llama_3'))


@pytest.fixture(scope='module')
def sound(tokenizer):
  """Rows of token ids with nothing wrong."""
  return list(given.tokenize(given.texts(chat=True), tokenizer))


def test_identical_responses(tokenizer, sound):
  def same(row):
    return row._replace(responses=[row.responses[0]] * 2)

  findings = given.examine(given.some(sound, same, 0.1), tokenizer)
  assert given.faults(findings) == {'identical_responses': WARNING}
  assert given.named(findings, 'identical_responses').seen.startswith(
    '20 of 200 pairs (10.0%) prefer a response to itself'
  )
  assert given.faults_of(given.some(sound, same, 0.6), tokenizer) == {'identical_responses': ERROR}


@pytest.mark.parametrize('edit', [lambda row: row, given.flip])
def test_duplicate_pairs(tokenizer, sound, edit):
  findings = given.examine(sound + [edit(row)._replace(line=900) for row in sound[:10]], tokenizer)
  assert given.faults(findings) == {'duplicate_pairs': WARNING}
  seen = '10 of 210 pairs (4.8%) repeat an earlier one; the first is train.jsonl:900'
  assert given.named(findings, 'duplicate_pairs').seen == seen


@pytest.mark.parametrize(
  'edit', [lambda row: row._replace(label=0.0), lambda row: row._replace(responses=row.responses[::-1])]
)
def test_contradictory_pairs(tokenizer, sound, edit):
  findings = given.examine(sound + [edit(row) for row in sound[50:60]], tokenizer)
  assert given.faults(findings) == {'contradictory_pairs': WARNING}
  assert given.named(findings, 'contradictory_pairs').seen.startswith('20 of 210 pairs (9.5%)')
  assert given.named(findings, 'contradictory_pairs').seen.endswith('train.jsonl:51')
  assert given.faults_of(sound + [edit(row) for row in sound], tokenizer) == {'contradictory_pairs': ERROR}


def test_same_responses_to_other_prompts_are_other_pairs(tokenizer, sound):
  yes_or_no = [row._replace(responses=sound[0].responses[:: -1 if row.line % 2 else 1]) for row in sound]
  assert given.faults_of(yes_or_no, tokenizer) == {}
  assert health.examine_split(pairs_lib.pack(yes_or_no[:100]), pairs_lib.pack(yes_or_no[100:])) == []


def test_equal_odds_contradict_nobody(tokenizer, sound):
  undecided = [row._replace(responses=row.responses[::-1], label=0.5) for row in sound[:10]]
  assert given.faults_of(sound + undecided, tokenizer) == {}


def test_unpaired_responses_that_repeat_or_contradict(tokenizer, sound):
  rows = given.unpaired(sound)
  assert given.faults_of(rows + rows[:10], tokenizer) == {'duplicate_pairs': WARNING}
  turned = [row._replace(label=1 - row.label) for row in rows[:10]]
  assert given.faults_of(rows + turned, tokenizer) == {'contradictory_pairs': WARNING}


def test_prompt_that_dominates(tokenizer, sound):
  def same(row):
    return row._replace(prompt=sound[0].prompt)

  findings = given.examine(given.some(sound, same, 0.2), tokenizer)
  assert given.faults(findings) == {'dominating_prompt': WARNING}
  assert given.named(findings, 'dominating_prompt').seen.startswith('41 of 200 pairs (20.5%)')
  assert given.faults_of(given.some(sound, same, 0.05), tokenizer) == {}
  many = sound + [row._replace(prompt=[*row.prompt, 30]) for row in sound]
  assert given.faults_of(given.some(many, same, 0.08), tokenizer) == {}  # 33 of 400
  assert given.faults_of(sound[:9], tokenizer) == {}  # each prompt has a ninth, which means nothing


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('bad_weight', {'weight': -1.0}),
    ('bad_weight', {'weight': float('nan')}),
    ('bad_weight', {'weight': float('inf')}),
    ('no_weight', {'weight': 0.0}),
    ('bad_label', {'label': 1.5}),
    ('bad_label', {'label': float('nan')}),
    ('no_signal', {'label': 0.5}),
    ('swapped_labels', {'label': 0.0}),
    ('swapped_labels', {'label': 0.4}),
  ],
)
def test_labels_and_weights(tokenizer, sound, name, change):
  assert given.faults_of([row._replace(**change) for row in sound], tokenizer) == {name: ERROR}
  alone = given.examine([sound[0]._replace(**change), *sound[1:]], tokenizer)
  assert given.faults(alone) == ({name: ERROR} if name.startswith('bad') else {})


def test_classes_of_unpaired_responses(tokenizer, sound):
  rows = given.unpaired(sound)
  for label in (0.0, 1.0):
    one = [row._replace(label=label) for row in rows]
    assert given.faults_of(one, tokenizer) == {'one_class': ERROR}
    findings = given.examine([*one[:-10], *[row._replace(label=1 - label) for row in one[-10:]]], tokenizer)
    assert given.faults(findings) == {'rare_class': WARNING}
    assert given.named(findings, 'rare_class').seen == f'{abs(label - 0.05):.1%} of 200 responses are desirable'
  assert given.faults_of([row._replace(label=0.5) for row in rows], tokenizer) == {'no_signal': ERROR}


@pytest.mark.parametrize('longer', [0, 1])
def test_length_bias(tokenizer, sound, longer):
  def lengthen(row):
    responses = [list(ids) for ids in row.responses]
    responses[longer] = [30] * 20 + responses[longer]
    return row._replace(responses=responses)

  rows = given.some(sound, lengthen, 0.9)
  differences = [len(row.responses[0]) - len(row.responses[1]) for row in rows]
  error = np.sqrt(np.var(differences) / (given.COUNT - 1))
  findings = given.examine(rows, tokenizer)
  assert given.faults(findings) == {'length_bias': WARNING}
  expected = f'chosen minus rejected responses are {np.mean(differences):+.1f} ± {error:.1f} tokens on average; of the '
  expected += f'pairs with unequal lengths, {(95, 5)[longer]}% have the longer one chosen'
  assert given.named(findings, 'length_bias').seen == expected
  half_turned = [given.flip(row) if row.line % 3 else row for row in rows]  # the preferences stay the same
  assert given.named(given.examine(half_turned, tokenizer), 'length_bias').seen == expected
  few = given.examine(rows[-preference_checks.LENGTH_PAIRS + 1 :], tokenizer)
  assert 'length_bias' not in {finding.name for finding in few}


def test_chance_differences_of_length_are_no_bias(tokenizer, sound):
  findings = given.examine(sound, tokenizer)
  assert given.named(findings, 'length_bias').severity == NOTE

  def of_lengths(*lengths):
    return lambda row: row._replace(
      responses=[[i, *[30] * (length - 2), given.END] for i, length in enumerate(lengths)]
    )

  # Neither a mean that a few extreme lengths make, nor a majority that a few of them outweigh.
  extreme = given.some(given.some(sound, of_lengths(9, 10), 1.0), of_lengths(99, 9), 0.2)
  outweighed = given.some(given.some(sound, of_lengths(10, 9), 1.0), of_lengths(9, 13), 0.2)
  outweighed[-1] = of_lengths(9, 12)(outweighed[-1])
  for rows, seen in ((extreme, 'are +17.2 ± 2.6 tokens on average'), (outweighed, 'are +0.0 ± 0.1 tokens on average')):
    findings = given.examine(rows, tokenizer)
    assert given.faults(findings) == {}
    assert seen in given.named(findings, 'length_bias').seen

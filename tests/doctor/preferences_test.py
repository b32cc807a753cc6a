"""Tests of `alignjax.doctor.preferences`: each fault gives its own finding and no other."""

import numpy as np
import pytest

from alignjax.data.tokens import dataset, tokenization
from alignjax.doctor import examples, findings, preferences
from tests.data import tokenizer_families
from tests.doctor import sound_examples

ERROR, WARNING, NOTE = findings.SEVERITIES


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return tokenization.Tokenizer.load(tokenizer_families.write(tmp_path_factory.mktemp('model'), 'llama_3'))


@pytest.fixture(scope='module')
def sound(tokenizer):
  """Rows of token ids with nothing wrong."""
  return list(sound_examples.tokenize(sound_examples.texts(chat=True), tokenizer))


def test_identical_responses(tokenizer, sound):
  def same(row):
    return row._replace(responses=[row.responses[0]] * 2)

  findings = sound_examples.examine(sound_examples.some(sound, same, 0.1), tokenizer)
  assert sound_examples.faults(findings) == {'identical_responses': WARNING}
  assert sound_examples.named(findings, 'identical_responses').seen.startswith(
    '20 of 200 examples (10.0%) prefer a response to itself'
  )
  assert sound_examples.faults_of(sound_examples.some(sound, same, 0.6), tokenizer) == {'identical_responses': ERROR}


@pytest.mark.parametrize('edit', [lambda row: row, sound_examples.flip])
def test_duplicate_pairs(tokenizer, sound, edit):
  findings = sound_examples.examine(sound + [edit(row)._replace(line=900) for row in sound[:10]], tokenizer)
  assert sound_examples.faults(findings) == {'duplicate_examples': WARNING}
  seen = '10 of 210 examples (4.8%) repeat an earlier one; the first is train.jsonl:900'
  assert sound_examples.named(findings, 'duplicate_examples').seen == seen


@pytest.mark.parametrize(
  'edit', [lambda row: row._replace(label=0.0), lambda row: row._replace(responses=row.responses[::-1])]
)
def test_contradictory_pairs(tokenizer, sound, edit):
  findings = sound_examples.examine(sound + [edit(row) for row in sound[50:60]], tokenizer)
  assert sound_examples.faults(findings) == {'contradictory_examples': WARNING}
  assert sound_examples.named(findings, 'contradictory_examples').seen.startswith('20 of 210 examples (9.5%)')
  assert sound_examples.named(findings, 'contradictory_examples').seen.endswith('train.jsonl:51')
  assert sound_examples.faults_of(sound + [edit(row) for row in sound], tokenizer) == {'contradictory_examples': ERROR}


def test_same_responses_to_other_prompts_are_other_pairs(tokenizer, sound):
  yes_or_no = [row._replace(responses=sound[0].responses[:: -1 if row.line % 2 else 1]) for row in sound]
  assert sound_examples.faults_of(yes_or_no, tokenizer) == {}
  assert examples.examine_split(dataset.pack(yes_or_no[:100]), dataset.pack(yes_or_no[100:])) == []


def test_equal_odds_contradict_nobody(tokenizer, sound):
  undecided = [row._replace(responses=row.responses[::-1], label=0.5) for row in sound[:10]]
  assert sound_examples.faults_of(sound + undecided, tokenizer) == {}


def test_unpaired_responses_that_repeat_or_contradict(tokenizer, sound):
  rows = sound_examples.unpaired(sound)
  assert sound_examples.faults_of(rows + rows[:10], tokenizer) == {'duplicate_examples': WARNING}
  turned = [row._replace(label=1 - row.label) for row in rows[:10]]
  assert sound_examples.faults_of(rows + turned, tokenizer) == {'contradictory_examples': WARNING}


def test_prompt_that_dominates(tokenizer, sound):
  def same(row):
    return row._replace(prompt=sound[0].prompt)

  findings = sound_examples.examine(sound_examples.some(sound, same, 0.2), tokenizer)
  assert sound_examples.faults(findings) == {'dominating_prompt': WARNING}
  assert sound_examples.named(findings, 'dominating_prompt').seen.startswith('41 of 200 examples (20.5%)')
  assert sound_examples.faults_of(sound_examples.some(sound, same, 0.05), tokenizer) == {}
  many = sound + [row._replace(prompt=[*row.prompt, 30]) for row in sound]
  assert sound_examples.faults_of(sound_examples.some(many, same, 0.08), tokenizer) == {}  # 33 of 400
  assert sound_examples.faults_of(sound[:9], tokenizer) == {}  # each prompt has a ninth, which means nothing


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
  assert sound_examples.faults_of([row._replace(**change) for row in sound], tokenizer) == {name: ERROR}
  alone = sound_examples.examine([sound[0]._replace(**change), *sound[1:]], tokenizer)
  assert sound_examples.faults(alone) == ({name: ERROR} if name.startswith('bad') else {})


def test_classes_of_unpaired_responses(tokenizer, sound):
  rows = sound_examples.unpaired(sound)
  for label, name in ((0.0, 'undesirable_only'), (1.0, 'one_class')):
    one = [row._replace(label=label) for row in rows]
    assert sound_examples.faults_of(one, tokenizer) == {name: ERROR}
    findings = sound_examples.examine([*one[:-10], *[row._replace(label=1 - label) for row in one[-10:]]], tokenizer)
    assert sound_examples.faults(findings) == {'rare_class': WARNING}
    assert (
      sound_examples.named(findings, 'rare_class').seen == f'{abs(label - 0.05):.1%} of 200 responses are desirable'
    )
  assert sound_examples.faults_of([row._replace(label=0.5) for row in rows], tokenizer) == {'no_signal': ERROR}


@pytest.mark.parametrize('longer', [0, 1])
def test_length_bias(tokenizer, sound, longer):
  def lengthen(row):
    responses = [list(ids) for ids in row.responses]
    responses[longer] = [30] * 20 + responses[longer]
    return row._replace(responses=responses)

  rows = sound_examples.some(sound, lengthen, 0.9)
  differences = [len(row.responses[0]) - len(row.responses[1]) for row in rows]
  error = np.sqrt(np.var(differences) / (sound_examples.COUNT - 1))
  findings = sound_examples.examine(rows, tokenizer)
  assert sound_examples.faults(findings) == {'length_bias': WARNING}
  expected = f'chosen minus rejected length is {np.mean(differences):+.1f} ± {error:.1f} tokens on average; of the '
  expected += f'pairs with unequal lengths, {(95, 5)[longer]}% have the longer one chosen'
  assert sound_examples.named(findings, 'length_bias').seen == expected
  half_turned = [sound_examples.flip(row) if row.line % 3 else row for row in rows]  # the preferences stay the same
  assert sound_examples.named(sound_examples.examine(half_turned, tokenizer), 'length_bias').seen == expected
  few = sound_examples.examine(rows[-preferences.LENGTH_EXAMPLES + 1 :], tokenizer)
  assert 'length_bias' not in {finding.name for finding in few}


def test_chance_differences_of_length_are_no_bias(tokenizer, sound):
  findings = sound_examples.examine(sound, tokenizer)
  assert sound_examples.named(findings, 'length_bias').severity == NOTE

  def of_lengths(*lengths):
    return lambda row: row._replace(
      responses=[[i, *[30] * (length - 2), sound_examples.END] for i, length in enumerate(lengths)]
    )

  # Neither a mean that a few extreme lengths make, nor a majority that a few of them outweigh.
  extreme = sound_examples.some(sound_examples.some(sound, of_lengths(9, 10), 1.0), of_lengths(99, 9), 0.2)
  outweighed = sound_examples.some(sound_examples.some(sound, of_lengths(10, 9), 1.0), of_lengths(9, 13), 0.2)
  outweighed[-1] = of_lengths(9, 12)(outweighed[-1])
  for rows, seen in ((extreme, 'is +17.2 ± 2.6 tokens on average'), (outweighed, 'is +0.0 ± 0.1 tokens on average')):
    findings = sound_examples.examine(rows, tokenizer)
    assert sound_examples.faults(findings) == {}
    assert seen in sound_examples.named(findings, 'length_bias').seen


def test_scores_that_contradict_the_preference(tokenizer, sound):
  scored = [row._replace(score=(2.0, 1.0)) for row in sound]
  assert sound_examples.faults_of(scored, tokenizer) == {}
  assert sound_examples.faults_of([sound_examples.flip(row) for row in scored], tokenizer) == {
    'swapped_labels': ERROR,
    'scores_contradict': ERROR,
  }
  for share, severity in ((1.0, ERROR), (0.1, WARNING), (0.02, NOTE)):
    inverted = sound_examples.some(scored, lambda row: row._replace(score=(1.0, 2.0)), share)
    finding = sound_examples.named(sound_examples.examine(inverted, tokenizer), 'scores_contradict')
    assert finding.severity == severity
    assert finding.seen.startswith(f'{round(200 * share)} of 200 examples')
  tied = sound_examples.some(scored, lambda row: row._replace(score=(1.0, 1.0)), 0.1)
  found = sound_examples.examine(tied, tokenizer)
  assert sound_examples.named(found, 'tied_scores').severity == NOTE
  assert all(finding.name != 'scores_contradict' for finding in found)

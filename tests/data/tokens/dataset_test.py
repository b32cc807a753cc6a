"""Tests of `dataset` and `encoding`: storage, length limits, drops and their counts."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from tokenizers import normalizers

from alignjax.data.batches import batching
from alignjax.data.reading import drops, rows, sources
from alignjax.data.tokens import dataset, encoding, tokenization
from tests.data import examples, variants

END = 2  # <|im_end|>, also the pad token


@pytest.fixture
def tokenizer(tmp_path):
  return tokenization.Tokenizer.load(variants.byte_level(tmp_path / 'model'))


def tokenize(pairs, tokenizer, **options):
  others = {name: options.pop(name) for name in ('report', 'on_error') if name in options}
  limits = encoding.Limits(**{'max_prompt': 64, 'max_response': 32, 'vocab_size': 384} | options)
  return encoding.tokenize(pairs, tokenizer, limits, **others)


def pair(prompt='The film', chosen=' was good', rejected=' was bad', **fields):
  return rows.Example(prompt, (chosen, rejected), **fields)


def random_rows(count=6, responses=2, seed=0, score=False):
  """Random token pairs of many lengths."""
  draw = np.random.default_rng(seed)

  def ids():
    return draw.integers(3, 300, draw.integers(1, 9)).tolist()

  for i in range(count):
    scores = draw.normal(size=responses).tolist() if score else None
    written = (-draw.exponential(size=responses)).tolist() if score else None
    yield dataset.TokenExample(
      ids(), [ids() for _ in range(responses)], draw.random(), 1 + i, scores, written, path=f'{i % 2}.jsonl', line=i
    )


# --- storage


@pytest.mark.parametrize(('responses', 'score'), [(2, False), (2, True), (1, False), (5, True)])
def test_packed_rows_come_back(responses, score):
  given = list(random_rows(7, responses, score=score))
  packed = dataset.pack(given)
  assert len(packed) == 7
  assert packed.responses == responses
  for i, (row, got) in enumerate(zip(given, packed, strict=True)):
    assert got.prompt.tolist() == row.prompt
    assert [ids.tolist() for ids in got.responses] == row.responses
    assert (got.label, got.weight) == (np.float32(row.label), row.weight)
    assert (got.score is None) == (row.score is None)
    if score:
      np.testing.assert_array_equal(got.score, np.float32(row.score))
      np.testing.assert_array_equal(got.behaviour_logp, np.float32(row.behaviour_logp))
    assert (got.path, got.line) == (row.path, row.line)
    assert packed.origin(i) == f'{row.path}:{row.line}'
    assert packed.prompt_length[i] == len(row.prompt)
    assert packed.response_length[i].tolist() == [len(ids) for ids in row.responses]
  assert packed[-1].prompt.tolist() == given[-1].prompt
  with pytest.raises(IndexError):
    packed[7]
  assert packed.prompt_tokens.dtype == packed.response_tokens.dtype == np.int32
  assert packed.report == drops.DropReport(read=7)


def test_pairs_pickle():
  packed = dataset.pack(random_rows(score=True))
  copy = pickle.loads(pickle.dumps(packed))
  assert copy.fingerprint == packed.fingerprint
  assert copy.origin(3) == packed.origin(3)


def test_fingerprint_is_of_contents_only():
  given = list(random_rows())
  fingerprint = dataset.pack(given).fingerprint
  assert len(fingerprint) == 64
  assert dataset.pack([row._replace(path='elsewhere', line=row.line + 1) for row in given]).fingerprint == fingerprint
  first = given[0]
  changes = [
    [first._replace(prompt=[*first.prompt[:-1], 301]), *given[1:]],
    [first._replace(responses=first.responses[::-1]), *given[1:]],
    [first._replace(label=0.125), *given[1:]],
    [first._replace(weight=9.0), *given[1:]],
    [row._replace(score=(0.0, 0.0)) for row in given],
    given[1:],
    given[::-1],
    # the same tokens in a row, with another boundary
    [
      first._replace(prompt=[*first.prompt, given[1].prompt[0]]),
      given[1]._replace(prompt=given[1].prompt[1:]),
      *given[2:],
    ],
  ]
  assert len({fingerprint, *[dataset.pack(changed).fingerprint for changed in changes]}) == len(changes) + 1


@pytest.mark.parametrize(
  ('bad', 'message'),
  [
    ([], 'no examples are left'),
    ([dataset.TokenExample([], [[3], [4]])], 'has no tokens'),
    ([dataset.TokenExample([3], [[3], []])], 'has no tokens'),
    (
      [dataset.TokenExample([3], [[3], [4]]), dataset.TokenExample([3], [[3]])],
      r'different numbers of responses \[1, 2\]',
    ),
    ([dataset.TokenExample([3], [[3], [4]], score=[1.0])], '1 values of score for 2 responses'),
    ([dataset.TokenExample([3], [[3]], score=[1.0]), dataset.TokenExample([3], [[3]])], 'some have none'),
    ([dataset.TokenExample([3], [[3]], behaviour_logp=[-1.0, -2.0])], '2 values of behaviour_logp for 1 responses'),
    ([dataset.TokenExample([3], [[3]], behaviour_token_logp=[[-1.0, -2.0]])], '2 numbers for 1 response tokens'),
    (
      [dataset.TokenExample([3], [[3]], behaviour_token_logp=[[-1.0]]), dataset.TokenExample([3], [[3]])],
      'some have none',
    ),
  ],
)
def test_rows_that_do_not_fit_together_are_refused(bad, message):
  with pytest.raises(ValueError, match=message):
    dataset.pack(bad)


# --- limits and drops


def test_tokenized_pairs_are_those_of_the_tokenizer(tokenizer):
  given = [pair(label=0.5, weight=2.0, path='a.jsonl', line=3), pair([{'role': 'user', 'content': 'Hi'}], 'Yes', 'No')]
  packed = tokenize(given, tokenizer)
  for i, one in enumerate(given):
    encoded = tokenizer.encode(one.prompt, one.responses)
    assert packed[i].prompt.tolist() == encoded.prompt
    assert [ids.tolist() for ids in packed[i].responses] == encoded.responses
    assert packed[i].responses[0][-1] == END  # counted and kept, although it is also the pad token
  assert (packed[0].label, packed[0].weight, packed.origin(0)) == (0.5, 2.0, 'a.jsonl:3')
  assert (packed.report.read, packed.report.kept, packed.report.noted) == (2, 2, {})


def test_more_pairs_than_a_chunk_keep_their_order(tokenizer):
  count = encoding.CHUNK + 3
  packed = tokenize((pair(f'{i} is', line=i + 1) for i in range(count)), tokenizer)
  assert packed.line.tolist() == list(range(1, count + 1))
  assert [tokenizer.decode(row.prompt) for row in packed] == [f'{i} is' for i in range(count)]


def test_prompts_are_cut_on_the_left_and_noted(tokenizer):
  packed = tokenize([pair(line=1), pair('one two three four five', line=2)], tokenizer, max_prompt=4)
  assert packed[1].prompt.tolist() == tokenizer.encode_prompt('one two three four five')[-4:]
  assert packed.report.noted['prompt_truncated'].count == 1
  assert packed.report.noted['prompt_truncated'].examples[0].startswith('<memory>:2: ')


def test_long_response_drops_its_pair(tokenizer):
  long = pair(chosen=' was good and long', line=2)
  limit = max(map(len, tokenizer.encode(long.prompt, long.responses).responses)) - 1
  packed = tokenize([pair(line=1), long], tokenizer, max_response=limit)
  assert packed.line.tolist() == [1]
  assert packed.report.dropped['response_too_long'].count == 1
  assert packed.report.dropped['response_too_long'].examples == [f'<memory>:2: {limit + 1} tokens, limit {limit}']
  assert tokenize([long], tokenizer, max_response=limit + 1).report.kept == 1


def test_long_response_is_cut_only_on_demand_and_then_has_no_end(tokenizer):
  given = pair(chosen=' was good and long', rejected=' no')
  whole = tokenizer.encode(given.prompt, given.responses).responses
  packed = tokenize([given], tokenizer, max_response=3, truncate_response=True)
  assert packed[0].responses[0].tolist() == whole[0][:3]
  assert END not in packed[0].responses[0]
  assert packed[0].responses[1].tolist() == whole[1][:3]
  assert packed.report.noted['response_truncated'].count == 1


def test_responses_that_are_the_same_once_cut_are_dropped(tokenizer):
  packed = tokenize(
    [pair(chosen=' a', rejected=' b', line=1), pair(chosen=' was good and long', rejected=' was good and short')],
    tokenizer,
    max_response=3,
    truncate_response=True,
  )
  assert packed.line.tolist() == [1]
  assert packed.report.dropped['identical_responses'].count == 1
  assert packed.report.noted == {}  # of pairs that are kept only


def test_responses_that_are_the_same_once_normalised_or_empty_are_dropped(tmp_path):
  def normalise(backend):
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace('\u200b', '')])

  tokenizer = tokenization.Tokenizer.load(variants.byte_level(tmp_path, edit=normalise))
  packed = tokenize(
    [pair(line=1), pair(chosen=' was BAD', line=2), pair(chosen='\u200b', line=3), pair(rejected=' \u200b \n', line=4)],
    tokenizer,
  )
  assert packed.line.tolist() == [1]
  dropped = packed.report.dropped
  assert {reason: tally.count for reason, tally in dropped.items()} == {'identical_responses': 1, 'empty_response': 2}
  assert (packed.report.read, packed.report.kept) == (4, 1)


def test_notes_on_kept_pairs(tokenizer, tmp_path):
  packed = tokenize([pair('The film ', 'was', '9'), pair(chosen='a<|im_end|>b')], tokenizer)
  assert {reason: tally.count for reason, tally in packed.report.noted.items()} == {
    'boundary_merge': 1,
    'end_token_inside': 1,
    'control_tokens_in_text': 1,
  }
  bare = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
  tokenizer = tokenization.Tokenizer.load(variants.byte_level(tmp_path / 'bare', template=bare))
  packed = tokenize([pair([{'role': 'user', 'content': 'Hi:'}], ' Yes', ' No'), pair()], tokenizer)
  assert {reason: tally.count for reason, tally in packed.report.noted.items()} == {'end_token_added': 1}


def test_a_cut_response_has_no_behaviour_log_probability(tokenizer):
  logged = pair(chosen=' was good' * 40, behaviour_logp=(-1.0, -2.0))
  packed = tokenize([logged, pair(behaviour_logp=(-3.0, -4.0))], tokenizer, truncate_response=True)
  assert {reason: tally.count for reason, tally in packed.report.dropped.items()} == {'behaviour_logp_truncated': 1}
  np.testing.assert_array_equal(packed.behaviour_logp, [[-3.0, -4.0]])


def with_token_logp(example, tokenizer):
  """The example with a different number for every token of its responses."""
  responses = tokenizer.encode(example.prompt, example.responses).responses
  return example._replace(
    behaviour_token_logp=tuple(tuple(-float(i) - n for i in range(len(ids))) for n, ids in enumerate(responses))
  )


def test_behaviour_log_probabilities_of_tokens_are_kept_summed_and_cut_with_their_response(tokenizer):
  short, long = (with_token_logp(pair(chosen=' was good' * count), tokenizer) for count in (1, 40))
  packed = tokenize([short, long], tokenizer, truncate_response=True, max_response=8)
  assert [numbers.tolist() for numbers in packed[0].behaviour_token_logp] == [*map(list, short.behaviour_token_logp)]
  assert packed[1].behaviour_token_logp[0].tolist() == list(long.behaviour_token_logp[0][:8])
  np.testing.assert_array_equal(packed.behaviour_logp[0], [sum(numbers) for numbers in short.behaviour_token_logp])
  np.testing.assert_array_equal(packed.behaviour_logp[1, 0], sum(long.behaviour_token_logp[0][:8]))
  assert packed.behaviour_token_logp.shape == packed.response_tokens.shape
  assert dataset.pack(list(packed)).fingerprint == packed.fingerprint
  changed = dataset.pack(
    [packed[0], packed[1]._replace(behaviour_token_logp=[[-1.0] * len(ids) for ids in packed[1].responses])]
  )
  assert changed.fingerprint != packed.fingerprint


def test_a_log_probability_too_few_or_too_many_is_refused_by_its_place(tokenizer):
  good = with_token_logp(pair(line=1), tokenizer)
  numbers = good.behaviour_token_logp
  for wrong in (numbers[1][:-1], (*numbers[1], -1.0)):  # the first forgets the end token
    bad = good._replace(behaviour_token_logp=(numbers[0], wrong), line=2)
    message = (
      rf"^<memory>:2: field 'behaviour_logp\[1\]': has {len(wrong)} numbers, but response 1 has {len(numbers[1])} tok"
    )
    with pytest.raises(rows.DataError, match=message):
      tokenize([good, bad], tokenizer)
    packed = tokenize([good, bad], tokenizer, on_error='skip')
    assert packed.line.tolist() == [1]
    assert packed.report.dropped['behaviour_logp_length'].count == 1


# --- prompts without responses


def test_prompts_without_responses_are_tokenised_as_for_sampling_and_batched(tokenizer):
  prompts = ['The film', [{'role': 'user', 'content': 'Hi'}], 'one two three four five']
  packed = tokenize([rows.Example(prompt, (), line=i + 1) for i, prompt in enumerate(prompts)], tokenizer)
  assert (packed.responses, len(packed)) == (0, 3)
  assert [row.prompt.tolist() for row in packed] == [tokenizer.encode_prompt(prompt) for prompt in prompts]
  assert packed[0].responses == ()
  assert packed.response_length.shape == (3, 0)
  assert pickle.loads(pickle.dumps(packed)).fingerprint == packed.fingerprint
  for buckets in (None, [(64, 16)]):
    batches = batching.make_batches(packed, batching.BatchSpec(batch_size=2, epochs=1, buckets=buckets, shuffle=False))
    first, last = (batch.data for batch in batches)
    size, response_size = (32, 0) if buckets is None else buckets[0]
    assert first.prompt.shape == (2, size)
    assert first.response.shape == (2, 0, response_size)
    assert first.response_length.shape == (2, 0)
    assert first.prompt[0, : first.prompt_length[0]].tolist() == tokenizer.encode_prompt(prompts[0])
    assert last.weight.tolist() == [1.0, 0.0]


def test_read_and_tokenised_rows_share_one_report(tokenizer, tmp_path):
  lines = [
    {'prompt': 'The film', 'chosen': ' was good', 'rejected': ' was bad', 'score': [1, 0]},
    {'prompt': 'The film', 'chosen': ' was bad', 'rejected': ' was bad', 'score': [1, 0]},
    {'prompt': 'The film', 'chosen': ' was bad', 'rejected': 3},
    {'prompt': 'The film', 'chosen': ' was good' * 40, 'rejected': ' was bad', 'score': [1, 0]},
  ]
  path = tmp_path / 'train.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  report = drops.DropReport()
  packed = tokenize(sources.read_examples(path, report, on_error='skip'), tokenizer, report=report)
  assert packed.report is report
  assert (report.read, report.kept, len(packed)) == (4, 1, 1)
  assert packed[0].score.tolist() == [1.0, 0.0]
  assert packed.origin(0) == f'{path}:1'
  assert {reason: tally.examples[0].split(': ')[0] for reason, tally in report.dropped.items()} == {
    'identical_text': f'{path}:2',
    'wrong_type': f'{path}:3',
    'response_too_long': f'{path}:4',
  }
  json.dumps(dataclasses.asdict(report))  # goes into a summary as it is


@pytest.mark.parametrize(('form', 'responses'), [('unpaired', 1), ('ranked', 3), ('ultrafeedback', 4)])
def test_prompts_with_another_number_of_responses_make_batches(tokenizer, tmp_path, form, responses):
  path = tmp_path / 'train.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in [examples.VALID[form][0]] * 2))
  packed = tokenize(sources.read_examples(f'{form}:{path}', drops.DropReport()), tokenizer, max_response=64)
  assert (packed.responses, len(packed)) == (responses, 2)
  batch = next(iter(batching.make_batches(packed, batching.BatchSpec(batch_size=2, epochs=1)))).data
  assert batch.response.shape[:2] == batch.response_length.shape == (2, responses)
  if form == 'ultrafeedback':
    assert batch.score.tolist() == [[9.0, 6.5, 1.0, 1.0]] * 2
  end = batch.response_length[0, 0] - 1
  assert tokenizer.decode(batch.response[0, 0, :end]).strip() in ('upon', 'Blue, of course')


def test_labels_of_single_responses_reach_the_objective(tokenizer, tmp_path):
  unpaired = [examples.UNPAIRED | {'label': label, 'completion': f' {label}'} for label in (True, False, 0.25)]
  path = tmp_path / 'train.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in unpaired))
  packed = tokenize(sources.read_examples(f'unpaired:{path}', drops.DropReport()), tokenizer)
  assert packed.label.tolist() == [1.0, 0.0, 0.25]


def test_pairs_that_the_template_refuses_follow_the_policy(tmp_path):
  refusing = (
    "{% if messages | length > 1 and messages[1]['role'] == 'user' %}{{ raise_exception('two users') }}{% endif %}"
  )
  folder = variants.byte_level(tmp_path, template=refusing + variants.TURNS + variants.GENERATION)
  tokenizer = tokenization.Tokenizer.load(folder)
  user = {'role': 'user', 'content': 'Hi'}
  given = [pair([user], 'Yes', 'No', line=1), pair([user, user], 'Yes', 'No', path='b.jsonl', line=2)]
  with pytest.raises(
    rows.DataError, match=r"^b\.jsonl:2: field 'prompt': .*tokenizer_config\.json: the chat template rejects.*two users"
  ):
    tokenize(given, tokenizer)
  packed = tokenize(given, tokenizer, on_error='skip')
  assert packed.line.tolist() == [1]
  assert packed.report.dropped['template_refused'].count == 1


def test_token_outside_the_models_vocabulary_is_refused_by_its_place(tokenizer):
  last = tokenizer.decode([383])
  assert tokenizer.encode_prompt(last) == [383]
  places = {
    'the prompt': pair(last, ' a', ' b', line=2),  # its first token is the row's first
    'the response': pair('The', ' a', last, line=2),  # in the second response of the second row
  }
  for name, bad in places.items():
    given = [pair(line=1), bad, pair(line=3)]
    assert len(tokenize(given, tokenizer, vocab_size=384)) == 3
    with pytest.raises(ValueError, match=rf'^<memory>:2: {name} has token id 383 .*has 383 embeddings'):
      tokenize(given, tokenizer, vocab_size=383)


def test_arguments_are_checked(tokenizer):
  for name in ('max_prompt', 'max_response'):
    with pytest.raises(ValueError, match=f'{name}=1: must be at least 2'):
      tokenize([pair()], tokenizer, **{name: 1})
  with pytest.raises(ValueError, match='on_error'):
    tokenize([pair()], tokenizer, on_error='')
  with pytest.raises(ValueError, match='no examples are left: 1 rows read, 0 kept'):
    tokenize([pair(chosen='long' * 99)], tokenizer)

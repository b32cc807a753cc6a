"""Supervised fine-tuning as a stage: its forms of data, what counts the same, and that it has no reference."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from alignjax.data.batches import batching
from alignjax.data.tokens import dataset, tokenization
from alignjax.doctor import start
from alignjax.models import checkpoint_io, transformer
from alignjax.run import examination, preparation
from alignjax.training import references
from alignjax.training import step as training_step
from tests import runs
from tests.commands import doctor_test

TURNS = [
  {'role': 'user', 'content': 'Name a film.'},
  {'role': 'assistant', 'content': 'The warm story.'},
  {'role': 'user', 'content': 'Is it good?'},
  {'role': 'assistant', 'content': 'Yes, people always say so.'},
  {'role': 'user', 'content': 'And bright?'},
  {'role': 'assistant', 'content': 'No.'},
]
ROWS = {
  'conversation': [{'messages': TURNS}],  # an example for each of its three answers
  'supervised': [{'prompt': 'A film', 'completion': ' is good'}, {'prompt': 'A story of', 'completion': ' people'}],
  'text': [{'text': 'A warm and bright story'}, {'text': 'People never say so'}],
  'chosen': [{'prompt': 'A film', 'chosen': ' is good', 'rejected': ' is bad'}],
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('supervised')
  doctor_test.write_model(folder / 'model')
  for form, rows in ROWS.items():
    (folder / f'{form}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  runs.write_pairs(folder / 'pairs.jsonl', 5, seed=0)
  return folder


def configure(folder, form, **overrides):
  values = {'data': (f'{form}:{folder / f"{form}.jsonl"}',), 'objective': 'sft()', 'batch_size': 8, 'reference': ''}
  return doctor_test.configure(folder, **values | overrides)


@pytest.mark.parametrize('form', sorted(ROWS))
def test_every_form_gives_one_response_and_needs_no_reference(folder, form):
  prepared = preparation.prepare(configure(folder, form), doctor_test.SILENT)
  count = 3 if form == 'conversation' else len(ROWS[form])
  assert (prepared.training.data.responses, len(prepared.training.data)) == (1, count)
  assert not prepared.reference.needed
  assert isinstance(prepared.reference.load(), references.NotLoaded)


@functools.cache
def losses(folder, **overrides):
  """The evaluation of sft() on the conversations as a run does it, and what the run holds."""
  config, prepared, state, frozen = doctor_test.start_of(
    configure(folder, 'conversation', scan_layers=False, **overrides)
  )
  batch = next(iter(prepared.training.batches)).data
  step = training_step.build_eval_step(prepared.policy, prepared.objective, chunk=1024)
  sums = jax.jit(step)(state.params, frozen, batch)
  return sums['loss'], batch, (config, prepared, state, frozen)


def token_logps(folder, batch):
  """Of each row, the log-probabilities of its response tokens, from full logits in float64."""
  config = checkpoint_io.load_config(folder / 'model', remat='none')
  model, params = transformer.build(config), checkpoint_io.load_params(folder / 'model', config)
  inputs = (batch.prompt, batch.prompt_length, batch.response, batch.response_length)
  states = np.asarray(jax.jit(model.hidden)(params, *inputs), np.float64)
  logits = states @ np.asarray(model.head(params).kernel, np.float64)
  logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  chosen = np.take_along_axis(logps, np.asarray(batch.response)[..., None], axis=-1)[..., 0]
  rows = np.flatnonzero(np.asarray(batch.weight) > 0)
  return [chosen[row, 0, : batch.response_length[row, 0]] for row in rows]


def test_weighting_by_tokens_is_the_mean_over_all_tokens_of_the_batch(folder):
  loss, batch, _ = losses(folder, weighting='tokens')
  known = token_logps(folder, batch)
  flat = -np.mean(np.concatenate(known))
  assert float(loss.mean()) == pytest.approx(flat, rel=1e-5)
  by_prompt = -np.mean([np.mean(row) for row in known])
  assert abs(by_prompt - flat) > 1e-3
  assert float(losses(folder)[0].mean()) == pytest.approx(by_prompt, rel=1e-5)


def test_the_examples_of_a_conversation_are_all_tokens_of_its_assistant(folder):
  """One example for each turn, and tokens as weights: the loss of the whole conversation, read once."""
  loss, *_ = losses(folder, weighting='tokens')
  tokenizer = tokenization.Tokenizer.load(folder / 'model')
  turns = [tokenizer.encode(TURNS[:count], [TURNS[count]['content']]) for count in (1, 3, 5)]
  whole, first = [*turns[-1].prompt, *turns[-1].responses[0]], len(turns[0].prompt)
  mask = np.zeros(len(whole), bool)
  for turn in turns:
    assert whole[: len(turn.prompt)] == turn.prompt
    mask[len(turn.prompt) : len(turn.prompt) + len(turn.responses[0])] = True
  example = dataset.TokenExample(whole[:first], [whole[first:]])
  once = batching.make_batches(dataset.pack([example]), batching.BatchSpec(1, epochs=1))
  (logps,) = token_logps(folder, next(iter(once)).data)
  assert float(loss.weight) == mask.sum()
  assert float(loss.mean()) == pytest.approx(-np.mean(logps[mask[first:]]), rel=1e-5)


def test_weighting_is_the_same_for_equal_lengths_and_keeps_the_weights_of_rows():
  rows = [dataset.TokenExample([1], [[2, 3, 4]], weight=weight) for weight in (1.0, 3.0)]
  np.testing.assert_array_equal(dataset.pack(rows).weighted_by_tokens().weight, [3.0, 9.0])
  assert dataset.pack(rows).weighted_by_tokens().fingerprint != dataset.pack(rows).fingerprint


def test_weighting_of_pairs_by_tokens_is_refused(folder):
  config = configure(folder, 'conversation', data=(str(folder / 'pairs.jsonl'),), weighting='tokens')
  with pytest.raises(ValueError, match=r"pairs\.jsonl:1: the data has 2 responses .* weighting='tokens' is"):
    preparation.prepare(config, doctor_test.SILENT)


def test_the_doctor_compares_with_no_reference(folder):
  _, _, (_, prepared, state, frozen) = losses(folder)
  assert isinstance(frozen.reference, references.NotLoaded)
  measure = start.build_measurement(prepared.policy, prepared.objective, chunk=1024)
  frozen = dataclasses.replace(frozen, memory=state.memory, step=state.updates)
  batch = next(iter(prepared.training.batches)).data
  assert jax.eval_shape(measure, state.params, frozen, batch).keys() == {'loss', 'logp'}


@pytest.mark.slow  # the test above finds what is measured
def test_the_doctor_finds_nothing_about_a_reference_or_about_classes(folder):
  _, _, (config, prepared, state, frozen) = losses(folder)
  found = {each.name for each in examination.examine(config, prepared, state, frozen)}
  assert not {'reference_differs', 'reference_far', 'reference_is_another', 'dtype_gap', 'one_class'} & found

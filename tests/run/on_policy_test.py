"""On-policy training as a program: settings that are refused, runs that are interrupted, rollouts as data."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from alignjax import objectives, rewards
from alignjax.run import examination, on_policy, preparation, record, settings, training
from alignjax.training import checkpoint, metrics, rollout_files, source
from tests import assets, runs


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('on_policy')
  assets.write_tiny_model(folder / 'model', layers=1)
  with (folder / 'prompts.jsonl').open('w') as stream:
    for i in range(10):
      stream.write(json.dumps({'user': f'Tell me about film {i}', 'answer': i}) + '\n')
  return folder


def configure(folder, **overrides) -> settings.Config:
  values = {
    'model': str(folder / 'model'),
    'prompts': (str(folder / 'prompts.jsonl'),),
    'reward': f"python('{__name__}:reward') - 0.1 * missing_end()",
    'reward_fields': ('answer',),
    'objective': 'dpo(beta=0.5)',
    'samples': 3,
    'pairing': 'best_worst',
    'prompts_per_round': 16,
    'minibatch': 8,
    'max_new_tokens': 8,
    'max_prompt': 64,
    'steps': 5,
    'optimizer': 'adamw(3e-3)',
    'schedule': 'constant',
    'warmup': 0.0,
    'remat': 'none',
    'compute_dtype': 'float32',
    'save_every': 3,
    'doctor': 'off',
    'adapter': 'lora(rank=2)',
    'workdir': str(folder / 'run'),
  }
  return settings.Config(**values | overrides)


class Killed(BaseException):
  """Ends a run without any clean-up."""


calls = []
fatal = None  # the call of the reward that ends the run
broken = None  # the call of the reward that raises


def reward(samples):
  calls.append(len(samples))
  if len(calls) - 1 == fatal:
    raise Killed
  if len(calls) - 1 == broken:
    raise OSError('no answer')
  assert all(isinstance(sample.fields['answer'], int) for sample in samples)
  return [len(set(sample.response)) / 8 for sample in samples]


def lasting(workdir):
  """The records of a run without times."""
  return [
    {name: value for name, value in record.items() if not name.startswith('time/')}
    for record in metrics.read_jsonl(workdir / 'metrics.jsonl')
  ]


@pytest.fixture(scope='module')
def whole(folder):
  """The records of a run that is not interrupted."""
  result = training.train(configure(folder))
  assert result.step == 5
  return lasting(folder / 'run')


def test_a_run_draws_scores_and_trains(folder, whole):
  assert [record['step'] for record in whole] == [1, 2, 3, 4, 5]
  first = whole[0]
  assert {
    f'rollout/{name}' for name in ('reward', 'reward_error', 'reward/python', 'reward/missing_end', 'kl', 'entropy')
  } <= set(first)
  assert [record['step'] for record in whole if 'rollout/reward' in record] == [1, 3, 5]
  assert first['loss'] == pytest.approx(0.6931472, abs=1e-6)
  assert whole[2]['rollout/kl_exact'] > 0
  assert sorted(file.name for file in (folder / 'run' / 'rollouts').iterdir()) == [
    f'round_00000{number}.{ending}' for number in range(3) for ending in ('jsonl', 'npz')
  ]
  drawn = rollout_files.read(folder / 'run' / 'rollouts' / 'round_000002.npz')
  assert drawn.step == 4
  assert rewards.parse(drawn.settings['reward']).name == rewards.parse(configure(folder).reward).name
  assert (folder / 'run' / 'model' / 'config.json').exists()
  assert (folder / 'run' / 'adapter').exists()


@pytest.mark.slow  # training/rollouts_resume_test.py is killed at each place
@pytest.mark.parametrize('place', ['while scoring', 'between updates'])
def test_a_run_that_is_killed_resumes_bit_for_bit(folder, whole, tmp_path, monkeypatch, place):
  """It is killed after the checkpoint of step 3, which is within the second round."""
  config = configure(folder, workdir=str(tmp_path / 'run'))
  write = metrics.JsonlWriter.write

  def fail(self, step, values):
    write(self, step, values)
    if step == 4:
      raise Killed

  with monkeypatch.context() as patch:
    if place == 'while scoring':
      patch.setattr(f'{__name__}.calls', [])
      patch.setattr(f'{__name__}.fatal', 2)
      patch.setattr(rewards.base.watching, 'watched', lambda compute, watch: compute())
    else:
      patch.setattr(metrics.JsonlWriter, 'write', fail)
    with pytest.raises(Killed):
      training.train(config)
  assert training.train(config).step == 5
  assert lasting(tmp_path / 'run') == whole


# rollouts_test.py has the failure, loop_failures_test.py the save, and rollouts_resume_test.py the rest.
@pytest.mark.slow
def test_a_reward_that_fails_saves_the_run_which_resumes(folder, whole, tmp_path, monkeypatch):
  config = configure(folder, workdir=str(tmp_path / 'run'), save_every=0)
  with monkeypatch.context() as patch:
    patch.setattr(f'{__name__}.calls', [])
    patch.setattr(f'{__name__}.broken', 1)
    message = r'round 1 of rollouts: reward python\(.* failed: OSError: no answer\. Step 2 is saved'
    with pytest.raises(source.SourceError, match=message):
      training.train(config)
  assert training.train(config).step == 5
  assert lasting(tmp_path / 'run') == whole


@pytest.mark.slow  # training/rollouts_test.py has missing, damaged and foreign rounds
def test_a_missing_round_stops_a_run_that_is_within_it(folder, tmp_path):
  config = configure(folder, workdir=str(tmp_path / 'run'), steps=3)
  training.train(config)
  rollout_files.path(tmp_path / 'run' / 'rollouts', 1).unlink()
  with pytest.raises(rollout_files.RolloutError, match=r'round_000001\.npz.*cannot be drawn again'):
    training.train(configure(folder, workdir=str(tmp_path / 'run')))


@pytest.mark.slow  # rollouts_test.py trains whole models, and the other runs here an adapter
def test_a_whole_model_is_trained_on_its_own_samples(folder, tmp_path):
  config = configure(
    folder,
    workdir=str(tmp_path / 'run'),
    adapter='',
    objective='rlhf(beta=0.05)',
    pairing='all',
    minibatch=0,
    steps=2,
    doctor='warn',
  )
  training.train(config)
  records = lasting(tmp_path / 'run')
  assert records[0]['kl'] == pytest.approx(0.0, abs=1e-5)
  assert records[1]['rollout/kl_exact'] > 0


@pytest.mark.slow  # doctor/models_test.py has sampling, and doctor_test.py the doctor of `train`
def test_the_doctor_examines_the_first_round(folder):
  said = []
  assert not examination.stops(configure(folder, workdir='', doctor='warn'), said.append)
  assert any('untrained_end' in line for line in said)


def test_rollouts_are_a_dataset(folder, whole):
  given = f'rollouts:{folder / "run" / "rollouts"}'
  values = {'prompts': (), 'reward': '', 'reward_fields': (), 'data': (given,), 'batch_size': 8, 'pairing': 'all'}
  prepared = preparation.prepare(configure(folder, objective='reverse_kl()', **values), print)
  drawn = rollout_files.read_all(folder / 'run' / 'rollouts')
  data = prepared.training.data
  assert (len(data), data.responses, data.fields) == (48, 3, ['score', 'behaviour_logp', 'behaviour_token_logp'])
  np.testing.assert_allclose(data.score, np.concatenate([each.score for each in drawn]), rtol=1e-6)
  found = examination.examine_data(prepared)
  assert 'off_policy_responses' in {finding.name for finding in found}
  with pytest.raises(ValueError, match='rollouts cannot be mixed with other data'):
    preparation.prepare(configure(folder, **values | {'data': (given, 'x.jsonl')}), print)
  with pytest.raises(rollout_files.RolloutError, match='there are no rollouts'):
    preparation.prepare(configure(folder, **values | {'data': ('rollouts:nowhere',)}), print)


@pytest.mark.slow  # the one above reads the same data
def test_rollouts_are_data_for_any_objective(folder, whole, tmp_path):
  given = f'rollouts:{folder / "run" / "rollouts"}'
  values = {'prompts': (), 'reward': '', 'reward_fields': (), 'data': (given,), 'batch_size': 8, 'steps': 2}
  config = configure(folder, workdir=str(tmp_path / 'run'), objective='rebel(eta=1.0)', **values)
  training.train(config)
  assert [record['step'] for record in lasting(tmp_path / 'run')] == [1, 2]
  assert lasting(tmp_path / 'run')[0]['loss'] > 0


REFUSED = [
  ({}, 'bradley_terry', r'bradley_terry.* trains a reward model, which draws no responses'),
  ({'temperature': 0.7}, 'rlhf', r'rlhf needs samples of the policy itself, but config\.temperature = 0\.7'),
  ({'top_k': 5}, 'dpo() + 0.1 * kl_penalty()', r'kl_penalty needs samples .*config\.top_k = 5'),
  ({'pairing': 'best_worst'}, 'reverse_kl', r'reverse_kl needs all responses that were drawn'),
  ({'samples': 2, 'pairing': 'two'}, 'pmle() + kl_penalty()', r'for pairs --samples=2 --pairing=two --ties=keep'),
  ({'samples': 1, 'pairing': 'two'}, 'dpo', r"config\.pairing = 'two' .* draw --samples=2 or more, not 1"),
  ({'samples': 2, 'pairing': 'all'}, 'dpo', r'dpo\(.*reads which response is preferred'),
  ({'samples': 4, 'pairing': 'all'}, 'dpo', r'reads which response .* give --pairing=best_worst'),
  ({'samples': 3, 'pairing': 'all'}, 'rebel', r'rebel compares two responses to a prompt, but the data has 3'),
  ({'reward': ''}, 'dpo', r'config\.reward is missing'),
  ({'reward': 'vadr()'}, 'dpo', r'did you mean vader\(\)'),
  ({'data': ('pairs.jsonl',)}, 'dpo', r'config\.data and config\.prompts are both set'),
  ({'prompts': (), 'data': ('pairs.jsonl',)}, 'dpo', r'config\.reward = .* give --prompts too'),
  (
    {'rollout_objective': 'kl_penalty()'},
    'pmle',
    r'config\.rollout_objective = .* without data, give it as --objective',
  ),
  ({'data': ('x.jsonl',), 'rollout_objective': 'kl_penalty()'}, 'pmle', r'kl_penalty needs all responses'),
  ({'reference_cache': 'cache'}, 'dpo', r'config\.reference_cache holds outputs for given responses'),
  ({'minibatch': 5}, 'dpo', r'minibatch=5: must divide the 16 prompts'),
  ({'refresh': 1}, 'tdpo', r'tdpo.*reads forward_kl, reverse_kl of the reference'),
  ({'minibatch': 4}, 'dpo', r'config\.minibatch: 4 rows must be a multiple of 8'),
]


@pytest.mark.parametrize(('values', 'objective', 'message'), REFUSED)
def test_settings_that_do_not_fit_are_refused(folder, tmp_path, values, objective, message):
  values = {'objective': objective if '(' in objective else f'{objective}()', 'workdir': str(tmp_path), **values}
  if 'pairing' not in values and objective == 'rlhf':
    values['pairing'] = 'all'
  with pytest.raises(ValueError, match=message):
    training.train(configure(folder, **values))


def test_one_sample_without_a_baseline_is_a_warning(folder, caplog):
  objective = objectives.parse('rlhf()')
  with caplog.at_level(logging.WARNING):
    on_policy.warn(configure(folder, objective='rlhf()', samples=1, pairing='all', minibatch=0), objective)
  assert 'no baseline' in caplog.text
  caplog.clear()
  with caplog.at_level(logging.WARNING):
    on_policy.warn(configure(folder, objective='rlhf()', pairing='all', inner_epochs=4, minibatch=0), objective)
  assert 'there are 4 updates on each round' in caplog.text


def test_distillation_needs_no_reward(folder):
  config = configure(folder, objective='distil()', reward='', pairing='all', minibatch=0)
  objective = objectives.parse('distil()')
  on_policy.check(config, objective)
  np.testing.assert_array_equal(on_policy.reward(config)([rewards.Sample('a', 'b', 1, True)] * 2), 0.0)
  with pytest.raises(ValueError, match=r'config\.reward is missing'):
    on_policy.check(dataclasses.replace(config, pairing='best'), objective)


def test_a_changed_reward_model_is_refused_by_name(folder):
  class Model:
    fingerprint = 'weights, scale'

    def __call__(self, samples):
      return [0.0] * len(samples)

  @rewards.factory
  def versioned():
    return Model()

  try:
    config = configure(folder, reward='0.5 * versioned() - missing_end()')
    identity = record.identity(config, preparation.prepare(config, print))
    assert identity['reward_models'] == {'versioned()': 'weights, scale'}
    before = identity | {'reward_models': {'versioned()': 'other weights, scale'}}
    error = checkpoint.MismatchError('', {}, before)
    message = r'^versioned\(\): its model, its reward\.json or its Python file changed since this run was started'
    with pytest.raises(ValueError, match=message):
      raise record.explain(error, identity, config)
  finally:
    del rewards.REWARDS['versioned']


def test_dropping_what_does_not_end_is_a_warning_for_samples_of_the_policy(folder, caplog):
  values = {'unfinished': 'drop', 'minibatch': 0}
  with caplog.at_level(logging.WARNING):
    on_policy.warn(configure(folder, objective='dpo()', **values), objectives.dpo())
  assert not caplog.text
  with caplog.at_level(logging.WARNING):
    on_policy.warn(configure(folder, objective='rlhf()', pairing='all', **values), objectives.rlhf())
  assert "config.unfinished = 'drop': rlhf is trained on the responses that end" in caplog.text


@pytest.mark.slow  # training/joint_test.py compares the gradients and the positions
def test_data_and_rollouts_are_trained_together(folder, whole, tmp_path):
  """PMLE on pairs, with a KL penalty on the policy's own samples."""
  runs.write_pairs(tmp_path / 'pairs.jsonl', 21, seed=0)
  config = configure(
    folder,
    data=(str(tmp_path / 'pairs.jsonl'),),
    batch_size=8,
    objective='pmle(gamma=0.1)',
    rollout_objective='kl_penalty(beta=0.1)',
    reward='',
    pairing='all',
    minibatch=0,
    doctor='warn',
    steps=4,
    workdir=str(tmp_path / 'run'),
  )
  training.train(dataclasses.replace(config, steps=3))
  training.train(config)
  records = lasting(tmp_path / 'run')
  assert [record['step'] for record in records] == [1, 2, 3, 4]
  assert records[0]['rollouts/loss'] == pytest.approx(0.0, abs=1e-5)
  assert records[0]['loss'] > 0.1
  for each in records:
    assert each['rollouts/kl'] == pytest.approx(each['rollout/kl'], abs=1e-4)


def test_a_reward_is_built_once(folder):
  built = []

  @rewards.factory
  def counted():
    built.append(0)
    return lambda samples: [0.0] * len(samples)

  try:
    config = configure(folder, reward='counted()')
    assert on_policy.reward(config) is on_policy.reward(config)
    assert built == [0]
  finally:
    del rewards.REWARDS['counted']

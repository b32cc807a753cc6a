"""A reward model from the command's settings to a reward: trained, exported, scored, trained on, adapted."""

import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax import rewards
from alignjax.doctor import start
from alignjax.evaluation import reward_accuracy
from alignjax.models import checkpoint_io, lora, peft, reward_scale, transformer
from alignjax.run import adapters, checkpoint_export, examination, preparation, reward_scales, settings, training
from alignjax.training import metrics
from alignjax.training import state as training_state
from alignjax.training.policy import Policy
from tests import runs
from tests.commands import doctor_test
from tests.models import token_batches


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return runs.write_folder(tmp_path_factory.mktemp('reward'))


@pytest.fixture(scope='module')
def trained(folder):
  """The folder of a short run, and what it has recorded last."""
  training.train(configure(folder, 'run'))
  return folder / 'run', metrics.read_jsonl(folder / 'run' / 'metrics.jsonl')[-1]


def configure(folder, workdir, **overrides) -> settings.Config:
  values = {'objective': 'bradley_terry()', 'steps': 12, 'eval_every': 0, 'save_every': 0, 'scan_layers': False}
  return runs.make_config(folder, folder / workdir, **values | overrides)


def pairs_of(folder):
  rows = [json.loads(line) for line in (folder / 'eval.jsonl').read_text().splitlines()]
  return [reward_accuracy.Pair(row['prompt'], row['chosen'], row['rejected']) for row in rows]


def test_the_exported_model_scores_text_as_the_run_has_evaluated_it(folder, trained):
  run, last = trained
  found = reward_accuracy.evaluate(rewards.RewardModel.load(run / 'model', normalise=False), pairs_of(folder))
  assert found.overall.mean == pytest.approx(last['eval/reward_accuracy'])
  assert last['eval/reward_accuracy'] > 0.5
  entries = json.loads((run / 'model' / 'config.json').read_text())
  assert (entries['architectures'], entries['num_labels']) == (['LlamaForSequenceClassification'], 1)
  card = (run / 'model' / 'README.md').read_text()
  assert 'pipeline_tag: text-classification' in card
  assert '# model, reward model' in card


def test_the_scale_is_that_of_the_held_out_responses(folder, trained):
  run, last = trained
  scale = reward_scale.read(run / 'model')
  assert scale.source == 'held-out responses after step 12'
  samples = [rewards.Sample(pair.prompt, text, 0, True) for pair in pairs_of(folder) for text in pair[1:3]]
  scores = rewards.RewardModel.load(run / 'model')(samples)
  assert scores.mean() == pytest.approx(0.0, abs=1e-5)
  assert scores.std() == pytest.approx(1.0, abs=1e-5)
  assert last['eval/reward_std'] == pytest.approx(scale.std, rel=1e-5)


def test_a_checkpoint_exports_the_same_model_and_scale(trained, tmp_path):
  run, _ = trained
  checkpoint_export.export(str(run), str(tmp_path))
  for name in ('config.json', 'model.safetensors', 'reward.json'):
    assert (tmp_path / 'model' / name).read_bytes() == (run / 'model' / name).read_bytes()


def test_without_held_out_data_the_scale_is_that_of_the_last_batches(tmp_path):
  records = [
    {'step': 1, 'reward_mean': 0.0, 'reward_square': 1.0, 'prompts': 3.0},
    {'step': 2, 'reward_mean': 4.0, 'reward_square': 17.0, 'prompts': 1.0},
    {'step': 3, 'reward_mean': 9.0, 'reward_square': 99.0, 'prompts': 1.0},
  ]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  scale = reward_scales.after(tmp_path, 2)
  assert (scale.mean, scale.std) == (1.0, pytest.approx(2.0))
  assert scale.source == 'training responses of the last 2 steps'
  assert reward_scales.after(tmp_path, 0) is None
  assert reward_scales.after(tmp_path / 'other', 2) is None


def test_training_continues_from_a_reward_model_and_refuses_it_as_a_language_model(trained, folder):
  run, _ = trained
  config = configure(folder, 'next', model=str(run / 'model'))
  prepared = preparation.prepare(config, doctor_test.SILENT)
  params = preparation.initial_params(config, prepared)
  stored = safetensors_numpy.load_file(run / 'model' / 'model.safetensors')['score.weight']
  np.testing.assert_array_equal(params['score']['kernel'], stored.T)
  assert not prepared.reference.needed
  with pytest.raises(ValueError, match=r'holds a reward model \(LlamaForSequenceClassification\)'):
    preparation.prepare(configure(folder, 'next', model=str(run / 'model'), objective='dpo()'), doctor_test.SILENT)


@pytest.mark.slow  # the test above starts from a stored score
def test_an_adapter_starts_from_the_stored_score_or_a_new_one(trained, folder):
  run, _ = trained
  for model, expected in ((str(run / 'model'), True), (str(folder / 'model'), False)):
    config = configure(folder, 'next', model=model, adapter='lora(rank=2)')
    prepared = preparation.prepare(config, doctor_test.SILENT)
    params = preparation.initial_params(config, prepared)
    stored = safetensors_numpy.load_file(run / 'model' / 'model.safetensors')['score.weight'].T
    assert np.array_equal(params['score']['kernel'], stored) is expected
    assert np.std(params['score']['kernel']) == pytest.approx(33**-0.5, rel=0.5)


def test_online_merging_has_no_difference_for_the_score_head(folder):
  config = configure(
    folder, 'next', optimizer='chain(sgd(0.1), online_dare(reserve=0.1, alpha=1e-6))', base_model=str(folder / 'model')
  )
  with pytest.raises(ValueError, match=r'the score head of bradley_terry.* has no such difference'):
    preparation.check_settings(config)


def test_the_same_seed_draws_the_same_score(folder):
  kernels = []
  for seed in (0, 0, 1):
    config = configure(folder, 'next', seed=seed)
    drawn = adapters.drawing_score(checkpoint_io.load_config(config.model, output='score'), config.seed)
    kernels.append(np.asarray(drawn()))
  np.testing.assert_array_equal(kernels[0], kernels[1])
  assert np.abs(kernels[0] - kernels[2]).min() > 0


def test_the_doctor_measures_no_log_probabilities_of_a_reward_model(folder):
  prepared = preparation.prepare(configure(folder, 'next'), doctor_test.SILENT)
  measure = start.build_measurement(prepared.policy, prepared.objective, chunk=1024)
  batch = next(iter(prepared.training.batches)).data
  assert jax.eval_shape(measure, prepared.shapes, training_state.Frozen(), batch).keys() == {'loss'}


@pytest.mark.slow  # the test above finds what is measured
def test_the_doctor_examines_a_reward_model(folder):
  config, prepared, state, frozen = doctor_test.start_of(configure(folder, 'next', doctor='stop'))
  assert not doctor_test.named(examination.examine(config, prepared, state, frozen))


def test_an_adapter_is_stored_with_its_score_head(tmp_path, trained):
  run, _ = trained
  config = checkpoint_io.load_config(run / 'model', output='score')
  base = token_batches.params(transformer.build(config))
  policy = Policy(transformer.build(config), lora.LoRA(rank=2, targets='query'))
  factors = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1, policy.init(jax.random.key(0), base))
  peft.save(tmp_path / 'adapter', config, policy.adapter, factors, run / 'model')
  entries = json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())
  assert (entries['task_type'], entries['modules_to_save']) == ('SEQ_CLS', ['score'])
  _, loaded = peft.load(tmp_path / 'adapter', config)
  jax.tree.map(np.testing.assert_array_equal, loaded, factors)
  convert = peft.merging(tmp_path / 'adapter', config)
  np.testing.assert_array_equal(convert('score/kernel', jax.numpy.zeros((config.width, 1))), factors['score']['kernel'])
  with pytest.raises(ValueError, match=r"unsupported entries: modules_to_save=\['score'\]"):
    peft.load(tmp_path / 'adapter', checkpoint_io.load_config(run.parent / 'model'))

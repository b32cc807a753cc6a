"""What a run begins with: rows that are refused or counted, and references of adapters."""

import pytest

from alignjax.data.reading import rows
from alignjax.run import examination, preparation
from alignjax.training import references
from tests import runs
from tests.commands import doctor_test


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('preparation')
  doctor_test.write_model(folder / 'model')
  runs.write_pairs(folder / 'train.jsonl', 61, seed=0)
  return folder


def configure(folder, **overrides):
  return doctor_test.configure(folder, **{'workdir': ''} | overrides)


def test_a_malformed_row_stops_the_run_or_is_counted(folder, tmp_path):
  given = doctor_test.rows_of(folder / 'train.jsonl')
  data = doctor_test.write_rows(tmp_path / 'x.jsonl', [*given[:3], {'prompt': 'Hi', 'chosen': 3}, *given[3:]])
  with pytest.raises(rows.DataError, match=r"x\.jsonl:4: field 'rejected' is missing"):
    preparation.prepare(configure(folder, data=data), doctor_test.SILENT)
  report = preparation.prepare(configure(folder, data=data, on_error='skip'), doctor_test.SILENT).training.data.report
  assert (report.read, report.kept) == (62, 61)
  assert report.dropped['missing_field'].count == 1


def test_prompts_without_responses_are_refused_before_anything_is_trained(folder):
  data = f'prompts:{folder / "train.jsonl"}'
  with pytest.raises(
    ValueError, match=r'train\.jsonl: the rows are prompts without responses, but an objective needs res'
  ):
    preparation.prepare(configure(folder, data=(data,)), doctor_test.SILENT)


def test_data_that_the_objective_cannot_use_is_refused_before_weights_are_read(folder):
  with pytest.raises(ValueError, match='odpo reads `score`, a reward for each response, but the data has none'):
    preparation.prepare(configure(folder, objective='dpo() + odpo()'), doctor_test.SILENT)


def test_data_with_another_number_of_responses_is_refused_with_the_forms_that_fit(folder, tmp_path):
  row = {'prompt': 'A film', 'completion': ' is good', 'label': True}
  data = [f'unpaired:{path}' for path in doctor_test.write_rows(tmp_path / 'x.jsonl', [row])]
  message = (
    r'x\.jsonl: dpo compares two responses to a prompt, but the data has one: choose another objective, or data in one '
    'of the forms preference, ranked, scored, scored_pair, alpaca, hh, '
  )
  with pytest.raises(ValueError, match=message):
    preparation.prepare(configure(folder, data=tuple(data)), doctor_test.SILENT)


def test_a_setting_that_the_model_cannot_have_is_not_blamed_on_its_file(folder):
  with pytest.raises(ValueError, match=r"^attention='cudnn' needs compute_dtype='bfloat16', not 'float32'$"):
    preparation.prepare(configure(folder, attention='cudnn'), doctor_test.SILENT)


@pytest.mark.slow  # adapters_test.py trains on a base in 8 bits
@pytest.mark.parametrize(
  ('base', 'cache'),
  [*(pytest.param(base, False, marks=pytest.mark.slow) for base in ('none', 'int8')), ('int8', True)],
)
def test_the_base_of_an_adapter_is_its_reference_however_it_is_kept(folder, tmp_path, base, cache):
  """A cache of a quantised base is computed from the quantised base: else the rewards would not start at 0."""
  cached = {'reference_cache': str(tmp_path)} if cache else {}
  config = configure(folder, adapter='lora(rank=2)', base_quantization=base, **cached)
  config, prepared, state, frozen = doctor_test.start_of(config)
  assert frozen.reference == (references.NotLoaded() if cache else references.Base())
  assert doctor_test.named(examination.examine(config, prepared, state, frozen)) == {}


def test_another_reference_of_an_adapter_has_parameters_of_its_own(folder, tmp_path):
  doctor_test.write_model(tmp_path / 'other', seed=1)
  config = configure(folder, adapter='lora(rank=2)', reference=str(tmp_path / 'other'))
  _, _, _, frozen = doctor_test.start_of(config)
  assert isinstance(frozen.reference, references.Live)

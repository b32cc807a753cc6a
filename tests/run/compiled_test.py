"""Where compiled programs are kept."""

import stat

import jax
import pytest

from alignjax.run import arithmetic, compiled

NAMES = ('compilation_cache_dir', 'persistent_cache_min_compile_time_secs', 'compilation_cache_max_size')


@pytest.fixture
def unset():
  """JAX without a cache; afterwards, as before."""
  before = {f'jax_{name}': getattr(jax.config, f'jax_{name}') for name in NAMES}
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_programs_are_kept_in_the_cache_folder_of_the_user_for_the_user_alone(tmp_path, monkeypatch, unset):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  folder = compiled.keep()
  assert folder.startswith(str(tmp_path / 'alignjax' / 'compiled'))
  assert jax.config.jax_compilation_cache_dir == folder
  (path,) = (tmp_path / 'alignjax' / 'compiled').iterdir()
  assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_cpus_with_other_instructions_have_a_folder_of_their_own(tmp_path, monkeypatch, unset):
  monkeypatch.setattr(arithmetic, 'cpu_features', lambda: {'avx2'})
  first = compiled.keep(str(tmp_path))
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setattr(arithmetic, 'cpu_features', lambda: {'avx2', 'avx512f'})
  assert compiled.keep(str(tmp_path)) != first


def test_off_and_a_folder_that_cannot_be_made_keep_nothing(tmp_path, unset):
  (tmp_path / 'file').touch()
  for folder in (compiled.OFF, str(tmp_path / 'file' / 'below')):
    assert compiled.keep(folder) == ''
    assert jax.config.jax_compilation_cache_dir is None


def test_a_cache_that_is_configured_stays(tmp_path, unset):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'mine'))
  assert compiled.keep(str(tmp_path / 'other')) == str(tmp_path / 'mine')
  assert not (tmp_path / 'other').exists()

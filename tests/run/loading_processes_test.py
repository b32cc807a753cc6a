"""Two real processes load one model, each its own part."""

import json
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, folders
from alignjax.training import checksums
from tests.models import model_folders

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow  # slices_test.py counts the same without processes, loaded_test.py passes the error on
def test_each_process_reads_its_part_and_both_hear_of_a_fault(tmp_path):
  sound = model_folders.write(tmp_path / 'sound', width=64, mlp_width=128, heads=4, kv_heads=2)
  for folder in (sound, model_folders.write(tmp_path / 'damaged', width=64, mlp_width=128, heads=4, kv_heads=2)):
    tensors = {name: value.astype('bfloat16') for name, value in model_folders.stored(folder).items()}
    if folder != sound:
      tensors['model.layers.1.mlp.up_proj.weight'][5, 3] = np.nan  # a column of the first device
    safetensors_numpy.save_file(tensors, folder / folders.WEIGHTS)
  with socket.socket() as free:
    free.bind(('localhost', 0))
    coordinator = f'localhost:{free.getsockname()[1]}'
  command = [sys.executable, '-m', 'tests.loading', coordinator]
  started = [
    subprocess.Popen([*command, str(process), sound, tmp_path / 'damaged'], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for process in range(2)
  ]
  outputs = [process.communicate(timeout=240)[0] for process in started]
  lines = [[json.loads(line) for line in output.splitlines() if line.startswith('{')] for output in outputs]
  config = checkpoint_io.load_config(sound)
  whole = checkpoint_io.load_params(sound, config, loading=checkpoint_io.Loading(None))
  size = sum(value.nbytes for value in model_folders.stored(sound).values())
  for loaded, failed in lines:
    assert loaded['read'] == loaded['share'] < 0.55 * size
    assert loaded['sums'] == checksums.checksums(whole)
    assert failed == lines[0][1]
    assert 'tensor model.layers.1.mlp.up_proj.weight (bfloat16) holds values that are not finite' in failed['error']

"""`alignjax plan --compile`: the step of a run, compiled for a TPU slice without a TPU, has the planned arguments."""

import json
import re

import pytest

from alignjax import exit_codes
from alignjax.commands import main, program
from tests.planning import folders
from tests.pods import topologies

pytestmark = pytest.mark.slow  # about a minute

RUN = ('--topology=v5e:2x2', '--batch_size=4', '--max_prompt=128', '--max_response=128', '--compute_dtype=bfloat16')


def test_the_compiler_counts_the_planned_arguments(tmp_path, capsys):
  assert topologies.devices('v5e:2x2')
  file = tmp_path / 'plan.json'
  model = folders.write(tmp_path, **folders.TINY | {'vocab_size': 4096, 'hidden_size': 512, 'head_dim': 128})
  code = program.execute(main.PROGRAM, ['alignjax', 'plan', f'--model={model}', *RUN, '--compile', f'--json={file}'])
  assert code == exit_codes.DONE
  found = re.search(r'compiler +([\d.]+) GiB of arguments, a peak of [\d.]+ GiB; it alloc', capsys.readouterr().out)
  planned = sum(json.loads(file.read_text())['memory']['arguments'].values())
  assert float(found[1]) == pytest.approx(planned / 2**30, abs=0.005)  # two decimals

"""Compares the training step with TRL, Tunix and a loop written by hand: DPO of one model on the same pairs.

  sh bench/peers/environments.sh peers
  python -m bench.peers.training --environments=peers                              pairs of one length
  python -m bench.peers.training --environments=peers --case=ragged --rounds=5     lengths like those of HH
  python -m bench.peers.training --environments=peers --quick                      a tiny model: only the losses count

Each contender is a process of its own in its own environment, and all of them live at once. In each round every one
does a turn, in random order. A turn is an update on a given batch; of ragged pairs it is an epoch, whose batches each
contender makes in its own way, at a learning rate so small that the losses do not depend on their order. A contender
whose losses differ from those of alignjax is refused. README.md describes the contenders and the table.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

from absl import app, flags

from bench.peers import files, protocol, results, workers

HERE = pathlib.Path(__file__).absolute().parents[2]


class Contender(NamedTuple):
  """A module of this package, and the environment that it runs in: '' for that of this process."""

  module: str
  environment: str = ''
  arguments: tuple[str, ...] = ()


CONTENDERS = {
  'alignjax': Contender('alignjax_training'),
  'alignjax_unrolled': Contender('alignjax_training', arguments=('--unrolled',)),
  'alignjax_packed': Contender('alignjax_training', arguments=('--packed',)),
  'trl': Contender('trl_training', 'trl'),
  'trl_compact': Contender('trl_training', 'trl', ('--compact',)),
  'trl_grouped': Contender('trl_training', 'trl', ('--grouped',)),
  'tunix': Contender('tunix_training', 'tunix'),
  'hand': Contender('hand_training', 'trl'),
}
BASE = 'alignjax'


class Setting(NamedTuple):
  """A case: the lengths of a prompt and of each response (None: ragged), and how they are trained on."""

  case: protocol.Case
  lengths: tuple[int, int] | None
  contenders: tuple[str, ...] = (BASE, 'trl', 'trl_compact', 'tunix', 'hand')
  tolerance: float = 1e-4


_UNIFORM = protocol.Case(batch=4, learning_rate=1e-5)
CASES = {
  'uniform': Setting(_UNIFORM, (64, 192)),
  'prompt_heavy': Setting(_UNIFORM, (384, 128)),
  'ragged': Setting(
    protocol.Case(batch=8, learning_rate=1e-12, epoch=True, warm_up=1), None, (BASE, 'alignjax_packed', 'trl', 'hand')
  ),
  # Roundings to 8 bits differ from one order of operations to another.
  'bfloat16': Setting(_UNIFORM._replace(dtype='bfloat16'), (64, 192), tolerance=1e-2),
  'cached_reference': Setting(_UNIFORM._replace(cached=True), (64, 192)),
}
BATCHES = 4  # of pairs of one length, in turn

_CASES = flags.DEFINE_multi_enum('case', ['uniform'], list(CASES), 'What to compare, one after another.')
_CONTENDERS = flags.DEFINE_multi_enum(
  'contender', None, list(CONTENDERS), 'Contenders beside alignjax; empty: those that suit the case.'
)
_ENVIRONMENTS = flags.DEFINE_string('environments', 'peers', 'Folder that environments.sh has made.')
_FOLDER = flags.DEFINE_string('folder', '', 'Folder for models, pairs and logs; empty: one that is removed afterwards.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measured rounds of one turn per contender.', lower_bound=1)
_RAGGED = flags.DEFINE_integer(
  'ragged_pairs', 128, 'Pairs of an epoch of ragged pairs, a multiple of 8.', lower_bound=8
)
_DISTURBED = flags.DEFINE_float('disturbed', 0.1, 'Share of the machine from which on others disturb a round.')
_PAUSE = flags.DEFINE_float('pause', 0.3, 'Seconds before each turn.')
_HUGE_PAGES = flags.DEFINE_bool('huge_pages', False, 'Give large arrays of all contenders huge pages.')
_QUICK = flags.DEFINE_bool('quick', False, 'A tiny model and few short pairs: their speed means nothing.')


def make_pairs(setting: Setting, vocabulary: int) -> list[protocol.Pair]:
  if setting.lengths is None:
    count, scale = (32, 0.2) if _QUICK.value else (_RAGGED.value, 1.0)
    return files.ragged_pairs(vocabulary, count, scale)
  prompt, response = (length // 4 if _QUICK.value else length for length in setting.lengths)
  return files.uniform_pairs(vocabulary, BATCHES * setting.case.batch, prompt, response)


def interpreter(contender: Contender) -> str:
  if not contender.environment:
    return sys.executable
  return str(pathlib.Path(_ENVIRONMENTS.value).absolute() / contender.environment / 'bin' / 'python')


def variables(huge_pages: bool) -> dict[str, str]:
  """The environment variables of every contender."""
  tunables = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'} if huge_pages else {}
  return os.environ | {'PYTHONPATH': str(HERE), 'JAX_PLATFORMS': 'cpu', 'HF_HUB_OFFLINE': '1'} | tunables


def products() -> dict[str, float]:
  """GFLOP/s of matrix products in JAX, by dtype."""
  command = [sys.executable, '-m', 'bench.peers.products']
  return json.loads(
    subprocess.run(command, env=variables(_HUGE_PAGES.value), stdout=subprocess.PIPE, text=True, check=True).stdout
  )


def measure(names: list[str], folder: pathlib.Path) -> list[results.Result]:
  """Runs contenders side by side; the first must run."""
  found, alive = [], []
  with contextlib.ExitStack() as stack:
    for name in names:
      contender, result = CONTENDERS[name], results.Result(name)
      command = [interpreter(contender), '-m', f'bench.peers.{contender.module}', str(folder), *contender.arguments]
      try:
        worker = workers.Worker(name, command, variables(_HUGE_PAGES.value), folder / f'{name}.log')
        stack.callback(worker.close)
        worker.prepare()  # one after another, so that none compiles while another warms up
      except (workers.EndedError, FileNotFoundError) as error:
        result.problem = f'no {command[0]}' if isinstance(error, FileNotFoundError) else str(error)
        if name == names[0]:
          raise SystemExit(f'{name} does not run: {result.problem}') from None
      else:
        result = worker.result
        alive.append(worker)
      found.append(result)
      print(f'{name}: {result.problem or f"ready, first turn {result.first_seconds:.1f} s"}', file=sys.stderr)
    try:
      workers.take_turns(alive, _ROUNDS.value, _PAUSE.value)
    except workers.EndedError as error:
      raise SystemExit(f'a contender has ended in its turn: {error}') from None
  return found


def compare(name: str, folder: pathlib.Path, entries: dict, rates: dict[str, float]) -> None:
  """Runs a case and prints its table."""
  setting = CASES[name]
  case, pairs = setting.case, make_pairs(setting, entries['vocab_size'])
  protocol.write(folder, case, pairs)
  others = [other for other in _CONTENDERS.value or setting.contenders if other != BASE]
  found = measure([BASE, *others], folder)
  results.check_telling(found[0], setting.tolerance)
  turn = pairs if case.epoch else pairs[: case.batch]
  useful = sum(
    (protocol.shared_rows(1, len(pair.prompt), list(map(len, pair.responses))) for pair in turn), protocol.Work()
  )
  scale = results.Scale(
    sum(len(part) for pair in turn for part in pair),
    results.flops(useful, entries, case.cached),
    1e9 * rates[case.dtype],
  )
  own = {one.name: results.flops(one.work, entries, case.cached) for one in found if one.work}
  rules = results.Rules(setting.tolerance, _DISTURBED.value)
  lengths = 'ragged pairs' if setting.lengths is None else f'pairs of {len(turn[0].prompt)} + 2 x {len(turn[0].chosen)}'
  print(f'\n{name}: {len(turn)} {lengths} tokens a turn, {case.dtype}, {_ROUNDS.value} rounds', end='')
  print(f', huge pages {"on" if _HUGE_PAGES.value else "off"}\n')
  print('\n'.join(results.table(found, rules, scale, own)), flush=True)


def main(_):
  entries = files.QUICK_LLAMA if _QUICK.value else files.LLAMA
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(_FOLDER.value or stack.enter_context(tempfile.TemporaryDirectory())).absolute()
    files.write_models(folder, entries)
    rates = products()
    print('matrix products:', ', '.join(f'{rate:.0f} GFLOP/s in {dtype}' for dtype, rate in rates.items()))
    for name in _CASES.value:
      compare(name, folder, entries, rates)


if __name__ == '__main__':
  app.run(main)

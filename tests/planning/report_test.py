"""The texts of the planner that need no plan: commands, changes, and the compiler's memory."""

import types

import pytest

from alignjax.planning import memory, plan, report
from alignjax.run import settings

GIB = 2**30


def planned(peak, limit=16 * GIB):
  """A plan of which only the memory is known."""
  estimate = memory.Estimate({'parameters': peak}, {'head': {}})
  return types.SimpleNamespace(memory=estimate, verdict=estimate.verdict(limit))


def test_the_command_has_what_differs_from_the_defaults():
  config = settings.Config(
    model='m', data=('a.jsonl', 'b.jsonl'), objective='dpo(beta=0.2)', mesh=settings.MeshConfig(tensor=2), workdir='run'
  )
  assert report.command(config) == (
    "alignjax train --model=m --data=a.jsonl,b.jsonl --mesh.tensor=2 '--objective=dpo(beta=0.2)' --workdir=run"
  )
  assert report.command(settings.Config(model='m')) == 'alignjax train --model=m --data=<data> --workdir=<folder>'


def test_changes_are_listed_with_their_memory():
  found = [plan.Change('--remat=full', planned(15 * GIB)), plan.Change('--microbatches=4', planned(8.5 * GIB))]
  assert report.changes(found, 16 * GIB) == (
    'changes tried, each alone:\n'
    '  --remat=full      15.00 GiB of 16.00 GiB: tight\n'
    '  --microbatches=4  8.50 GiB of 16.00 GiB: fits'
  )
  assert report.changes([], 16 * GIB).startswith('None of the changes tried needs less memory')


@pytest.mark.parametrize(('peak', 'ratio'), [(11, '10.0% above'), (9, '10.0% below')])
def test_the_compiler_is_compared_with_the_estimate(peak, ratio):
  text = report.compared(planned(peak * GIB), report.Compiled(2 * GIB, 10 * GIB, int(10.5 * GIB)))
  assert text == (
    'compiler    2.00 GiB of arguments, a peak of 10.00 GiB; it allocates 10.50 GiB with gaps '
    f'(the estimate is {ratio} its peak)'
  )


@pytest.mark.parametrize(
  ('values', 'rows', 'steps'), [({'steps': 7}, 1000, 7), ({'epochs': 2}, 100, 8), ({}, 33, 2), ({}, 0, 0)]
)
def test_steps_of_a_run(values, rows, steps):
  shown = types.SimpleNamespace(config=settings.Config(**values))
  assert report.steps(shown, rows) == steps

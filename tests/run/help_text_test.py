"""--help: every flag of every program, with the value that the program has without the flag."""

import importlib

from absl import flags
import pytest

from alignjax import exit_codes
from alignjax.commands import main, program
from alignjax.run import command_line, fields, help_text, program_flags, settings
from experiments.quickstart import comparison
from experiments.quickstart import run as quickstart


def programs(loaded=main.PROGRAM):
  if isinstance(loaded, program.Group):
    for name in loaded.summaries:
      yield from programs(loaded.load(name))
  else:
    yield loaded


TOYS = (
  'adaptive_margin',
  'alignment_tax',
  'distribution_learning',
  'frontier',
  'nested_risk',
  'over_optimisation',
  'token_risk',
)
STUDIES = (
  quickstart.PROGRAM,
  comparison.PROGRAM,
  *(importlib.import_module(f'experiments.toy.{name}').PROGRAM for name in TOYS),
)
PROGRAMS = {each.name: each.settings for each in (*programs(), *STUDIES)}


def entries(kind: type) -> dict[str, str]:
  """The text of each flag in --help, in one line."""
  found, name = {}, ''
  for line in help_text.describe(kind).splitlines():
    if line.startswith('  --'):
      name, _, text = line.strip().partition(' ')
      found[name] = text.strip()
    elif line.startswith('   '):
      found[name] += ' ' + line.strip()
  return found


def read(kind: type, *arguments: str):
  """The settings of a command line, by the names of flags; those that are required are given too."""
  if kind is command_line.Invocation:
    return fields.flat(command_line.parse_flags(kind, ['x', *arguments], flags.FlagValues()))
  values = flags.FlagValues()
  program_flags.define(kind, values)
  program_flags.parse(kind, ['x', *arguments], values)
  return fields.flat(fields.build(kind, fields.nested(program_flags.given(kind, values))))


@pytest.mark.parametrize('name', PROGRAMS)
def test_help_lists_every_flag(name):
  assert list(entries(PROGRAMS[name])) == [f'--{leaf.flag}' for leaf in fields.leaves(PROGRAMS[name])]
  assert all(len(line) <= help_text.WIDTH for line in help_text.describe(PROGRAMS[name]).splitlines())


@pytest.mark.parametrize('chosen', [main.PROGRAM, *programs(), *STUDIES], ids=lambda chosen: chosen.name)
def test_help_ends_with_exit_code_0(chosen, capsys):
  for flag in ('--help', '-h', '--helpfull'):
    assert program.execute(chosen, [chosen.name, flag]) == exit_codes.DONE
    assert capsys.readouterr().out.startswith(chosen.text.strip().partition('\n')[0])


@pytest.mark.parametrize('name', PROGRAMS)
def test_help_prints_the_values_of_a_program_without_flags_and_typing_them_changes_nothing(name):
  kind = PROGRAMS[name]
  resolved, texts = read(kind), entries(kind)
  for leaf in fields.leaves(kind):
    text = texts[f'--{leaf.flag}']
    if leaf.field.metadata.get('required'):
      assert text.endswith('Required.')
      continue
    default = text.rpartition('Default: ')[2]
    assert default == help_text.show(resolved[leaf.name])
    typed = '' if default == 'empty' else default
    assert read(kind, f'--{leaf.flag}={typed}') == resolved, leaf.flag


def test_the_values_of_a_training_run_are_those_of_its_configuration():
  texts, values = entries(command_line.Invocation), settings.flat(settings.Config())
  assert texts['--batch_size'].endswith('Default: 32')
  assert texts['--warmup'].endswith('Default: 0.1')
  assert {'--objective', '--data', '--config', '--import', '--mesh.fsdp', '--watch.step'} <= texts.keys()
  assert len(texts) > len(values)


def test_settings_are_grouped():
  lines = help_text.describe(command_line.Invocation).splitlines()
  assert [line.rstrip(':') for line in lines if line and not line.startswith(' ')] == [
    'Configuration',
    'Model',
    'Data',
    'Devices and memory',
    'Your own code',
    'Objective',
    'On-policy training',
    'Optimization',
    'Checks and output',
    'Processes',
  ]


def test_what_an_empty_setting_of_a_run_means_is_explained():
  leaves = [leaf for leaf in fields.leaves(command_line.Invocation) if leaf.field.default in ('', ())]
  silent = {leaf.flag for leaf in leaves if 'mpty: ' not in leaf.field.metadata['text']}
  assert silent == {'model', 'data', 'workdir'}  # a run needs them

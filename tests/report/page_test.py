"""Pages of `alignjax report`: what they show, what they escape, and what is missing without being an error."""

import html
from html import parser
import json
import pathlib
import re
import shlex

from absl import flags
import numpy as np
import pytest

from alignjax.commands import program, report
from alignjax.report import facts, page, reading
from alignjax.run import about, command_line, fields, settings
from tests.report import folders

ROOT = pathlib.Path(__file__).parents[2]
VOID = {'meta', 'link', 'br'}
LOADING = {'src', 'srcset', 'data', 'poster', 'action', 'formaction', 'background', 'xlink:href', 'ping', 'style'}


class Reader(parser.HTMLParser):
  """Checks that tags are closed in order, and collects attributes and pictures."""

  def __init__(self, text: str):
    super().__init__()
    self.open, self.tags, self.pictures = [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in VOID:
      self.open.append(tag)
    if tag == 'svg':
      self.pictures.append((dict(attributes), {}))

  def handle_startendtag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-2:-1] == ['svg']:
      self.pictures[-1][1][self.open[-1]] = data


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp('report')
  folders.write_run(folder / 'a')
  folders.write_run(folder / 'b', steps=12, scale=2.0, objective='simpo(beta=2.0) + mine(0.5)', seed=1)
  folders.write_rollouts(folder / 'on')
  folders.write_evaluation(folder / 'eval', [f'{folder}/a/checkpoints/10', f'{folder}/a/checkpoints/20'])
  folders.write_evaluation(folder / 'other', ['elsewhere/model'])
  folders.write_sweep(folder / 'sweep')
  return folder


def made(*given) -> tuple[str, facts.Report]:
  found = reading.read([str(each) for each in given])
  return page.render(found), found


def words(text: str) -> str:
  """The text of a page without its tags."""
  return ' '.join(html.unescape(re.sub(r'<[^>]*>', ' ', re.sub(r'<style>.*?</style>', '', text, flags=re.S))).split())


@pytest.mark.parametrize('names', [('a',), ('a', 'b', 'on'), ('eval',), ('sweep',)], ids=str)
def test_pages_are_well_formed_load_nothing_and_describe_their_figures(world, names):
  text, _ = made(*(world / name for name in names))
  read = Reader(text)
  for tag, attributes in read.tags:
    assert tag not in ('script', 'img', 'iframe', 'object', 'embed', 'base', 'form')
    assert not LOADING & attributes.keys()
    assert not any(name.startswith('on') for name in attributes)
    if 'href' in attributes and tag != 'a':
      assert attributes['href'] == 'data:,'
    if tag == 'a':
      assert attributes['href'].startswith(('#', 'https://'))
  assert not re.search(r'url\(|@import', text)
  assert 'alert(1)' in text
  pictures = [(attributes, parts) for attributes, parts in read.pictures if attributes.get('aria-hidden') != 'true']
  assert pictures
  for attributes, parts in pictures:
    assert attributes['role'] == 'img'
    assert parts['title'].strip()
    assert parts['desc'].strip()
  ids = [attributes['id'] for _, attributes in read.tags if 'id' in attributes]
  assert len(set(ids)) == len(ids)
  named = {name for attributes, _ in pictures for name in attributes['aria-labelledby'].split()}
  assert named <= set(ids)
  links = {attributes['href'][1:] for tag, attributes in read.tags if tag == 'a' and attributes['href'][0] == '#'}
  assert links <= set(ids)


def test_a_run_shows_its_settings_objective_doctor_costs_and_files(world):
  text, found = made(world / 'a')
  shown = words(text)
  (run,) = found.runs
  assert run.finished
  assert run.skipped == (7, 8)
  assert 'loss = -(1 - e) log sigmoid(beta h)' in shown
  assert 'https://arxiv.org/abs/2305.18290' in shown
  assert 'alignjax train --model=models/tiny --data=pairs.jsonl --steps=30' in shown
  assert shown.index('error duplicate_examples') < shown.index('note length_bias')
  assert 'jax 0.12.0' in shown
  assert 'tiny, 7 parameters' in shown
  assert '15.0 s 500 ms 3000 200 1.50 GiB' in shown  # 30 updates of half a second
  assert 'model/ the aligned model in Hugging Face format 2.0 KiB' in shown
  assert 'batches skipped because their loss or gradient was not finite: 2 (7, 8).' in shown
  assert text.count('class="mark c0"') == 2 * len(re.findall('id="curve-\\d+"', text))


def test_several_runs_share_panels_and_their_differences_come_first(world):
  text, found = made(world / 'a', world / 'b')
  shown = words(text)
  assert [run.label for run in found.runs] == ['a', 'b']
  assert shown.index('Settings that differ') < shown.index('Settings that all share') < shown.index('Commands')
  assert 'seed 0 1' in shown
  assert 'mine: not part of alignjax' in shown
  assert '12 of 30' in shown
  assert any('b: has done 12 of 30 updates' in note for note in found.notes)
  losses = text[text.index('id="curve-0"') :].partition('</svg>')[0]
  assert losses.count('class="line c0 d0"') == losses.count('class="line c1 d0"') == 1
  assert losses.count('class="line c1 d1"') == 1  # held out


def test_evaluations_of_a_run_are_found_beside_it(world):
  text, found = made(world / 'a')
  assert [each.folder for each in found.evaluations] == [str(world / 'eval')]
  shown = words(text)
  assert 'a at 20 0.200 ± 0.020 0.7' in shown
  assert 'runs/a reward rl 0.50 ± 0.10 0.20 ± 0.10 0.01' in shown
  assert found.evaluations[0].shown.columns == ('sft', 'a at 20')  # of the checkpoints, the last one
  figure = text[text.index('id="frontier-0"') :].partition('</svg>')[0]
  assert figure.count('class="whisker') == 6  # the error of each reward, and the interval of each distance
  assert '√KL' in figure


def test_on_policy_runs_show_rounds_and_samples_before_and_after(world):
  text, found = made(world / 'on')
  for title in ('Reward', 'KL from the reference', 'Length', 'Share of the time of a round'):
    assert f'<figcaption>{title}</figcaption>' in text
  assert 'class="band c0' in text
  assert 'sample 75%' in words(text)
  (samples,) = found.runs[0].rollouts
  (row,) = samples.rows
  assert samples.columns == ('when first drawn', 'in the last round')
  assert [each.text[:10] for cell in row.cells for each in cell] == [
    'answer 0.0',
    'answer 0.1',
    'answer 2.0',
    'answer 2.1',
  ]
  assert row.cells[1][1].score == 0.25


def test_a_sweep_has_means_errors_failures_and_runs_that_have_not_ended(world):
  text, found = made(world / 'sweep')
  shown = words(text)
  (sweep,) = found.sweeps
  assert {name: len(runs) for name, runs in sweep.groups.items()} == {'beta=0.1': 2, 'beta=0.3': 1}
  losses = np.array([2.0, 3.0])[:, None] / np.array([28, 29, 30])  # the last tenth
  means = losses.mean(axis=1)
  error = means.std(ddof=1) / np.sqrt(2)
  table = page._swept(sweep, 0).table
  assert table.rows[0][table.head.index('train/loss')] == f'{means.mean():.3f} ± {error:.3f}'
  assert 'beta=0.3,seed=1 , exit code 1: error: no space left <b>' in shown
  assert any('beta=0.3,seed=0 have not ended' in note for note in found.notes)
  assert "alignjax sweep --grid='beta=0.1,0.3;seed=0,1' --out=s" in shown


def test_a_comparison_shows_its_runs_or_without_them_its_tables(world, tmp_path):
  content = {
    'settings': {'seed': {str(world / 'a'): 0, 'gone': 1}},
    'metrics': {str(world / 'a'): {'train/loss': 0.25}, 'gone': {'train/loss': None}},
    'updates': {str(world / 'a'): 30, 'gone': 9},
  }
  folders.write_json(tmp_path / 'compare' / 'compare.json', content)
  text, found = made(tmp_path / 'compare')
  assert [run.label for run in found.runs] == ['a']
  assert any('compares gone, not found from here' in note for note in found.notes)
  assert 'train/loss 0.25 –' in words(text)


@pytest.mark.parametrize('reward', ['', "matches('[a e]') - 0.1", """python("m:f('$x')")""", r"matches('\\d\`')"])
def test_the_command_of_a_run_parses_into_its_settings(tmp_path, reward):
  config = folders.config(
    objective='ra_dpo(risk=cvar(0.97), beta=0.1) + 0.1 * sft()',
    buckets=((16, 24), (32, 48)),
    data=('a b.jsonl', 'hh:c.jsonl[:10]', 'runs/beta=0.1,seed=0/rows.jsonl'),
    mesh=settings.MeshConfig(tensor=2),
    scan_layers=False,
    warmup=0.0,
    schedule='cosine(to=0.1)',
    reward=reward,
    workdir=str(tmp_path),
  )
  line = about.command('train', settings.Config, json.loads(json.dumps(fields.flat(config))))
  parsed = command_line.parse_flags(command_line.Invocation, shlex.split(line)[1:], flags.FlagValues())
  assert parsed.config == config


def test_what_is_missing_is_a_note(tmp_path):
  run = tmp_path / 'begun'
  folders.write_json(run / 'config.json', {'objective': 'dpo()', 'steps': 30, 'of_another_version': [1]})
  text, found = made(run)
  Reader(text)
  assert any('the run has just begun' in note for note in found.notes)
  assert any('has no about.json' in note for note in found.notes)
  assert 'Not examined' in words(text)
  (tmp_path / 'unfinished' / 'parts').mkdir(parents=True)
  text, found = made(tmp_path / 'unfinished')
  assert any('the evaluation is unfinished; measured parts: 0' in note for note in found.notes)
  assert 'Nothing to show yet' in words(text)


@pytest.mark.parametrize('content', ['', '[]', '{"steps": "x"', '{"versions": 3, "doctor": [3, {"severity": "x"}]}'])
@pytest.mark.parametrize('name', ['config.json', 'about.json', 'metrics.jsonl', 'samples.jsonl', 'rollouts'])
def test_damaged_files_of_a_run_leave_a_page(tmp_path, name, content):
  run = folders.write_run(tmp_path / 'run')
  if name == 'rollouts':
    (run / 'rollouts').mkdir()
    name = 'rollouts/round_000000.jsonl'
  (run / name).write_text(content + '\n')
  text, found = made(run)
  Reader(text)
  assert [each.folder for each in found.runs] == [str(run)]


@pytest.mark.parametrize('content', ['', '[]', '{"models": {"m": 3}, "best_of_n": [1], "over_optimisation": {"r": 1}}'])
def test_a_damaged_evaluation_or_comparison_leaves_a_page(tmp_path, content):
  for name in ('evaluation.json', 'compare.json'):
    folder = tmp_path / name.removesuffix('.json')
    folder.mkdir()
    (folder / name).write_text(content)
    Reader(made(folder)[0])


def test_the_command_writes_the_page_and_prints_the_notes(world, tmp_path, capsys):
  out = tmp_path / 'pages' / 'report.html'
  assert program.execute(report.PROGRAM, ['report', str(world / 'a'), str(world / 'b'), f'--out={out}']) == 0
  assert out.read_text().startswith('<!doctype html>')
  printed = capsys.readouterr().out
  assert 'has done 12 of 30 updates' in printed
  assert f'wrote {out}' in printed


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ([''], '--folders is missing'),
    (['{world}/nowhere'], 'nowhere: there is no such folder'),
    (['{world}/a/model'], 'is not the folder of a run, an evaluation, a comparison or a sweep'),
    (['{world}'], 'It holds runs: give '),
    (['{world}/a', '{world}/../{name}/a'], 'a folder is given twice'),
  ],
)
def test_what_is_no_result_is_refused(world, tmp_path, capsys, given, message):
  arguments = [each.format(world=world, name=world.name) for each in given if each]
  assert program.execute(report.PROGRAM, ['report', *arguments, f'--out={tmp_path}/x.html']) == 1
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'x.html').exists()


def test_the_package_contains_the_files_of_the_page():
  (data,) = re.findall(r"package_data=\{'alignjax': \[(.*?)\]\}", (ROOT / 'setup.py').read_text())
  others = [path for path in (ROOT / 'alignjax').rglob('*') if path.is_file() and path.suffix not in ('.py', '.pyc')]
  assert {f"'{path.relative_to(ROOT / 'alignjax')}'" for path in others} == set(data.split(', '))


def test_what_all_runs_of_a_sweep_started_with_is_shown_once(world):
  _, found = made(world / 'sweep')
  table = page._started(found.all_runs)
  assert table.head == ('', 'all runs')
  assert [row[0] for row in table.rows] == ['model', 'versions']


def test_an_objective_of_a_sweep_names_its_repetitions_once(world):
  _, found = made(world / 'sweep')
  named = {each.expression: each.runs for each in page._objectives(found.all_runs)}
  assert named == {'dpo(beta=0.1)': 'beta=0.1', 'dpo(beta=0.3)': 'beta=0.3'}

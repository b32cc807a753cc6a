"""The hand-written pages: links and anchors lead somewhere, and nothing that the code has is left out."""

import ast
import functools
import inspect
import re

import jax
import pytest

from alignjax import objectives, risk
from alignjax.commands import main, program
from alignjax.data.reading import readers, sources
from alignjax.evaluation import summary
from alignjax.models import families
from alignjax.objectives import declarations, examples
from alignjax.optim import consensus
from alignjax.run import fields, hints
from tests.docs import texts

LINK = re.compile(r'\]\((?!https?:|mailto:)([^)\s]*)\)')
# Flags of other programs that the pages mention.
FOREIGN = {
  'no-deps',
  'slow',
  'help',
  'verbosity',
  'upgrade',
  'ntasks',
  'signal',
  'restarts',
  'claim',
  'dry-run',
  'print',
}
NAME = re.compile(r'`([\w/<>]+)`')


@functools.cache
def anchors(file):
  text = texts.prose(file.read_text(encoding='utf-8'))
  return {texts.slug(heading) for heading in re.findall(r'^#+ (.+)$', text, re.MULTILINE)}


@pytest.mark.parametrize('page', texts.PAGES)
def test_links_and_anchors_lead_somewhere(page):
  folder, broken = (texts.ROOT / page).parent, []
  for link in LINK.findall(texts.PAGES[page]):
    file, _, anchor = link.partition('#')
    target = (folder / file).resolve() if file else texts.ROOT / page
    if not target.exists() or (anchor and target.suffix == '.md' and anchor not in anchors(target)):
      broken.append(link)
  assert broken == []


def flags_of(found):
  if isinstance(found, program.Group):
    return set().union(*(flags_of(found.load(name)) for name in found.summaries))
  return {leaf.flag for leaf in fields.leaves(found.settings)}


def test_every_flag_that_is_mentioned_exists():
  known = flags_of(main.PROGRAM) | FOREIGN
  for page, text in texts.PAGES.items():
    kept = re.sub(r'<!-- not run:.*?-->\n+```.*?```', '', text, flags=re.DOTALL)
    mentioned = set(re.findall(r'(?<![\w-])--(?:config\.)?([a-z][\w.-]*)', kept))
    unknown = {name for name in mentioned if name.rstrip('.') not in known and name != 'no_such'}
    assert unknown - set(allowed(page)) == set(), page


def allowed(page):
  return {
    'docs/from_trl.md': hints.HINTS,  # names of other trainers
    'docs/questions.md': hints.HINTS,
    'docs/start.md': hints.HINTS,
    'docs/evaluation.md': ('model_args', 'tasks'),  # of lm-eval
    'docs/reliability.md': ('count',),  # of bench.survival
  }.get(page, ())


def test_expressions_of_objectives_can_be_read():
  for page in ('docs/choosing.md', 'docs/from_trl.md', 'docs/troubleshooting.md', 'README.md'):
    for text in re.findall(r'`(?:--objective=)?\'?((?:[\d.]+ \* )?(?:\w+\([^`]*\)[ +*\d.]*)+)\'?`', texts.PAGES[page]):
      name = re.match(r'(?:[\d.]+ \* )?(\w+)', text)[1]
      if name in objectives.OBJECTIVES and not re.search(r'\.\.\.|\((?:beta|alpha|tau)[,)]|tau, ', text):
        assert isinstance(objectives.parse(text), objectives.Objective), page


def test_the_table_of_families_lists_every_objective():
  rows = re.findall(r'^\| \[(\w+)\]\([^)]*\) \| ([^|]+) \|', texts.PAGES['docs/choosing.md'], re.MULTILINE)
  listed = [(name, family) for family, names in rows for name in re.findall(r'`(\w+)`', names)]
  defined = [(name, build.__module__.rpartition('.')[2]) for name, build in objectives.OBJECTIVES.items()]
  assert sorted(listed) == sorted(defined)
  assert f'{len(objectives.OBJECTIVES)} objectives' in texts.PAGES['README.md']


def test_the_picture_of_the_readme_is_drawn_by_the_command_below_it():
  from docs.pages import objectives_figure

  assert 'python -m docs.pages.objectives_figure' in texts.PAGES['README.md']
  assert f']({objectives_figure.FILE.relative_to(texts.ROOT)})' in texts.PAGES['README.md']
  rows = [
    {'step': 1, 'logp_chosen': -9.0, 'logp_rejected': -8.0},
    {'step': 2, 'logp_chosen': -8.5, 'logp_rejected': -9},
  ]
  figure = objectives_figure.draw(dict.fromkeys(objectives_figure.OBJECTIVES, rows))
  assert [axes.get_title(loc='left') for axes in figure.axes] == list(objectives_figure.OBJECTIVES)
  assert [line.get_ydata().tolist() for line in figure.axes[0].lines[1:]] == [[0.0, 0.5], [0.0, -1.0]]
  for expression in objectives_figure.OBJECTIVES:
    objectives.parse(expression)


def test_ruff_is_the_locked_one():
  (hook,) = re.findall(r'rev: v([\d.]+)', (texts.ROOT / '.pre-commit-config.yaml').read_text())
  assert f'ruff=={hook} ' in (texts.ROOT / 'requirements.lock').read_text()


def test_every_risk_measure_is_named():
  (line,) = re.findall(r'The risk measures are ([^(]+)\(', texts.PAGES['docs/choosing.md'])
  assert set(re.findall(r'`(\w+)`', line)) == set(risk.MEASURES)


def test_every_form_and_kind_of_data_is_named():
  page = texts.PAGES['docs/data.md']
  (table,) = re.findall(r'\| form \|.*\n\|---.*\n((?:\|.*\n)+)', page)
  named = [name for line in table.splitlines() for name in re.findall(r'`(\w+)`', line.split('|')[1])]
  assert sorted(named) == sorted(sources.FORMS)
  (paragraph,) = re.findall(r'Data is named by.*?\n\n', page, re.DOTALL)
  assert set(re.findall(r'`(\.\w+(?:\.gz)?)`', paragraph)) == set(readers.ENDINGS)
  assert all(f'`{scheme}:' in paragraph for scheme in readers.SCHEMES)
  for expression in re.findall(r'`(\w+:[^`]+\.[^`]+|\w+:hf:[^`]+)`', paragraph):
    assert sources.parse_expression(expression).location != expression


# --- metrics


def built(build):
  wraps = next(iter(inspect.signature(build).parameters), '') == 'objective'
  return build(objectives.dpo()) if wraps else build()


def names_of(objective):
  """The metrics of an objective, by tracing alone."""
  responses = min(declarations.accepted(objective.responses) or {2})
  batch = examples.batch(3, responses=responses, needs=objective.needs)

  def run(policy, reference, batch):
    metrics = objective.apply(examples.table(objective.needs, policy, reference, batch), batch).metrics
    return {**metrics, **objective.summary({name: value.mean() for name, value in metrics.items()})}

  return set(jax.eval_shape(run, examples.logits(1, batch), examples.logits(2, batch), batch))


def literals(*files):
  """Names of metrics that are written down in source: '<group>/<name>', with a place for what varies."""
  found = set()
  for file in files:
    for node in ast.walk(ast.parse((texts.ROOT / 'alignjax' / file).read_text(encoding='utf-8'))):
      if isinstance(node, ast.JoinedStr):
        text = ''.join(part.value if isinstance(part, ast.Constant) else '<>' for part in node.values)
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
      else:
        continue
      if re.fullmatch(r'(time|rollout|eval|rollouts|merge)/[\w<>/]*', text):
        found.add(text)
  return found


def test_every_metric_is_on_the_page():
  page = texts.PAGES['docs/metrics.md']
  listed = set(NAME.findall(page))
  logged = set().union(
    *(names_of(built(build)) for build in objectives.OBJECTIVES.values() if build.__module__.startswith('alignjax.')),
    names_of(objectives.parse("rlhf(risk=cvar(0.5, tail='lower'))")) | {'score_risk'},
  )
  of_step = {'loss', 'gradient_norm', 'prompts', 'learning_rate', 'tokens', 'batch_hash', 'skipped', 'step'}
  of_step |= {'length', 'length_chosen', 'length_rejected', 'logp', 'logp_chosen', 'logp_rejected'}
  of_merging = {f'merge/{name}' for name in consensus.METRICS}
  assert logged | of_step | of_merging <= listed, sorted((logged | of_step | of_merging) - listed)
  written = literals(
    'training/loop.py', 'training/step.py', 'training/joint.py', 'training/rollouts.py', 'training/rollout_metrics.py'
  )
  assert len(written) > 15
  flat = {re.sub(r'<\w*>', '<>', name) for name in listed}
  families_of_names = {'eval/<>': '`eval/`', 'rollouts/<>': '`rollouts/`', 'merge/<>': 'merge/kept'}
  for name in written:
    if name in families_of_names:
      assert families_of_names[name] in page
    elif name.startswith('rollout/sampler_gap_'):
      assert any(each.startswith('rollout/sampler_gap_') for each in flat)
    elif not name.endswith(('/', '_')):  # else the beginning of an f-string
      assert name in flat, name


def test_every_value_of_an_evaluation_is_on_its_page():
  assert set(summary.TITLES) <= set(NAME.findall(texts.PAGES['docs/evaluation.md']))


def test_every_finding_of_the_doctor_is_on_the_page():
  found = set()
  for path in (texts.ROOT / 'alignjax').rglob('*.py'):
    text = path.read_text(encoding='utf-8')
    for node in ast.walk(ast.parse(text)) if re.search(r'\b(Finding|Symptom)\(', text) else ():
      if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, 'id', '')
        if called in ('Finding', 'Symptom'):
          found.add(node.args[0].value)
  assert len(found) > 50
  (table,) = re.findall(r'\| finding \| subject \|\n\|---.*\n((?:\|.*\n)+)', texts.PAGES['docs/troubleshooting.md'])
  assert set(re.findall(r'`(\w+)`', table)) == found


def test_messages_that_are_quoted_are_those_of_the_code():
  page, code = texts.PAGES['docs/troubleshooting.md'], ''
  for path in (texts.ROOT / 'alignjax').rglob('*.py'):
    code += re.sub(r"'\s*\n\s*f?'", '', path.read_text(encoding='utf-8'))
  (table,) = re.findall(r'\| message \| do \|\n\|---.*\n((?:\|.*\n)+)', page)
  for quoted in re.findall(r'^\| `([^`]+)` \|', table, re.MULTILINE):
    for part in re.split(r'\.\.\.|mine\.py', quoted):
      assert part.strip().lower() in code.lower(), quoted


def test_every_family_of_models_is_named():
  (section,) = re.findall(r'## Models\n(.*?)\n## ', texts.PAGES['docs/start.md'], re.DOTALL)
  plain = re.sub(r'[^a-z0-9]', '', section.lower())
  for name in families.FAMILIES:
    stem = re.sub(r'(_text|_moe)$|[\d_]', '', name)
    assert stem in plain, name

"""A page in a real browser, headless Chromium: it asks for nothing and has no errors."""

import json
import re
import shutil
import subprocess

import pytest

from alignjax.report import page, reading
from tests.report import folders

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
BROWSER = 'not an origin'  # what its log calls the browser itself, which has requests of its own


def visit(path, folder):
  """Opens a page. Returns its title, the addresses it asked for, and its errors and warnings."""
  log = folder / f'{path.stem}.json'
  command = [
    CHROMIUM,
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--host-resolver-rules=MAP * ~NOTFOUND',  # requests of the browser itself lead nowhere
    '--enable-logging=stderr',
    f'--user-data-dir={folder}/{path.stem}',
    f'--log-net-log={log}',
    '--virtual-time-budget=2000',
    '--dump-dom',
    path.as_uri(),
  ]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
  content = json.loads(log.read_text())
  events = [event for event in content['events'] if isinstance(event.get('params'), dict)]
  asked = {
    event['params']['url']
    for event in events
    if event['params'].get('initiator', BROWSER) != BROWSER and event['params']['url'].startswith(('http', 'ws'))
  }
  return re.search(r'<title>(.*?)</title>', done.stdout, re.S)[1], asked, re.findall(r'CONSOLE.*', done.stderr)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_a_browser_asks_for_nothing_and_reports_no_errors(tmp_path):
  run = folders.write_run(tmp_path / 'run')
  folders.write_evaluation(tmp_path / 'eval', [f'{run}/model'])
  text = page.render(reading.read([str(run)]))
  (tmp_path / 'page.html').write_text(text)
  title, asked, errors = visit(tmp_path / 'page.html', tmp_path)
  assert title == 'run – alignjax report'
  assert asked == set()
  assert errors == []
  # The same checks see a picture from elsewhere, which the policy of the page blocks, and which is fetched without it.
  picture = '<img src="http://127.0.0.1:9/x.png">'
  (tmp_path / 'bad.html').write_text(text.replace('<main>', f'<main>{picture}'))
  _, _, errors = visit(tmp_path / 'bad.html', tmp_path)
  assert any('Content Security Policy' in error for error in errors)
  (tmp_path / 'worse.html').write_text(f'<!doctype html><title>x</title>{picture}')
  _, asked, _ = visit(tmp_path / 'worse.html', tmp_path)
  assert asked == {'http://127.0.0.1:9/x.png'}

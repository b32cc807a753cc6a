"""Uploading a model, to a stand-in of the Hugging Face Hub."""

import base64
from http import server
import json
import threading

import huggingface_hub
from huggingface_hub import constants
import pytest

from alignjax.run import exports, uploads


class Hub(server.BaseHTTPRequestHandler):
  """The part of the Hub's interface that an upload of small files takes."""

  def do_POST(self):
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    if self.headers['Authorization'] != 'Bearer right':
      return self._answer(401, {'error': 'Invalid token'})
    if self.path.endswith('/preupload/main'):
      files = [
        {'path': file['path'], 'uploadMode': 'regular', 'shouldIgnore': False} for file in json.loads(body)['files']
      ]
      return self._answer(200, {'files': files})
    if self.path.endswith('/commit/main'):
      for entry in map(json.loads, body.splitlines()):
        if entry['key'] == 'file':
          self.server.received[entry['value']['path']] = base64.b64decode(entry['value']['content'])
      return self._answer(200, {'commitUrl': 'https://huggingface.co/me/model/commit/1', 'commitOid': '1'})
    if self.path == '/api/repos/create':
      self.server.created.append(json.loads(body))
      return self._answer(200, {'url': 'https://huggingface.co/me/model'})
    return self._answer(200, {})

  def do_GET(self):
    self._answer(200, {'sha': '0', 'siblings': [], 'id': 'me/model'})

  def _answer(self, code, content):
    self.send_response(code)
    data = json.dumps(content).encode()
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *args):
    pass


@pytest.fixture
def hub(monkeypatch):
  with server.ThreadingHTTPServer(('127.0.0.1', 0), Hub) as running:
    running.received, running.created = {}, []
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, 'ENDPOINT', f'http://127.0.0.1:{running.server_port}')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setenv('HF_TOKEN', 'right')
    yield running
    running.shutdown()


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / 'model'
  folder.mkdir()
  (folder / 'config.json').write_text('{}')
  (folder / 'model.safetensors').write_bytes(b'weights')
  return folder


def test_all_files_are_uploaded_to_a_private_repository(hub, folder):
  lines = []
  uploads.check('me/model', str(folder.parent))
  uploads.upload('me/model', folder, lines.append)
  assert hub.received == {'config.json': b'{}', 'model.safetensors': b'weights'}
  (created,) = hub.created
  assert created.get('private') or created.get('visibility') == 'private'
  assert lines[-1] == 'the model is at https://huggingface.co/me/model/commit/1'


def test_a_refusal_of_the_hub_leaves_the_folder_and_gives_the_command(hub, folder, monkeypatch):
  monkeypatch.setenv('HF_TOKEN', 'wrong')
  with pytest.raises(exports.ExportError, match=f'is complete, but .*401.*Type: hf upload me/model {folder}'):
    uploads.upload('me/model', folder, lambda line: None)
  assert not hub.received
  assert (folder / 'model.safetensors').exists()


@pytest.mark.parametrize(
  ('repository', 'workdir', 'message'),
  [
    ('model', 'runs/a', "config.push_to_hub = 'model': give a name such as me/model"),
    ('me/model', 'gs://bucket/run', 'uploads need a folder on a disk'),
    ('me/model', 'runs/a', 'hf auth login'),
  ],
)
def test_what_an_upload_lacks_is_refused_before_the_run(repository, workdir, message, monkeypatch):
  monkeypatch.setattr(huggingface_hub, 'get_token', lambda: None)
  with pytest.raises(ValueError, match=message):
    uploads.check(repository, workdir)

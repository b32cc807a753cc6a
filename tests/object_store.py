"""A stand-in for Google Cloud Storage in memory: for fsspec, and over HTTP for TensorStore, which writes arrays.

Like the real store it has objects only. A folder exists while an object has its name as a prefix, an object appears as
a whole when it is closed, and nothing can be renamed or appended to.
"""

from collections.abc import Iterator
import contextlib
import http.server
import importlib
import io
import json
import threading
from typing import Any
import urllib.parse

import fsspec
from orbax.checkpoint._src.path import gcs_utils
import pytest


class Objects(dict[str, bytes]):
  """Objects by 'bucket/name', each with a generation that counts its versions."""

  def __init__(self):
    super().__init__()
    self.lock = threading.RLock()
    self.generations: dict[str, int] = {}
    self._count = 0

  def __setitem__(self, name: str, content: bytes) -> None:
    with self.lock:
      self._count += 1
      self.generations[name] = self._count
      super().__setitem__(name, bytes(content))

  def put(self, folder: str, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
      self[f'{folder}/{name}'] = content

  def under(self, folder: str) -> list[str]:
    """The names in a folder, and in the folders in it."""
    with self.lock:
      return sorted(name for name in self if name.startswith(folder.rstrip('/') + '/'))


OBJECTS = Objects()


class _Upload(io.BytesIO):
  def __init__(self, name: str):
    super().__init__()
    self._name = name

  def close(self) -> None:
    if not self.closed:
      OBJECTS[self._name] = self.getvalue()
    super().close()


class FileSystem(fsspec.AbstractFileSystem):
  """What gcsfs is for the real store."""

  protocol = ('gs', 'gcs')
  cachable = False

  def _info(self, name: str) -> dict[str, Any]:
    return {'name': name, 'size': len(OBJECTS[name]), 'type': 'file', 'generation': OBJECTS.generations[name]}

  def info(self, path: str, **options: Any) -> dict[str, Any]:
    name = self._strip_protocol(path)
    if name in OBJECTS:
      return self._info(name)
    if OBJECTS.under(name):
      return {'name': name, 'size': 0, 'type': 'directory'}
    raise FileNotFoundError(path)

  def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
    folder = self._strip_protocol(path)
    if folder in OBJECTS:
      return [self._info(folder)] if detail else [folder]
    names = OBJECTS.under(folder)
    if not names:
      raise FileNotFoundError(path)
    children = sorted({'/'.join(name.split('/')[: folder.count('/') + 2]) for name in names})
    return [self.info(child) for child in children] if detail else children

  def _open(self, path: str, mode: str = 'rb', **options: Any) -> Any:
    name = self._strip_protocol(path)
    if mode == 'wb':
      return _Upload(name)
    assert mode == 'rb', f'{path}: an object store cannot open a file as {mode}'
    if name not in OBJECTS:
      raise FileNotFoundError(path)
    return io.BytesIO(OBJECTS[name])

  def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
    pass

  def makedirs(self, path: str, exist_ok: bool = False) -> None:
    pass

  def rmdir(self, path: str) -> None:
    pass

  def _rm(self, path: str) -> None:
    name = self._strip_protocol(path)
    with OBJECTS.lock:
      OBJECTS.pop(name, None)

  def cp_file(self, path1: str, path2: str, **options: Any) -> None:
    source = self._strip_protocol(path1)
    if source in OBJECTS:
      OBJECTS[self._strip_protocol(path2)] = OBJECTS[source]


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *args: Any) -> None:
    pass

  def _answer(self, status: int, content: bytes = b'', generation: int = 0) -> None:
    self.send_response(status)
    self.send_header('Content-Length', str(len(content)))
    if generation:
      self.send_header('x-goog-generation', str(generation))
    self.end_headers()
    self.wfile.write(content)

  def _parts(self) -> tuple[str, str, dict[str, str]]:
    """The bucket, the name of the object, and the query."""
    url = urllib.parse.urlparse(self.path)
    bucket, _, rest = url.path.partition('/b/')[2].partition('/o')
    return bucket, urllib.parse.unquote(rest.lstrip('/')), dict(urllib.parse.parse_qsl(url.query))

  def do_GET(self) -> None:
    bucket, name, query = self._parts()
    if not name:
      prefix = query.get('prefix', '')
      start, end = query.get('startOffset', ''), query.get('endOffset', '')
      names = [each.removeprefix(f'{bucket}/') for each in OBJECTS.under(bucket)]
      found = [n for n in names if n.startswith(prefix) and n >= start and (not end or n < end)]
      items = [
        {'name': n, 'size': str(len(OBJECTS[f'{bucket}/{n}'])), 'generation': str(OBJECTS.generations[f'{bucket}/{n}'])}
        for n in found
      ]
      self._answer(200, json.dumps({'items': items}).encode())
      return
    key = f'{bucket}/{name}'
    if key not in OBJECTS:
      self._answer(404)
      return
    content, generation = OBJECTS[key], OBJECTS.generations[key]
    if query.get('ifGenerationNotMatch') == str(generation):
      self._answer(304)
      return
    first, last = 0, len(content)
    if wanted := self.headers.get('Range'):
      text = wanted.removeprefix('bytes=')
      if text.startswith('-'):
        first = max(0, len(content) - int(text[1:]))
      else:
        begin, _, finish = text.partition('-')
        first, last = int(begin), min(int(finish) + 1 if finish else len(content), len(content))
      self.send_response(206)
      self.send_header('Content-Range', f'bytes {first}-{last - 1}/{len(content)}')
    else:
      self.send_response(200)
    self.send_header('Content-Length', str(last - first))
    self.send_header('x-goog-generation', str(generation))
    self.end_headers()
    self.wfile.write(content[first:last])

  def do_POST(self) -> None:
    bucket, _, query = self._parts()
    content = self.rfile.read(int(self.headers['Content-Length']))
    key = f'{bucket}/{query["name"]}'
    with OBJECTS.lock:
      expected = query.get('ifGenerationMatch')
      if expected is not None and int(expected) != OBJECTS.generations.get(key, 0) * (key in OBJECTS):
        self._answer(412)
        return
      OBJECTS[key] = content
      generation = OBJECTS.generations[key]
    self._answer(200, json.dumps({'name': query['name'], 'generation': str(generation)}).encode(), generation)

  def do_DELETE(self) -> None:
    bucket, name, _ = self._parts()
    with OBJECTS.lock:
      self._answer(204 if OBJECTS.pop(f'{bucket}/{name}', None) is not None else 404)


@contextlib.contextmanager
def serving() -> Iterator[Objects]:
  """Serves an empty store under gs:// in a block."""
  OBJECTS.clear()
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
  server.daemon_threads = True
  thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
  thread.start()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('TENSORSTORE_GCS_HTTP_URL', f'http://127.0.0.1:{server.server_port}')
    patch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'token')
    patch.setattr(gcs_utils, 'is_hierarchical_namespace_enabled', lambda path: False)  # asks Google
    for name in FileSystem.protocol:
      fsspec.register_implementation(name, FileSystem, clobber=True)
    try:
      yield OBJECTS
    finally:
      for name in FileSystem.protocol:
        importlib.import_module('fsspec.registry')._registry.pop(name, None)
      server.shutdown()
      server.server_close()

"""Rows per second of reading preference data, with validation only and with tokenisation.

  python -m bench.read_pairs
  python -m bench.read_pairs --rows=100000 --case=chat --case=parquet --model=path/to/model

Writes rows of about 300 bytes to a temporary folder and reports two times: `wall`, and `CPU`, the CPU time of this
process. Tokenisation uses all cores, so its CPU time exceeds the wall time on an idle machine.
"""

from collections.abc import Callable, Iterator
import csv
import json
import pathlib
import random
import sys
import tempfile
import time
from typing import Any

from absl import app, flags
import pyarrow
from pyarrow import parquet

from alignjax.data.reading import drops, rows, sources
from alignjax.data.tokens import encoding, tokenization
from tests import assets

ROWS_BETWEEN_MESSAGES = 100_000
VOCABULARY = 10**6  # larger than any tokenizer, because no model is involved

_ROWS = flags.DEFINE_integer('rows', 1_000_000, 'Number of rows to validate.')
_TOKENIZED_ROWS = flags.DEFINE_integer('tokenized_rows', 50_000, 'Number of rows to validate and tokenise.')
_CASES = flags.DEFINE_multi_string(
  'case', ['plain'], 'Cases to measure: plain, labelled, chat, hh, scored, json, csv or parquet.'
)
_MODEL = flags.DEFINE_string('model', None, 'Folder with the tokenizer; the tiny tokenizer of the tests by default.')


def sentences(draw: random.Random) -> list[str]:
  """Texts of about 90 characters; one in ten contains non-ASCII letters."""
  words = ' '.join(assets.CORPUS).split()
  return [' '.join(draw.choices([*words, 'Straße', 'café'] if i % 10 == 0 else words, k=17)) for i in range(5000)]


def plain(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
  return {'prompt': prompt, 'chosen': ' ' + chosen, 'rejected': ' ' + rejected}


def labelled(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
  return plain(prompt, chosen, rejected) | {'label': 0.9, 'weight': 2, 'score': [1.5, -0.25]}


def chat(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
  messages = [{'role': 'user', 'content': prompt}]
  sides = ([*messages, {'role': 'assistant', 'content': response}] for response in (chosen, rejected))
  return dict(zip(('chosen', 'rejected'), sides, strict=True))


def hh(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
  start = f'\n\nHuman: {prompt}\n\nAssistant: '
  return {'chosen': start + chosen, 'rejected': start + rejected}


def scored(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
  return {'prompt': prompt, 'responses': [chosen, rejected], 'scores': [0.5, 1.5]}


# The form in the data expression, the file extension, and a function that makes a row.
CASES: dict[str, tuple[str, str, Callable[[str, str, str], dict[str, Any]]]] = {
  'plain': ('preference', '.jsonl', plain),
  'labelled': ('preference', '.jsonl', labelled),
  'chat': ('preference', '.jsonl', chat),
  'hh': ('hh', '.jsonl', hh),
  'scored': ('scored', '.jsonl', scored),
  'json': ('preference', '.json', plain),
  'csv': ('preference', '.csv', plain),
  'parquet': ('preference', '.parquet', plain),
}


def write(path: pathlib.Path, rows: Iterator[dict[str, Any]]) -> None:
  """Writes rows in the format of the file extension."""
  if path.suffix == '.parquet':
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return
  with path.open('w', encoding='utf-8', newline='') as file:
    if path.suffix == '.csv':
      table = csv.DictWriter(file, ('prompt', 'chosen', 'rejected'))
      table.writeheader()
      table.writerows(rows)
    elif path.suffix == '.json':
      file.write('[')
      file.writelines((',\n' if i else '') + json.dumps(row, ensure_ascii=False) for i, row in enumerate(rows))
      file.write(']')
    else:
      file.writelines(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)


def tell(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def watched(found: Iterator[rows.Example]) -> Iterator[rows.Example]:
  """Passes on the pairs and reports progress from time to time."""
  began = time.monotonic()
  for i, pair in enumerate(found, 1):
    if i % ROWS_BETWEEN_MESSAGES == 0:
      tell(f'  {i} rows, {time.monotonic() - began:.1f} s')
    yield pair


def measure(name: str, what: str, consume: Callable[[drops.DropReport], Any], size: int) -> None:
  """Measures one case and prints a line of the table."""
  report = drops.DropReport()
  wall, cpu = time.monotonic(), time.process_time()
  consume(report)
  wall, cpu = time.monotonic() - wall, time.process_time() - cpu
  print(
    f'{name:8}  {what:9}  {report.read:8} rows  {size / report.read:4.0f} bytes/row  wall {wall:6.1f} s  '
    f'CPU {cpu:6.1f} s  {report.read / wall:8.0f} rows/s  {report.read / cpu:8.0f} rows/CPU s  {report.kept} kept',
    flush=True,
  )


def run(name: str, folder: pathlib.Path, tokenizer: tokenization.Tokenizer) -> None:
  """Writes and reads the files of a case: a long file for validation and a short one for tokenisation."""
  form, ending, row = CASES[name]
  draw = random.Random(0)
  texts = sentences(draw)
  for count, what in ((_ROWS.value, 'checked'), (_TOKENIZED_ROWS.value, 'tokenised')):
    if not count:
      continue
    path = folder / (name + ending)
    tell(f'{name}: writing {count} rows')
    write(path, (row(f'{i} {draw.choice(texts)}', *draw.sample(texts, 2)) for i in range(count)))

    def checked(report: drops.DropReport, path: pathlib.Path = path) -> Iterator[rows.Example]:
      return watched(sources.read_examples(f'{form}:{path}', report))

    def count_only(report: drops.DropReport) -> None:
      for _ in checked(report):
        pass

    def with_tokens(report: drops.DropReport) -> None:
      encoding.tokenize(checked(report), tokenizer, encoding.Limits(512, 512, VOCABULARY), report)

    measure(name, what, count_only if what == 'checked' else with_tokens, path.stat().st_size)
    path.unlink()


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  unknown = sorted(set(_CASES.value) - set(CASES))
  if unknown:
    raise app.UsageError(f'--case={unknown[0]}: must be one of {", ".join(CASES)}')
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    if not _MODEL.value:
      assets.write_tiny_tokenizer(folder / 'model')
    tokenizer = tokenization.Tokenizer.load(_MODEL.value or folder / 'model')
    for name in _CASES.value:
      run(name, folder, tokenizer)


if __name__ == '__main__':
  app.run(main)

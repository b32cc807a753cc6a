"""Examples with nothing wrong, and helpers to break and examine them."""

from alignjax.data.reading import rows
from alignjax.data.tokens import dataset, encoding
from alignjax.doctor import examples, findings

COUNT = 200
BOS, END, VOCABULARY = 282, 286, 287  # <|begin_of_text|>, <|eot_id|> and all tokens of llama_3


def texts(count=COUNT, chat=False, ending='?'):
  """Pairs of which either response is the longer one by turns."""
  for i in range(count):
    prompt, responses = f'The film {i}{ending}', (f' was it {i}', f' no {i}')
    prompt = [{'role': 'user', 'content': prompt}] if chat else prompt
    yield rows.Example(prompt, responses if i % 2 else responses[::-1], path='train.jsonl', line=i + 1)


def tokenize(pairs, tokenizer, **options):
  options = {'max_prompt': 64, 'max_response': 64, 'vocab_size': tokenizer.vocab_size} | options
  return encoding.tokenize(pairs, tokenizer, encoding.Limits(**options))


def faults(found):
  """What is more than a note, worst or not."""
  return {finding.name: finding.severity for finding in found if finding.severity != findings.NOTE}


def named(found, name):
  return next(finding for finding in found if finding.name == name)


def examine(rows, tokenizer, **options):
  return examples.examine(dataset.pack(rows), tokenizer, **{'vocab_size': VOCABULARY} | options)


def faults_of(rows, tokenizer, **options):
  return faults(examine(rows, tokenizer, **options))


def some(rows, edit, share):
  """Edits the last `share` of the rows."""
  first = round((1 - share) * len(rows))
  return rows[:first] + [edit(row) for row in rows[first:]]


def unpaired(rows):
  """The first responses, two thirds of them desirable."""
  return [row._replace(responses=row.responses[:1], label=float(row.line % 3 > 0)) for row in rows]


def flip(row):
  """The same preference, the other way round."""
  return row._replace(responses=row.responses[::-1], label=1 - row.label)

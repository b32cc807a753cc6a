"""TeX for the plain notation of docstrings: `-log sigmoid(beta (rho(y_w) - rho(y_l)))`.

In this notation a product is juxtaposition, a power is `u^-alpha` or `x^(a / b)`, a subscript is `y_w`, `pi_ref` or
`sum_{t <= s}`, a length is `|y|`, and a star is `pi*`. Greek letters and functions have their names. Any other word is
text. The output avoids what Markdown and renderers of TeX treat differently: `\\\\`, `\\_`, `\\{`, `\\operatorname`.
"""

from collections.abc import Sequence
import re

_LETTERS = ('alpha', 'beta', 'gamma', 'eta', 'kappa', 'lambda', 'mu', 'phi', 'pi', 'rho', 'tau', 'theta', 'Phi')
_OPERATORS = ('exp', 'int', 'log', 'max', 'min', 'prod', 'sum')
_UPRIGHT = ('Bernoulli', 'E', 'KL', 'P', 'SiLU', 'Var', 'clip', 'mean', 'measure', 'reward', 'risk', 'score', 'sg')
_NAMES = {
  **{name: f'\\{name}' for name in (*_LETTERS, *_OPERATORS)},
  **{name: f'\\mathrm{{{name}}}' for name in (*_UPRIGHT, 'loss', 'value')},
  'beta_prime': "\\beta'",
  'deviation': '\\mathrm{dev}',
  'infinity': '\\infty',
  'sigmoid': '\\sigma',
}
_SYMBOLS = {
  '<=': '\\leq',
  '>=': '\\geq',
  '!=': '\\neq',
  '->': '\\rightarrow',
  '<-': '\\leftarrow',
  '||': '\\parallel',
  '|': '\\mid',
  '~': '\\sim',
  '{': '\\lbrace',
  '}': '\\rbrace',
  '.': '\\cdot',
  **{symbol: symbol for symbol in '()[]+-/=<>,:;'},
}
# Next to these, words and functions need no space of their own.
_TIGHT_BEFORE = frozenset(_SYMBOLS.values()) - {')', ']', ',', '\\rbrace'}
_TIGHT_AFTER = frozenset(_SYMBOLS.values()) - {'(', '[', '\\lbrace'}
_TOKEN = re.compile(r"\s*(\|[a-z](?:_\w)?\||\d+(?:\.\d+)?|[A-Za-z]+(?:_[A-Za-z0-9]+)*'*|<=|>=|!=|->|<-|\|\||\S)")
_GROUPS = {'{': '}', '(': ')'}


class TexError(ValueError):
  """A formula that is not in the plain notation."""


def tex(formula: str) -> str:
  """Translates a formula; a TexError names it if it is not in the plain notation."""
  tokens = _TOKEN.findall(formula)
  _check_balance(formula, tokens)
  return _join(_pieces(tokens))


def _check_balance(formula: str, tokens: Sequence[str]) -> None:
  open_brackets, closing = [], {'(': ')', '[': ']', '{': '}'}
  for token in tokens:
    if token in closing:
      open_brackets.append(closing[token])
    elif token in closing.values() and (not open_brackets or open_brackets.pop() != token):
      raise TexError(f'{token!r} closes nothing in the formula: {formula}')
  if open_brackets:
    raise TexError(f'{open_brackets[-1]!r} is missing in the formula: {formula}')


def _pieces(tokens: Sequence[str]) -> list[str]:
  """One piece of TeX for each token or group of tokens; text begins with `\\text`."""
  pieces, at = [], 0
  while at < len(tokens):
    token = tokens[at]
    if token in '_^':
      script, at = _script(tokens, at + 1)
      pieces.append(f'{pieces.pop()}{token}{{{script}}}')
    elif token == '*':
      pieces.append(f'{pieces.pop()}^{{\\ast}}')
      at += 1
    elif token == 'in' and not pieces[-1].startswith('\\text'):
      pieces.append('\\in')
      at += 1
    else:
      pieces.append(_atom(token))
      at += 1
  return pieces


def _script(tokens: Sequence[str], at: int) -> tuple[str, int]:
  """The subscript or superscript that begins at a token, and where it ends."""
  if at == len(tokens):
    raise TexError(f'nothing follows the last token of the formula: {" ".join(tokens)}')
  if tokens[at] in _GROUPS:
    end = _end_of_group(tokens, at)
    inside = _join(_pieces(tokens[at + 1 : end]))
    keep_brackets = tokens[at] == '(' and tokens[at - 1] == '_'
    return (f'({inside})' if keep_brackets else inside), end + 1
  if tokens[at] in '-<' and at + 1 < len(tokens):
    return f'{tokens[at]} {_atom(tokens[at + 1])}', at + 2
  return _atom(tokens[at]), at + 1


def _end_of_group(tokens: Sequence[str], at: int) -> int:
  depth, opening, closing = 0, tokens[at], _GROUPS[tokens[at]]
  for end in range(at, len(tokens)):
    depth += (tokens[end] == opening) - (tokens[end] == closing)
    if depth == 0:
      return end
  raise TexError(f'{closing!r} is missing in the formula: {" ".join(tokens)}')


def _atom(token: str) -> str:
  if token in _SYMBOLS:
    return _SYMBOLS[token]
  if token[0] == '|':
    return f'\\vert {_atom(token[1:-1])} \\vert'
  if token[0].isdigit():
    return token
  if not token[0].isalpha():
    raise TexError(f'{token!r} has no meaning in a formula')
  known = _symbol(token)
  if known:
    return known
  base, _, subscript = token.partition('_')
  if _symbol(base) and subscript and '_' not in subscript:
    return f'{_symbol(base)}_{{{_symbol(subscript) or f"\\mathrm{{{subscript}}}"}}}'
  return f'\\text{{{token.replace("_", " ")}}}'


def _symbol(name: str) -> str:
  """A letter, number, Greek letter or function; '' for a word."""
  bare = name.rstrip("'")
  primes = name[len(bare) :]
  if bare in _NAMES:
    return _NAMES[bare] + primes
  return name if len(bare) == 1 or bare.isdigit() else ''


def _join(pieces: Sequence[str]) -> str:
  """The pieces in one line, neighbouring words in one `\\text`, set apart from the symbols around them."""
  joined: list[str] = []
  for piece in pieces:
    if _is_text(piece) and joined and _is_text(joined[-1]):
      joined[-1] = f'{joined[-1][:-1]} {piece.removeprefix("\\text{")}'
    else:
      joined.append(piece)
  spaced = []
  for before, piece, after in zip(['=', *joined], joined, [*joined[1:], '='], strict=False):
    if _is_text(piece):
      piece = f'\\text{{{"" if before in _TIGHT_BEFORE else " "}{piece[6:-1]}{"" if after in _TIGHT_AFTER else " "}}}'
    elif piece.startswith('\\mathrm') and before not in _TIGHT_BEFORE and not _is_text(before):
      piece = f'\\, {piece}'
    spaced.append(piece)
  line = ' '.join(spaced)
  line = re.sub(r'([(\[]) | ([)\],;])', lambda match: match[1] or match[2], line)
  return re.sub(r"(?<=[\w}']) (?=[(\[])", '', line)


def _is_text(piece: str) -> bool:
  return re.fullmatch(r'\\text\{[^}]*\}', piece) is not None

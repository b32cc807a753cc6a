"""Reads values from expressions: calls of known names, on the command line, in a config and in a notebook.

  dpo(beta=0.1)        simpo(beta=2.0, gamma=0.5) + 0.1 * sft()        chain(adamw(1e-6), weight_decay(0.1))

A small parser accepts calls of the factories that the caller lists, and literals. If values can be added, it also
accepts the operators `+`, `-`, `*` and `/`. No expression is evaluated as Python, so untrusted ones are harmless.
"""

import ast
from collections.abc import Callable, Mapping
import difflib
import inspect
import math
import operator
import re
import textwrap
from typing import Any, NamedTuple
import warnings

MAX_LENGTH = 4000  # characters; a bound keeps hostile input cheap
_LITERALS = (int, float, str, bool, type(None))


class ExpressionError(ValueError):
  """An expression that cannot be read, shown with a caret under the part at fault."""


class Kind(NamedTuple):
  """A type of values, and the name of such a value in messages: 'an objective'."""

  type: type
  noun: str

  @property
  def plural(self) -> str:
    return f'{self.noun.partition(" ")[2]}s'


def parse[T](
  text: str,
  kind: type[T],
  noun: str,
  known: Mapping[str, Mapping[str, Callable[..., Any]]],
  *,
  coefficients: tuple[type, ...] = (),
  operand: Kind | None = None,
) -> T:
  """Reads a value from its expression: calls of known factories, with literals and such calls as arguments.

  Args:
    text: the expression, such as `'ties(density=0.5)'`.
    kind: the type of the value.
    noun: name of such a value in messages: 'an objective'.
    known: groups of factories by name, such as {'objectives': OBJECTIVES}. Messages use the names of the groups.
    coefficients: types that a value can be multiplied by, in addition to numbers.
    operand: what operators add and scale, if these are not the values themselves but arguments of theirs.

  Raises:
    ExpressionError: the text is not such an expression. The message shows the position and the reason, and lists the
      known names.
  """
  return _Parser(text, Kind(kind, noun), operand or Kind(kind, noun), known, coefficients).parse()


def _signature(name: str, factory: Callable[..., Any]) -> str:
  parameters = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(factory).parameters.values()]
  return name + str(inspect.Signature(parameters))


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


class _Parser:
  """Evaluates the syntax tree of one expression. An ExpressionError points at the node at fault."""

  def __init__(
    self,
    text: str,
    kind: Kind,
    operand: Kind,
    known: Mapping[str, Mapping[str, Callable[..., Any]]],
    coefficients: tuple[type, ...],
  ):
    if not isinstance(text, str):
      raise ExpressionError(f'give {kind.noun} as text, not as {type(text).__name__}')
    # Joins lines, so that messages can show a caret. A lone surrogate becomes '?', which is a syntax error.
    self.text = re.sub(r'\s', ' ', text.strip()).encode('utf-8', 'replace').decode()
    self.kind, self.operand, self.known, self.coefficients = kind, operand, known, coefficients
    self.adds = hasattr(operand.type, '__add__')  # operators are allowed only then
    self.factories = {name: factory for group in known.values() for name, factory in group.items()}

  def parse(self) -> Any:
    if not self.text:
      raise self.error('the expression is empty')
    if len(self.text) > MAX_LENGTH:
      raise ExpressionError(f'the expression has {len(self.text)} characters; at most {MAX_LENGTH} are allowed')
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('error')  # a doubtful literal such as '\d' is an error
        tree = ast.parse(self.text, mode='eval').body
      value = self.visit(tree)
    except SyntaxError as error:
      raise self.error(f'this is not an expression: {error.msg}', column=max((error.offset or 1) - 1, 0)) from None
    except (RecursionError, MemoryError):
      raise ExpressionError('the expression is nested too deeply') from None
    if not isinstance(value, self.kind.type):
      raise self.error(f'this is {self.describe(value)}, not {self.kind.noun}', tree)
    return value

  def visit(self, node: ast.AST) -> Any:
    if isinstance(node, ast.Constant):
      return self.literal(node)
    if isinstance(node, ast.Call):
      return self.call(node)
    if isinstance(node, ast.BinOp) and self.adds:
      return self.operation(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
      value = self.visit(node.operand)
      if not self.scales(value) and not (self.adds and isinstance(value, self.operand.type)):
        raise self.error(f'only a number can be negated, not {self.describe(value)}', node.operand)
      return -value
    if isinstance(node, ast.Name):
      if node.id in self.factories:
        raise self.error(f'{node.id} must be called: {_signature(node.id, self.factories[node.id])}', node)
      raise self.unknown(node.id, node)
    operators = ', literals, +, -, * and /' if self.adds else ' and literals'
    raise self.error(f'only calls of known names{operators} are allowed', node)

  def literal(self, node: ast.Constant) -> Any:
    if type(node.value) not in _LITERALS:
      raise self.error(
        f'a literal must be a number, a string, True, False or None, not {self.describe(node.value)}', node
      )
    if _is_number(node.value) and not math.isfinite(_as_float(node.value)):
      raise self.error('this number is too large', node)
    return node.value

  def operation(self, node: ast.BinOp) -> Any:
    if not isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
      raise self.error(
        f'combine {self.operand.plural} with + and -, and scale them with * and /; other operators are not allowed',
        node,
      )
    left, right = self.visit(node.left), self.visit(node.right)
    if isinstance(node.op, ast.Add | ast.Sub):
      join, symbol = (operator.add, '+') if isinstance(node.op, ast.Add) else (operator.sub, '-')
      for value, side in ((left, node.left), (right, node.right)):
        if not isinstance(value, self.operand.type):
          raise self.error(f'{symbol} joins two {self.operand.plural}, but this is {self.describe(value)}', side)
      return self.guarded(lambda: join(left, right), node)
    sides = f'{self.describe(left)} and {self.describe(right)}'
    if isinstance(node.op, ast.Div):
      if isinstance(left, self.operand.type) and _is_number(right):
        return self.guarded(lambda: left / right, node)
      raise self.error(f'/ divides {self.operand.noun} by a number, got {sides}', node)
    if self.scales(left) and isinstance(right, self.operand.type):
      return self.guarded(lambda: left * right, node)
    if isinstance(left, self.operand.type) and self.scales(right):
      return self.guarded(lambda: right * left, node)
    raise self.error(f'* scales {self.operand.noun} by a number, got {sides}', node)

  def scales(self, value: Any) -> bool:
    """Whether a value is a coefficient."""
    return _is_number(value) or isinstance(value, self.coefficients)

  def call(self, node: ast.Call) -> Any:
    if not isinstance(node.func, ast.Name):
      raise self.error('only a known name can be called, without a module before it', node.func)
    name = node.func.id
    if name not in self.factories:
      raise self.unknown(name, node.func)
    for argument in node.args:
      if isinstance(argument, ast.Starred):
        raise self.error('* does not unpack arguments here', argument)
    for keyword in node.keywords:
      if keyword.arg is None:
        raise self.error('** does not unpack arguments here', keyword.value)
      if sum(other.arg == keyword.arg for other in node.keywords) > 1:
        raise self.error(f'{name} has the argument {keyword.arg!r} more than once: keep one of them', keyword)
    self.check_names(node)
    positional = [self.visit(argument) for argument in node.args]
    named = {keyword.arg: self.visit(keyword.value) for keyword in node.keywords}
    return self.guarded(lambda: self.factories[name](*positional, **named), node)

  def check_names(self, node: ast.Call) -> None:
    name = node.func.id
    factory = self.factories[name]
    signature = inspect.signature(factory)
    known = signature.parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for keyword in node.keywords:
      if keyword.arg not in known and not open_ended:
        hint = _nearest(keyword.arg, known) or '.'
        raise self.error(
          f'{name} has no argument {keyword.arg!r}{hint} The signature is {_signature(name, factory)}', keyword
        )
    try:
      signature.bind(*node.args, **{keyword.arg: None for keyword in node.keywords})
    except TypeError as error:
      raise self.error(f'{name}: {error}. The signature is {_signature(name, factory)}', node) from None

  def guarded(self, make: Callable[[], Any], node: ast.AST) -> Any:
    """Calls a factory or an operator, and turns its errors into an ExpressionError."""
    try:
      return make()
    except ExpressionError:
      raise
    except TypeError as error:  # such as text in place of a number, which the factory compares with 0
      quoted = '; write numbers without quotes' if "'str'" in str(error) else ''
      raise self.error(f'an argument has the wrong type: {error}{quoted}', node) from error
    except (ValueError, ArithmeticError) as error:
      raise self.error(str(error), node) from error

  def unknown(self, name: str, node: ast.AST) -> ExpressionError:
    close = difflib.get_close_matches(name.lower(), list(self.factories), n=2, cutoff=0.5)
    known = ' or '.join(_signature(found, self.factories[found]) for found in close)
    hint = f'; did you mean {known}?' if close else ''
    return self.error(f'unknown name {name!r}{hint}', node)

  def describe(self, value: Any) -> str:
    for kind in (self.kind, self.operand):
      if isinstance(value, kind.type):
        return kind.noun
    text = repr(value)
    return text if len(text) <= 40 else f'a {type(value).__name__}'

  def error(self, reason: str, node: ast.AST | None = None, column: int = 0) -> ExpressionError:
    width = 1
    if node is not None:
      line = self.text.encode()  # the syntax tree counts bytes
      column = len(line[: node.col_offset].decode())
      width = max(len(line[node.col_offset : node.end_col_offset].decode()), 1)
    caret = ' ' * column + '^' * min(width, max(len(self.text) - column, 1))
    return ExpressionError(f'{reason}\n  {self.text}\n  {caret}\n{_describe_names(self.known)}')


def _describe_names(known: Mapping[str, Mapping[str, Any]]) -> str:
  """Lists the names that an expression may use."""
  lists = (f'Known {kind}: {", ".join(sorted(names))}' for kind, names in known.items())
  return '\n'.join(textwrap.fill(line, 110, subsequent_indent='  ') for line in lists)


def _as_float(value: float) -> float:
  try:
    return float(value)
  except OverflowError:
    return math.inf


def _nearest(name: str, known: Any) -> str:
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return f'; did you mean {close[0]!r}?' if close else ''

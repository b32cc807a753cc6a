"""The environment in which chat templates run: it bounds the work and the memory of a rendering.

A template is a program that comes with a model. Jinja's sandbox keeps it from running Python code, but not from looping
for hours or from filling the memory. Here every rendering has a budget of units, about 16 bytes or 100 ns each:

  a body (of a loop, macro or block, or the condition of a loop) costs the number of its nodes, each time it runs;
  a value that the template makes costs its size.

The cost depends on no clock, so a template fails on every machine or on none. What can be huge is checked before it is
made. Filters and methods without such a check are not available.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import json
import re
import types
from typing import Any

import jinja2
from jinja2 import ext, filters, meta, nodes, parser, runtime, sandbox, utils

from alignjax.data.tokens import template_budget, template_code

MAX_SOURCE = 2**16  # characters of a template
MAX_NUMBER = 2**16  # largest width, indentation, count or precision
MAX_SPACES = 16  # of an indentation of JSON
MAX_BITS = 2**14  # of an integer
_READ = (list, tuple, dict, range)

# The last ones take quadratic time, or draw random numbers.
_REMOVED_FILTERS = ('pprint', 'striptags', 'urlize', 'wordwrap', 'random')
_FREE_FILTERS = ('count', 'd', 'default', 'first', 'last', 'length', 'safe')  # they make no values
_ITEM_FILTERS = ('batch', 'groupby', 'join', 'list', 'map', 'max', 'min', 'reject', 'select', 'slice', 'sort', 'unique')
_SIZED_FILTERS = ('batch', 'center', 'indent', 'round', 'slice')
_SIZED_METHODS = ('center', 'ljust', 'rjust', 'zfill')
_REFUSED_METHODS = ('encode', 'escape', 'expandtabs', 'maketrans', 'striptags', 'translate', 'unescape')  # of strings
_METHODS = {
  list: ('copy', 'count', 'index'),
  tuple: ('count', 'index'),
  dict: ('copy', 'get', 'items', 'keys', 'values'),
  float: ('is_integer',),
}
# '%5d', '%-10.3f', '%(name)s': what is between the name and the letter.
_CONVERSION = re.compile(r'%(?:\([^)]*\))?([^a-zA-Z%]*)')


class _Generation(ext.Extension):
  """`{% generation %} ... {% endgeneration %}` marks the assistant's text. The contents are rendered as usual."""

  tags = frozenset({'generation'})

  def parse(self, parser: parser.Parser) -> list[nodes.Node]:
    next(parser.stream)
    return parser.parse_statements(('name:endgeneration',), drop_needle=True)


class _Namespace(utils.Namespace):
  """A namespace that is not shown with its contents, which may contain themselves."""

  __repr__ = object.__repr__


class Environment(sandbox.ImmutableSandboxedEnvironment):
  """Compiles templates such that their renderings pay from `budget`.

  Attributes:
    variables: what the last template that was compiled reads.
  """

  code_generator_class = template_code.Generator
  # The operators whose result can be larger than both operands. Jinja does not compute these when it compiles.
  intercepted_binops = frozenset({'+', '*', '**', '%'})

  def __init__(self):
    super().__init__(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=[_Generation, 'jinja2.ext.loopcontrols'],
      optimized=False,
    )
    self.budget, self.variables = template_budget.Budget(), frozenset()
    del self.globals['lipsum']
    self.globals['namespace'] = _Namespace
    for name in _REMOVED_FILTERS:
      del self.filters[name]
    self.filters |= {'tojson': self._to_json, 'join': self._join, 'replace': self._replace, 'indent': self._indent}
    self.filters |= {'format': self._format, 'sum': self._sum}
    self.filters = {
      name: filter_ if name in _FREE_FILTERS else self._guarded(name, filter_) for name, filter_ in self.filters.items()
    }
    self.filters['trim'] = lambda *args, **kwargs: self.budget.made(filters.do_trim(*args, **kwargs))
    self.filters |= {'alignjax_test': self._test, 'alignjax_made': self._made, 'alignjax_joined': self._joined}

  def template(self, source: str) -> jinja2.Template:
    """Compiles a template."""
    if len(source) > MAX_SOURCE:
      raise template_budget.LimitError(f'it has {len(source):,} characters; at most {MAX_SOURCE:,} are allowed')
    self.budget = template_budget.Budget()
    tree = self.parse(source)
    self.variables = frozenset(meta.find_undeclared_variables(tree))
    tree = template_code.Instrument().visit(tree)
    tree.set_environment(self)
    return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

  def render(self, template: jinja2.Template, values: dict[str, Any], budget: template_budget.Budget) -> str:
    """Renders a template of this environment."""
    self.budget = budget
    return self.concat(template.root_render_func(template.new_context(values)))

  def concat(self, parts: Sequence[str] | Iterator[str]) -> str:
    """Joins the output of a template, of a macro or of a block."""
    return self.budget.made(''.join(parts))

  def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
    """Computes one of the intercepted operators."""
    if operator == '*':
      self._check_product(left, right)
    elif operator == '**' and isinstance(left, int) and isinstance(right, int):
      self._check_bits(left.bit_length() * abs(right))
    elif operator == '%' and isinstance(left, str):
      self._check_conversions(left, right)
    return self.budget.made(self.binop_table[operator](left, right))

  def call(self, context: runtime.Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Calls a method, a macro or a function."""
    owner = getattr(obj, '__self__', None)
    if isinstance(obj, types.BuiltinMethodType):
      for name in ('_loop_vars', '_block_vars'):  # Jinja passes these to functions that take the context
        kwargs.pop(name, None)
    if isinstance(owner, str):
      return self._call_text_method(obj, owner, args, kwargs)
    if isinstance(obj, types.BuiltinMethodType):
      if obj.__name__ not in _METHODS.get(type(owner), ()):
        raise template_budget.LimitError(f'it calls {type(owner).__name__}.{obj.__name__}, which is not available')
      return obj(*args, **kwargs)
    for value in (*args, *kwargs.values()):
      if isinstance(value, template_budget.CONTAINERS):
        self.budget.made(value)  # a macro makes tuples of its arguments
    self.budget.spend(4)
    return self.budget.made(super().call(context, obj, *args, **kwargs))

  def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
    """Replaces the method `format` of strings."""
    if super().wrap_str_format(value) is None:
      return None
    form, named = value.__self__, value.__name__ == 'format_map'

    def formatted(*args: Any, **kwargs: Any) -> str:
      kwargs = args[0] if named else kwargs
      return self.budget.made(_Formatter(self).vformat(form, () if named else args, kwargs))

    return formatted

  def _call_text_method(
    self, method: Callable[..., Any], text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
  ) -> Any:
    name = method.__name__
    if name == 'replace':
      self._check_replacement(text, *args)
    elif name == 'join' and args:
      args = (list(args[0]),)
      self._check_parts(text, *args)
    elif name in _SIZED_METHODS:
      self._check_numbers(args)
    elif name in _REFUSED_METHODS:
      raise template_budget.LimitError(f'it calls str.{name}, which is not available')
    self.budget.spend(1 + len(text) // template_budget.CELL)
    return self.budget.made(method(*args, **kwargs))

  def _check_numbers(self, values: Sequence[Any]) -> None:
    for value in values:
      if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise template_budget.LimitError(
          f'it asks for a width, an indentation, a count or a precision of more than {MAX_NUMBER:,}'
        )

  def _check_bits(self, bits: int) -> None:
    if bits > MAX_BITS:
      raise template_budget.LimitError(f'it computes an integer of more than {MAX_BITS:,} bits')

  def _check_product(self, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
      self._check_bits(left.bit_length() + right.bit_length())
    elif isinstance(left, int) or isinstance(right, int):
      count, value = (left, right) if isinstance(left, int) else (right, left)
      if not isinstance(value, float):
        size = template_budget.text_size(value) if isinstance(value, str) else self.budget.measure(value)[1]
        self.budget.check(count * size)

  def _check_conversions(self, form: str, values: Any) -> None:
    conversions = _CONVERSION.findall(form)
    if any('*' in conversion for conversion in conversions):
      raise template_budget.LimitError("it takes the width of a '%' conversion from a variable")
    widths = [int(number) for conversion in conversions for number in re.findall(r'\d{1,9}', conversion)]
    repeats = len(conversions) if isinstance(values, dict) else 1
    self.budget.check(len(form) + sum(widths) + repeats * self.budget.measure(values)[1])

  def _check_replacement(self, text: str, old: Any, new: Any, *_: Any) -> None:
    old, new = str(old), str(new)
    self.budget.check(template_budget.text_size(text) + text.count(old) * template_budget.text_size(new))

  def _check_parts(self, separator: Any, parts: Any) -> None:
    self.budget.check(self.budget.measure(parts)[1] + len(parts) * template_budget.text_size(str(separator)))

  def _guarded(self, name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for what it reads and makes."""
    sized = name in _SIZED_FILTERS
    cost = template_budget.ITEM_COST if name in _ITEM_FILTERS else 1 / template_budget.CELL

    @functools.wraps(filter_)
    def call(*args: Any, **kwargs: Any) -> Any:
      for value in args:
        if isinstance(value, str):
          self.budget.spend(1 + len(value) * cost)
        elif isinstance(value, _READ):
          self.budget.spend(len(value) * template_budget.ITEM_COST)
      if sized:
        self._check_numbers((*args, *kwargs.values()))
      return self.budget.made(filter_(*args, **kwargs))

    return call

  def _test(self, value: Any, nodes: int) -> Any:
    self.budget.tick(abs(nodes))
    return value

  def _made(self, value: Any) -> Any:
    return self.budget.made(value)

  def _joined(self, values: Sequence[Any]) -> str:
    """The operator `~`."""
    self.budget.check(self.budget.measure(values)[1])
    return self.budget.made(runtime.str_join(values))

  def _to_json(
    self,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
  ) -> str:
    """Plain JSON. (Jinja's own filter escapes the text for HTML.)"""
    spaces = ' ' * min(indent, MAX_SPACES + 1) if isinstance(indent, int) else indent or ''
    if any(len(text) > MAX_SPACES for text in (spaces, *(separators or ()))):
      raise template_budget.LimitError(f'it indents or separates JSON with more than {MAX_SPACES} characters')
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return encoder.encode(value) if indent is None else self.concat(encoder.iterencode(value))

  @staticmethod
  @jinja2.pass_eval_context
  def _join(context: nodes.EvalContext, value: Any, d: Any = '', attribute: Any = None) -> str:
    self = context.environment
    if attribute is not None:
      value = map(filters.make_attrgetter(self, attribute), value)
    value = list(value)
    self._check_parts(d, value)
    return filters.sync_do_join(context, value, d)

  @staticmethod
  @jinja2.pass_eval_context
  def _replace(context: nodes.EvalContext, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    context.environment._check_replacement(str(value), old, new)
    return filters.do_replace(context, value, old, new, count)

  def _indent(self, value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    lines = len(value.splitlines()) + 1
    self.budget.check(
      template_budget.text_size(value)
      + lines * (template_budget.text_size(width) if isinstance(width, str) else max(width, 0))
    )
    return filters.do_indent(value, width, first, blank)

  def _format(self, value: Any, *args: Any, **kwargs: Any) -> str:
    self._check_conversions(str(value), kwargs or args)
    return filters.do_format(value, *args, **kwargs)

  def _sum(self, value: Any, attribute: Any = None, start: float = 0) -> Any:
    if not isinstance(start, int | float):
      raise template_budget.LimitError('the filter `sum` adds only numbers')
    return filters.sync_do_sum(self, value, attribute, start)


class _Formatter(sandbox.SandboxedFormatter):
  """Formats values for `str.format`."""

  def format_field(self, value: Any, spec: str) -> str:
    self._env._check_numbers([int(number) for number in re.findall(r'\d{1,9}', spec)])
    return self._env.budget.made(super().format_field(value, spec))

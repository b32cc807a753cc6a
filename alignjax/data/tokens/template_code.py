"""What a template is compiled to: Python code that pays for what it does, see `sandbox`."""

from typing import Any

from jinja2 import compiler, nodes, visitor

from alignjax.data.tokens import template_budget

_SMALL = 256  # characters of a sum, or of what is written, that cost no more than the node
_SMALL_COST = 8  # cost of such a node
_TERMS = 8  # terms of a sum that are added before the result is checked


class Generator(compiler.CodeGenerator):
  """Generates Python code that pays for bodies, for sums and for what is written."""

  def visit_ExprStmt(self, node: nodes.ExprStmt, frame: compiler.Frame) -> None:
    del frame  # `_Instrument` makes these statements; templates have none
    self.newline(node)
    self.write(f'environment.budget.tick({node.node.value})')

  def visit_Add(self, node: nodes.Add, frame: compiler.Frame, above: int = 0) -> None:
    name = self.temporary_identifier()
    checked = above % _TERMS == 0  # above: sums around this one, of which it is the left operand
    self.write(f'({name} if type({name} := (' if checked else '(')
    above = (above + 1,) if isinstance(node.left, nodes.Add) else ()
    self.visit(node.left, frame, *above)
    self.write(' + ')
    self.visit(node.right, frame)
    self.write(f')) is str and len({name}) < {_SMALL} else environment.budget.made({name}))' if checked else ')')

  def _output_child_pre(self, node: nodes.Expr, frame: compiler.Frame, finalize: Any) -> None:
    self._shown = self.temporary_identifier()
    self.write(f'({self._shown} if type({self._shown} := (')

  def _output_child_post(self, node: nodes.Expr, frame: compiler.Frame, finalize: Any) -> None:
    name = self._shown
    self.write(f')) is str and len({name}) < {_SMALL} else environment.budget.made(str({name})))')


class Instrument(visitor.NodeTransformer):
  """Makes a template pay for the bodies that it runs, and for the values that it makes without a call."""

  def __init__(self):
    self._nodes = 0

  def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
    self._nodes += 1
    if isinstance(node, nodes.Add | nodes.Output):
      self._nodes += _SMALL_COST * len(node.nodes if isinstance(node, nodes.Output) else [node])
    elif isinstance(node, nodes.TemplateData):
      self._nodes += len(node.data) // template_budget.CELL
    return super().visit(node, *args, **kwargs)

  def _body(self, node: Any) -> nodes.Node:
    before = self._nodes
    self.generic_visit(node)
    cost = nodes.Const(self._nodes - before, lineno=node.lineno)
    node.body = [nodes.ExprStmt(cost, lineno=node.lineno), *node.body]
    if getattr(node, 'test', None) is not None:  # the condition of a loop
      node.test = _filter(node.test, 'alignjax_test', cost)
    return node

  visit_For = visit_Macro = visit_CallBlock = visit_Block = _body

  def _value(self, node: Any) -> nodes.Node:
    self.generic_visit(node)
    if getattr(node, 'ctx', 'load') != 'load':
      return node
    constant = all(isinstance(part, nodes.Const | nodes.Pair) for part in node.find_all(nodes.Expr))
    return node if constant else _filter(node, 'alignjax_made')

  visit_List = visit_Tuple = visit_Dict = _value

  def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
    self.generic_visit(node)
    return _filter(node, 'alignjax_made') if isinstance(node.arg, nodes.Slice) else node

  def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
    self.generic_visit(node)
    return _filter(nodes.Tuple(node.nodes, 'load', lineno=node.lineno), 'alignjax_joined')


def _filter(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
  return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)

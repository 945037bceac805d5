"""`--where EXPR`: a condition on the fields of a line, written as in Python.

    role == "leader" and commit > 10
    node != "n3" or term in (4, 5)
    not peer                        no such field, or an empty or false one

Names are fields, `a.b` looks into a field that is an object. A field that a line does not have is
None. Things of different kinds are unequal, and none is smaller than the other. There is nothing
else: no calls, no arithmetic, no way to reach anything but the line.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from zraft.errors import ControlError

Fields = Mapping[str, Any]
Value = Callable[[Fields], Any]
Condition = Callable[[Fields], bool]

MAX_LENGTH = 1000
_ORDERED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}


def parse_where(text: str) -> Condition:
    """Return the condition that a text says; ControlError for anything else."""
    if len(text) > MAX_LENGTH:
        raise _refused(f"{text[:20]}…", f"it is longer than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(text, getattr(error, "msg", None) or "it can not be read") from error
    value = _value(tree.body, text)
    return lambda fields: bool(value(fields))


def _value(node: ast.expr, text: str) -> Value:
    match node:
        case ast.Constant(value=constant):
            return lambda fields: constant
        case ast.Name(id=name):
            return lambda fields: fields.get(name)
        case ast.Attribute(value=inner, attr=name):
            owner = _value(inner, text)
            return lambda fields: _member(owner(fields), name)
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            items = [_value(part, text) for part in parts]
            return lambda fields: [item(fields) for item in items]
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            operand = _value(inner, text)
            return lambda fields: not operand(fields)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return lambda fields: -number
        case ast.BoolOp(op=kind, values=parts):
            operands = [_value(part, text) for part in parts]
            choose = all if isinstance(kind, ast.And) else any
            return lambda fields: choose(operand(fields) for operand in operands)
        case ast.Compare(left=left, ops=kinds, comparators=rights):
            operands = [_value(part, text) for part in (left, *rights)]
            return lambda fields: _holds(kinds, [operand(fields) for operand in operands])
        case _:
            raise _refused(text, f'"{ast.unparse(node)}" is more than a comparison')


def _holds(kinds: list[ast.cmpop], values: list[Any]) -> bool:
    return all(
        _compare(kind, left, right)
        for kind, left, right in zip(kinds, values[:-1], values[1:], strict=True)
    )


def _compare(kind: ast.cmpop, left: Any, right: Any) -> bool:
    match kind:
        case ast.Eq() | ast.Is():
            return bool(left == right)
        case ast.NotEq() | ast.IsNot():
            return bool(left != right)
        case _:
            try:
                return bool(_ORDERED[type(kind)](left, right))
            except TypeError:  # of different kinds, or no such field
                return False


def _member(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, Mapping) else None


def _refused(text: str, why: str) -> ControlError:
    return ControlError(
        f"--where: no condition: {text}",
        why=why,
        try_="""--where 'role == "leader" and commit > 10'""",
    )

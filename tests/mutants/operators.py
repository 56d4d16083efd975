"""What a mutant changes: one place of a source, so small that only a test of it can see.

Besides the operators that every tool has (arithmetic, comparison, condition, number) there are
those by which judges and runs of theorems are wrong in practice: a scale, a tolerance, an exponent,
the first case in the place of all, a mean in the place of the largest, a case that is excused, a
null prediction, a seed or a mask that is used twice, a flag that is ignored.
"""

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Mutant(NamedTuple):
    """One change of one file."""

    file: str
    line: int
    within: str
    """Function, class or variable at the top of the module, and what is within it."""
    operator: str
    before: str
    after: str
    start: int
    """Place of ``before``, in characters."""
    occurrence: int
    """Which of those with the same words within the same function."""

    @property
    def key(self) -> str:
        """Name that an edit elsewhere in the file leaves as it is."""
        words = (self.file, self.within, self.operator, self.before, self.after, self.occurrence)
        return hashlib.sha256(repr(words).encode()).hexdigest()[:12]


def applied(source: str, mutant: Mutant) -> str:
    """The source with the change made.

    Raises:
        ValueError: the source has something else at this place.
    """
    end = mutant.start + len(mutant.before)
    if source[mutant.start : end] != mutant.before:
        got = source[mutant.start : end]
        raise ValueError(f"{mutant.file}:{mutant.line}: got {got!r}, wanted {mutant.before!r}")
    return source[: mutant.start] + mutant.after + source[end:]


Change = tuple[ast.AST, str, str]
"""What is replaced, by which operator, with which text."""

ARITHMETIC = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}
BOUNDARY = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
NEGATED = {
    **{ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<", ast.Eq: "!=", ast.NotEq: "=="},
    **{ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in"},
}
EXCHANGED = {
    "max": ("min", "mean"),
    "min": ("max", "mean"),
    "nanmax": ("nanmin",),
    "maximum": ("minimum",),
    "minimum": ("maximum",),
    "argmax": ("argmin",),
    "argmin": ("argmax",),
    "any": ("all",),
    "all": ("any",),
    "sum": ("mean", "max"),
    "mean": ("sum",),
    "prod": ("sum",),
    "ceil": ("floor",),
    "floor": ("ceil",),
    "ones_like": ("zeros_like",),
    "zeros_like": ("ones_like",),
    "logical_and": ("logical_or",),
    "cumsum": ("cumprod",),
}
"""Method or function of an array library -> others of the same arguments."""
BUILT_IN = {"max": ("min",), "min": ("max",), "any": ("all",), "all": ("any",), "sum": ("max",)}
DROPPED = {"sqrt": "exponent", "abs": "sign", "square": "exponent"}
"""Functions that may be left out -> operator."""
REDUCED = {"all", "any", "sum", "max", "min", "tuple", "sorted", "stack", "concatenate"}
"""Functions of several, of which the first may be taken alone."""
CLAIMED = {"applies", "undecided", "condition", "certified", "carries", "seeds"}
"""Arguments of a claim that may be left out."""
STATED = {"Claim", "Control", "Scenario", "Theorem", "Study", "Flag", "Finding", "Field"}


def mutants(file: str, source: str, flags: Mapping[str, str]) -> list[Mutant]:
    """Every mutant of a source, in its order.

    Args:
        file: its path, as it is called in the mutants.
        source: its text.
        flags: the text of the usual value of each flag of a theorem, which is what somebody would
            take who ignores the flag.
    """
    lines = [0]
    for text in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(text))
    rows = source.splitlines()

    def offset(line: int, column: int) -> int:
        return lines[line - 1] + len(rows[line - 1].encode()[:column].decode())

    seen: Counter[tuple[str, ...]] = Counter()
    found = []
    for within, (node, operator, after) in _walk(ast.parse(source), (), flags):
        start = offset(node.lineno, node.col_offset)  # pyright: ignore[reportAttributeAccessIssue]
        end = offset(node.end_lineno, node.end_col_offset)  # pyright: ignore
        before = source[start:end]
        same = (within, operator, before, after)
        found.append(
            Mutant(file, node.lineno, within, operator, before, after, start, seen[same])  # pyright: ignore
        )
        seen[same] += 1
    return found


# The walk -------------------------------------------------------------------------------------


def _walk(
    node: ast.AST, within: tuple[str, ...], flags: Mapping[str, str]
) -> Iterator[tuple[str, Change]]:
    """Changes of a node and of all below it, but for words, annotations and errors."""
    for child in _code(node):
        inner, known = within, flags
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = (*within, child.name)
        elif not within and isinstance(child, ast.Assign | ast.AnnAssign | ast.AugAssign):
            target = child.targets[0] if isinstance(child, ast.Assign) else child.target
            inner = (ast.unparse(target),)
        if isinstance(child, ast.FunctionDef):
            known = {**flags, **{f"={name}": flags[name] for name in _taken(child) & flags.keys()}}
        for change in _changes(child, node, inner, known):
            yield ".".join(inner), change
        yield from _walk(child, inner, known)


def _taken(function: ast.FunctionDef) -> set[str]:
    return {arg.arg for arg in (*function.args.args, *function.args.kwonlyargs)}


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Children that are computed with: no annotation, docstring, text, error or import."""
    left_out: set[int] = set()
    for field in ("annotation", "returns", "decorator_list"):
        value = getattr(node, field, None)
        for one in value if isinstance(value, list) else [value]:
            left_out.add(id(one))
    for child in ast.iter_child_nodes(node):
        if id(child) in left_out:
            continue
        if isinstance(child, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom | ast.Assert):
            continue
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Call) and ast.unparse(child.func) == "Flag":
            continue  # a preset is a choice, and no formula
        yield child


def _changes(
    node: ast.AST, parent: ast.AST, within: tuple[str, ...], flags: Mapping[str, str]
) -> Iterator[Change]:
    match node:
        case ast.BinOp():
            yield from _of_arithmetic(node)
        case ast.UnaryOp(ast.USub(), operand) if not isinstance(operand, ast.Constant):
            yield node, "sign", _text(operand)
        case ast.UnaryOp(ast.Not() | ast.Invert(), operand):
            yield node, "condition", _text(operand)
        case ast.Compare(left, [op], [right]):
            for operator, table in (("boundary", BOUNDARY), ("condition", NEGATED)):
                if type(op) in table:
                    yield node, operator, f"({_text(left)} {table[type(op)]} {_text(right)})"
        case ast.BoolOp(op, values):
            word = " or " if isinstance(op, ast.And) else " and "
            yield node, "condition", f"({word.join(map(_text, values))})"
            for k in range(len(values)):
                rest = [*values[:k], *values[k + 1 :]]
                dropped = ast.BoolOp(op, rest) if len(rest) > 1 else rest[0]
                yield node, "condition dropped", f"({_text(dropped)})"
        case ast.If(test=test, body=[ast.Return(ast.Constant(str()))]):
            yield test, "excuse more", "True"
            yield test, "excuse less", "False"
        case ast.If(test=test) if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
            yield test, "condition", f"(not {_text(test)})"
        case ast.IfExp(body=body, orelse=orelse):
            excuses = any(isinstance(x, ast.Constant) and x.value == "" for x in (body, orelse))
            yield node, "excuse" if excuses else "condition", _text(body)
            yield node, "excuse" if excuses else "condition", _text(orelse)
        case ast.Constant():
            yield from _of_numbers(node, parent, within)
        case ast.Call():
            yield from _of_calls(node)
        case ast.Attribute(value, "T"):
            yield node, "transpose", _text(value)
        case ast.Name(name, ast.Load()) if f"={name}" in flags:
            if not isinstance(parent, ast.Call) or parent.func is not node:
                yield node, "flag ignored", flags[f"={name}"]
        case ast.FunctionDef(returns=returns) if returns is not None:
            if ast.unparse(returns).startswith(("Float[", "float", "Array")):
                yield from _of_returns(node)
        case ast.AugAssign() | ast.Expr(ast.Call()):
            yield node, "statement dropped", "pass"


def _text(node: ast.AST) -> str:
    """The code of a node, in parentheses unless it is one word."""
    text = ast.unparse(node)
    plain = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant, ast.List, ast.Tuple)
    return text if isinstance(node, plain) else f"({text})"


# Operators ------------------------------------------------------------------------------------


def _is_zero(node: ast.AST) -> bool:
    """Whether it is 0 as it is written: no factor changes it."""
    match node:
        case ast.Constant(int() | float() as value):
            return value == 0
        case ast.Call(func):
            return ast.unparse(func).rpartition(".")[2] in ("zeros", "zeros_like")
    return False


def _of_arithmetic(node: ast.BinOp) -> Iterator[Change]:
    left, op, right = node.left, node.op, node.right
    words = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp)
    if any(isinstance(x, words) or isinstance(getattr(x, "value", 0), str) for x in (left, right)):
        return
    if type(op) in ARITHMETIC:
        yield node, "arithmetic", f"({_text(left)} {ARITHMETIC[type(op)]} {_text(right)})"
    if isinstance(op, ast.Pow):
        yield node, "exponent", f"({_text(left)} ** ({_text(right)} + 1))"
        yield node, "exponent", _text(left)
    if isinstance(op, ast.BitAnd):
        yield node, "condition", f"({_text(left)} | {_text(right)})"
        yield node, "condition dropped", _text(left)
        yield node, "condition dropped", _text(right)
    if isinstance(op, ast.FloorDiv):
        yield node, "arithmetic", f"({_text(left)} // {_text(right)} + 1)"


def _of_numbers(node: ast.Constant, parent: ast.AST, within: tuple[str, ...]) -> Iterator[Change]:
    value = node.value
    if isinstance(parent, ast.keyword) and parent.arg == "strict":
        return  # of a zip, whose lists are as long in every run that ends
    if isinstance(value, bool):
        yield node, "condition", str(not value)
    elif isinstance(value, int):
        if isinstance(parent, ast.Subscript) and value == 0:
            yield node, "first for last", "-1"
        elif isinstance(parent, ast.UnaryOp) and value == 1:
            return  # -1, the last, is left to those that take the first
        else:
            yield node, "number", str(value + 1)
    elif isinstance(value, float) and value:  # twice 0.0 is 0.0
        of_module = len(within) == 1 and within[0].isupper()
        for factor in (10, 0.1) if of_module else (2,):
            yield node, "tolerance" if of_module else "number", repr(float(f"{factor * value:.6g}"))


def _of_calls(node: ast.Call) -> Iterator[Change]:
    name, arguments = ast.unparse(node.func), node.args
    last = name.rpartition(".")[2]
    others = EXCHANGED.get(last, ()) if "." in name else BUILT_IN.get(name, ())
    if isinstance(node.func, ast.Attribute | ast.Name):
        for other in others:
            yield node.func, f"{other} for {last}", name.removesuffix(last) + other
    if last in DROPPED and len(arguments) == 1:
        yield node, DROPPED[last], _text(arguments[0])
    if last == "fold_in" and len(arguments) == 2:
        yield node, "seed reused", _text(arguments[0])
        if not isinstance(arguments[1], ast.Constant):
            yield arguments[1], "mask used twice", f"({_text(arguments[1])} // 2)"
    if last == "split" and name.endswith("random.split"):
        all_alike = "(lambda keys: keys[jnp.zeros(len(keys), int)])"
        yield node, "seed reused", f"{all_alike}({ast.unparse(node)})"
    if last in REDUCED and arguments:
        match arguments[0]:
            case ast.GeneratorExp() | ast.ListComp() as several:
                first = several.generators[0].iter
                yield first, "first for all", f"list({ast.unparse(first)})[:1]"
    yield from _of_keywords(node, last)


def _of_keywords(node: ast.Call, name: str) -> Iterator[Change]:
    for keyword in node.keywords:
        value = keyword.value
        if _is_zero(value):
            continue
        if name in ("Claim", "Finding") and keyword.arg in ("applies", "undecided"):
            always = {"applies": "lambda outcome: False", "undecided": "lambda outcome: 'excused'"}
            yield value, "excuse more", always[keyword.arg]
            yield value, "excuse less", "None"
        elif name in ("Claim", "Finding") and keyword.arg in ("condition", "certified"):
            yield value, "condition dropped", "None"
        elif keyword.arg == "scale":
            yield value, "scale", f"1e3 * ({ast.unparse(value)})"
        elif keyword.arg == "tolerance" and name in STATED:
            yield value, "tolerance", f"10 * ({ast.unparse(value)})"
        elif keyword.arg == "null":
            yield value, "null prediction", "0.0"
        elif name[:1].isupper() and name not in STATED and keyword.arg is not None:
            if not isinstance(value, ast.Constant | ast.Lambda | ast.Dict | ast.Tuple | ast.List):
                yield value, "null prediction", f"0 * ({ast.unparse(value)})"


def _of_returns(node: ast.FunctionDef) -> Iterator[Change]:
    for statement in ast.walk(node):
        value = getattr(statement, "value", None)
        if isinstance(statement, ast.Return) and value is not None and not _is_zero(value):
            if not isinstance(value, ast.Constant | ast.Tuple | ast.Dict | ast.List):
                yield value, "scale", f"2 * ({ast.unparse(value)})"

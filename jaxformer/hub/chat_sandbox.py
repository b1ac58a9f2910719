"""Where a chat template runs: Jinja's immutable sandbox, with bounds on what the sandbox leaves open.

A template comes from the Hub and is code of a stranger. The sandbox lets it reach no attribute that begins with an
underscore, no file and no import, and change nothing it is given. It would still let it fill the memory with
``"a" * 10**12`` or loop for days, so the size of every value it computes, the steps of its loops and the length of what
it writes are bounded here.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from importlib.metadata import version
from typing import Any

from jaxformer.schema import UserError

LONGEST_OUTPUT = 16 << 20  # characters
LONGEST_VALUE = 1 << 20  # characters or items of one value that a template computes
WIDEST = 10_000  # columns that a template may ask to be filled
MOST_STEPS = 1_000_000  # of all its loops over range() together
MOST_BITS = 4096  # of a number
# Unicode keeps these for a program's own use: no text has them.
START, END, CUT = "\ufdd0", "\ufdd1", "\ufdd2"
_WIDTH = re.compile(r"\d{5,}")
_STAR_WIDTH = re.compile(r"%[^a-zA-Z%]*\*")


@lru_cache(maxsize=1)
def require_jinja() -> Any:
    """The module ``jinja2``.

    Raises:
        UserError: it is not installed, or is a release whose sandbox is known to leak.
    """
    try:
        import jinja2.ext
        import jinja2.sandbox
        import jinja2.visitor
    except ImportError as error:
        raise UserError(
            "chat templates need the package jinja2, which is not installed; pip install 'jaxformer[chat]'"
        ) from error
    if tuple(int(part) for part in version("jinja2").split(".")[:3] if part.isdecimal()) < (3, 1, 6):
        raise UserError(
            f"jinja2 is {version('jinja2')}, whose sandbox is known to leak, expected 3.1.6 or later; "
            "pip install 'jaxformer[chat]'"
        )
    return jinja2


def _stop(reason: str) -> Exception:
    error: Exception = require_jinja().exceptions.SecurityError(reason)
    return error


def _bound(size: int, largest: int = LONGEST_VALUE) -> None:
    if size > largest:
        raise _stop(f"it asks for a value of {size:,}, expected at most {largest:,}")


def _bound_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise _stop(f"it computes a number of {bits:,} bits, expected at most {MOST_BITS:,}")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _multiply(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _bound_bits(left.bit_length() + right.bit_length())
    elif isinstance(right, int):
        _bound(_size(left) * right)
    elif isinstance(left, int):
        _bound(_size(right) * left)
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _bound_bits(left.bit_length() * abs(right))
    return left**right


def _add(left: Any, right: Any) -> Any:
    _bound(_size(left) + _size(right))
    return left + right


def _bound_format(text: str, values: Iterable[Any], mark: str) -> None:
    if _WIDTH.search(text) or (mark == "%" and _STAR_WIDTH.search(text)):
        raise _stop(f"it formats to a width that is not known or above {WIDEST:,}")
    longest = max((len(str(value)) for value in values), default=0)
    _bound(len(text) + text.count(mark) * longest)


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        values = right if isinstance(right, tuple) else right.values() if isinstance(right, Mapping) else (right,)
        _bound_format(left, values, "%")
    return left % right


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {"*": _multiply, "**": _power, "+": _add, "%": _modulo}


def _bound_method(text: str, name: str, values: list[Any]) -> None:
    """Stops a string's method that would return too much."""
    if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        for value in values:
            _bound(value if isinstance(value, int) else 0, WIDEST)
    elif name == "replace" and len(values) >= 2:
        _bound(len(text) + text.count(str(values[0])) * len(str(values[1])))
    elif name in ("format", "format_map"):
        inner = list(values[0].values()) if name == "format_map" and isinstance(values[0], Mapping) else values
        _bound_format(text, inner, "{")
    elif name == "translate":
        raise _stop("it calls translate, which is not open to templates")


def _join(separator: str, values: Any) -> Any:
    values = [str(value) for value in values]
    _bound(sum(map(len, values)) + len(separator) * len(values), LONGEST_OUTPUT)
    return separator.join(values)


def _concat(pieces: Iterable[str]) -> str:
    text: str = _join("", pieces)
    return text


def _raise_exception(message: Any) -> None:
    raise require_jinja().exceptions.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    _bound_format(form, [""], "%")
    return datetime.now().strftime(form)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is, where Jinja's own filter writes ``<`` as ``\\u003c``."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _bounded_filter(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, which refuses to make too much."""

    @wraps(original)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        # A filter that asks for the environment or the context gets it before the value.
        own = 1 if hasattr(original, "jinja_pass_arg") else 0
        rest = [*args[own:], *kwargs.values()]
        if name in ("center", "indent", "wordwrap", "batch", "slice", "tojson"):
            for value in rest[1:]:
                _bound(value if isinstance(value, int) else _size(value), WIDEST)
        elif name in ("replace", "format"):
            _bound_method(str(rest[0]), name, rest[1:])
        elif name == "join":
            values = rest[0] = list(rest[0])
            separator = rest[1] if len(rest) > 1 else ""
            _bound(sum(len(str(value)) for value in values) + len(str(separator)) * len(values))
            args = (*args[:own], values, *args[own + 1 :])
        return original(*args, **kwargs)

    return bounded


@lru_cache(maxsize=1)
def _classes() -> tuple[Any, Any, Any]:
    """The environment, the tag ``generation`` and the namespace; made late, since jinja2 is an extra."""
    jinja2 = require_jinja()

    class Joined(jinja2.visitor.NodeTransformer):  # type: ignore[name-defined]
        """Makes ``a ~ b``, which is no operator that can be intercepted, a filter."""

        def visit_Concat(self, node: Any) -> Any:  # noqa: N802  # the name that Jinja calls
            parts = jinja2.nodes.List([self.visit(part) for part in node.nodes])
            made = jinja2.nodes.Filter(parts, "_concat", [], [], None, None)
            return made.set_lineno(node.lineno)

    class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):  # type: ignore[name-defined]
        intercepted_binops = frozenset(_OPERATORS)
        concat = staticmethod(_concat)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            return _OPERATORS[operator](left, right)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
            method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps a string's format
            owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
            if isinstance(owner, str):
                if name == "join" and args:
                    return _join(owner, args[0])
                _bound_method(owner, name, [*args, *kwargs.values()])
            return super().call(__context, __obj, *args, **kwargs)

        def compile(self, source: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(source, str):
                source = self.parse(source)
            source = Joined().visit(source)
            source.set_environment(self)
            return super().compile(source, *args, **kwargs)

    class Generation(jinja2.ext.Extension):  # type: ignore[name-defined]
        """``{% generation %} ... {% endgeneration %}``, put between two marks if they are asked for."""

        tags = {"generation"}  # noqa: RUF012  # Jinja's own name and type

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("marked", [jinja2.nodes.ContextReference()])
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def marked(self, context: Any, caller: Any) -> Any:
            return f"{START}{caller()}{END}" if context.get("mark_generation") else caller()

    class Namespace(jinja2.utils.Namespace):  # type: ignore[name-defined]
        """Jinja's, without names that begin with an underscore, which Python itself would look up in it."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            for name in dict(*args[1:], **kwargs):
                _refuse_private(name)
            jinja2.utils.Namespace.__init__(*args, **kwargs)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    return Environment, Generation, Namespace


def _refuse_private(name: Any) -> None:
    if str(name).startswith("_"):
        raise _stop(f"it keeps {name!r} in a namespace, expected a name that begins with a letter")


@lru_cache(maxsize=32)
def compile_template(template: str) -> Any:
    """The template in its sandbox.

    Raises:
        UserError: jinja2 is not installed.
        jinja2.TemplateError: it is not Jinja.
    """
    jinja2 = require_jinja()
    environment_class, generation, namespace = _classes()
    environment = environment_class(
        trim_blocks=True, lstrip_blocks=True, extensions=[generation, jinja2.ext.loopcontrols]
    )
    environment.globals.pop("lipsum", None)
    environment.filters["tojson"] = _to_json
    environment.filters |= {name: _bounded_filter(name, f) for name, f in environment.filters.items()}
    environment.filters["_concat"] = _concat
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": namespace,
    }
    return environment.from_string(template)


class _Steps:
    """``range`` with one allowance for all the loops of a rendering."""

    def __init__(self) -> None:
        self._left = MOST_STEPS

    def __call__(self, *bounds: int) -> range:
        steps = range(*bounds)
        if len(steps) > self._left:
            raise _stop(f"its loops have more than {MOST_STEPS:,} steps")
        self._left -= len(steps)
        return steps


def write(template: str, variables: Mapping[str, Any]) -> str:
    """What the template writes, given these variables.

    Raises:
        UserError: it is not Jinja, refuses its input, fails, or is stopped.
    """
    jinja2 = require_jinja()
    pieces, length = [], 0
    try:
        for piece in compile_template(template).generate(range=_Steps(), **variables):
            length += len(piece)
            if length > LONGEST_OUTPUT:
                raise _stop(f"it writes more than {LONGEST_OUTPUT:,} characters")
            pieces.append(piece)
    except jinja2.exceptions.SecurityError as error:
        raise UserError(f"the chat template was stopped: {error}") from error
    except jinja2.exceptions.TemplateSyntaxError as error:
        raise UserError(f"line {error.lineno} of the chat template is not Jinja: {error.message}") from error
    except jinja2.exceptions.TemplateError as error:
        raise UserError(f"the chat template refused the conversation: {error}") from error
    except UserError:
        raise
    except RecursionError as error:
        raise UserError("the chat template was stopped: it calls itself without end") from error
    except Exception as error:  # whatever a stranger's template makes Python raise
        raise UserError(f"the chat template failed: {type(error).__name__}: {str(error)[:200]}") from error
    return "".join(pieces)

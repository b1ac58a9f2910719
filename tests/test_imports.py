"""The walls of the package: imports run one way, read from the source of every module."""

import ast
from pathlib import Path

import pytest

import jaxformer

ROOT = Path(jaxformer.__file__).parent
MODULES = {
    ".".join(("jaxformer", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

# Each part and the parts it may use. Parts at the bottom of the library, schema and functional, stand on nothing.
MODEL = {"schema", "functional", "models"}
DATA = {"schema", "lazy", "atomic", "tokenizers", "data"}
TRAINING = MODEL | DATA | {"signals", "plot", "families", "hub", "tasks", "generation", "lora", "parallel", "training"}
MAY_USE = {
    "schema": set(),
    "lazy": set(),
    "atomic": set(),
    "external": {"schema"},
    "libtpu": set(),
    "signals": set(),
    "functional": set(),
    "models": {"schema", "functional"},
    "parallel": {"schema", "libtpu", "functional", "models"},
    "families": MODEL | {"external"},
    "tokenizers": {"schema", "external"},
    "data": {"schema", "lazy", "atomic", "functional", "tokenizers"},
    "hub": MODEL | {"atomic", "families", "tokenizers", "parallel"},
    "flax_names": MODEL | {"external", "families", "generation", "hub"},
    "plot": {"schema", "external", "functional", "tokenizers"},
    "tasks": MODEL | DATA | {"external", "families", "generation"},
    "generation": MODEL | {"families", "tokenizers"},
    "lora": MODEL | DATA | {"families", "hub", "tasks", "generation", "parallel"},
    "report": {"schema"},
    "training": TRAINING | {"report"},
    "cost": TRAINING | {"cost", "libtpu"},
    "pipelines": TRAINING,
    "check": TRAINING | {"pipelines"},
    "one_file": TRAINING | {"external"},
    "demo": TRAINING | {"pipelines"},
    "serving": TRAINING | {"external", "pipelines", "demo"},
    "evaluation": TRAINING | {"external", "pipelines", "report"},
    "runs": TRAINING | {"report"},
    "commands": TRAINING
    | {"external", "runs", "cost", "pipelines", "check", "demo", "one_file", "serving", "evaluation"},
    "cli": {"schema", "commands"},
    "__main__": {"cli"},
}


def imports(path):
    """Every module a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module
            # ``from jaxformer import functional`` names a module, ``from flax import linen`` too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module):
    return module.split(".")[1]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "jaxformer"])
def test_imports_run_one_way(module):
    part = part_of(module)
    assert part in MAY_USE, f"{part} is new: give it a place in MAY_USE"
    ours = [name for name in imports(MODULES[module]) if name.startswith("jaxformer.")]
    allowed = MAY_USE[part] | {part}
    assert [name for name in ours if part_of(name) not in allowed] == []


def test_the_order_has_no_circle():
    seen = set()
    while len(seen) < len(MAY_USE):
        ready = {part for part, uses in MAY_USE.items() if part not in seen and uses - {part} <= seen}
        assert ready, f"a circle among {sorted(MAY_USE.keys() - seen)}"
        seen |= ready


def test_no_circle_between_files():
    uses = {
        module: {name for name in imports(path) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    # A package's __init__ gathers what its files define; they import each other, not it.
    uses = {module: {name for name in names if not module.startswith(f"{name}.")} for module, names in uses.items()}
    left = dict(uses)
    while ready := [module for module, names in left.items() if not names & left.keys()]:
        for module in ready:
            del left[module]
    assert left == {}, f"a circle among {sorted(left)}"


@pytest.mark.parametrize("module", MODULES)
def test_public_interfaces_only(module):
    private = [
        name
        for name in imports(MODULES[module])
        if not name.startswith("jaxformer") and any(p.startswith("_") and p != "__future__" for p in name.split("."))
    ]
    assert private == []


@pytest.mark.parametrize("module", MODULES)
def test_no_other_framework(module):
    roots = {name.split(".")[0] for name in imports(MODULES[module])}
    assert roots & {"torch", "tensorflow", "ray", "keras"} == set()


def test_functional_needs_jax_alone():
    roots = {
        name.split(".")[0]
        for m, path in MODULES.items()
        if part_of(m + ".x.x") == "functional"
        for name in imports(path)
    }
    assert roots & {"flax", "optax", "pydantic", "orbax", "grain"} == set()


def test_everything_at_the_top_level_is_there():
    assert all(getattr(jaxformer, name) is not None for name in dir(jaxformer))
    assert "softmax" in jaxformer.functional.dot_product_attention.__doc__


# Parts of the public interface, whose arguments are those of other libraries.
LONG = {"dot_product_attention", "from_pretrained", "pipeline"}


@pytest.mark.parametrize("module", MODULES)
def test_no_function_has_more_than_nine_parameters(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.FunctionDef) and node.name not in LONG:
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert len(set(names) - {"self", "cls"}) <= 9, node.name

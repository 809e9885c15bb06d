"""Who may import whom. An edge that is not in the table fails, and so does an entry of the table that no longer has one."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import zo_objectives

FOLDER = Path(zo_objectives.__file__).parent
WHERE = {  # names are unique in the whole package
    p.stem: p for p in FOLDER.rglob("*.py") if p.name != "__init__.py" or p.parent == FOLDER
}
SEARCH = {
    "errors": "",
    "keys": "",
    "kernels": "",
    "noise": "kernels keys",
    "rounding": "kernels noise",
    "geometry": "errors keys noise",
    "shaping": "errors",
    "estimators": "errors keys shaping",
    "schedules": "errors",
    "rules": "errors schedules",
    "tuned": "errors geometry",
    "stores": "estimators geometry rounding tuned",
    "layers": "geometry",
    "weights": "errors estimators geometry layers rules stores tuned",
    "adaptive": "errors estimators keys layers weights",
    "journal": "adaptive errors estimators keys noise weights",
    "loop": "adaptive estimators journal keys weights",
    "overlay": "errors estimators tuned weights",
    "operators": "overlay",
    "members": "errors estimators operators overlay stores weights",
    "testing": "adaptive estimators geometry journal keys loop members rules weights",
}
LANGUAGE = {
    "outputs": "",
    "metrics": "",
    "objectives": "errors metrics outputs",
    "prompts": "errors",
    "prepare": "errors",
    "tasks": "errors",
    "data": "errors outputs prepare prompts tasks",
    "sheet": "",
    "hf": "errors outputs sheet",
    "anatomy": "errors",
}
BRIDGE = {
    "subsets": "anatomy errors geometry hf",
    "states": "errors",
    "norms": "",
    "trunk": "anatomy hf sheet states",
    "tail": "errors hf norms sheet states subsets trunk",
    "readout": "sheet tail",
    "scoring": "errors estimators hf objectives outputs readout sheet subsets tail tasks trunk weights",
    "config": "errors tasks",
    "bench": "bench_language bench_search charts errors results timing",
    "building": (
        "adaptive batched config errors estimators geometry hf journal layers losses noise results rules "
        "scoring shaping stores subsets weights workbench"
    ),
    "run": (
        "baselines config errors estimators journal loop objectives outputs predictions results scoring "
        "building weights workbench"
    ),
    "baselines": "errors losses objectives results run scoring building",
    "predictions": "objectives outputs",
    "replay": "config errors hf journal results building subsets weights",
    "compare": "config errors report results run tasks workbench",
    "validate": "data errors hf objectives outputs scoring tasks",
    "batched": "estimators hf members outputs overlay scoring sheet trunk weights",
    "bench_language": (
        "anatomy bench_search config errors estimators geometry journal kernels members rules schedules "
        "scoring building timing weights workbench"
    ),
    "bench_search": "estimators geometry kernels keys loop members noise results rules schedules timing weights",
    "losses": "hf objectives scoring",
    "timing": "errors",
    "workbench": "config data errors hf objectives outputs scoring tail tasks",
    "results": "errors",
    "charts": "",
    "report": "charts errors",
    "pretrain": "errors",
    "api": "config objectives replay run tasks workbench",
    "cli": "bench compare config errors objectives replay report results run tasks timing validate",
    "__main__": "cli",
    "__init__": "adaptive api errors estimators geometry journal layers loop members noise rules schedules tuned weights",
}
TABLE = {name: set(edges.split()) for side in (SEARCH, LANGUAGE, BRIDGE) for name, edges in side.items()}
LIBRARIES = {  # beside the standard library; at module level, and inside functions
    **dict.fromkeys(SEARCH, ("numpy torch", "")),
    **dict.fromkeys(LANGUAGE, ("", "")),
    **{name: ("numpy", "") for name in ("outputs", "metrics", "objectives")},
    "prompts": ("jinja2", ""),
    "tasks": ("pydantic yaml", ""),
    "data": ("numpy", "datasets"),
    "sheet": ("numpy torch", ""),
    "hf": ("numpy torch", "transformers"),
    "anatomy": ("torch", ""),
    "subsets": ("torch", "peft"),
}
CHEAP = ("zo_objectives", "zo_objectives.cli", "zo_objectives.language.tasks", "zo_objectives.config")
HEAVY = ("torch", "transformers", "pandas", "datasets", "evaluate", "sklearn", "numpy")


def imports(name: str, *, top: bool = False) -> Iterator[str]:
    """The full names of what a module imports: anywhere in it, or where it is read (`top`)."""
    tree = ast.parse(WHERE[name].read_text(encoding="utf-8"))
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name}.py: no relative imports"
            of_package = node.module in ("zo_objectives", "zo_objectives.search", "zo_objectives.language")
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if of_package else (node.module,)


def ours(name: str, *, top: bool = False) -> set[str]:
    """What a module imports of this package, each checked to be in the folder of its side."""
    found = {i for i in imports(name, top=top) if i.startswith("zo_objectives.")}
    for full in found:
        path = WHERE[full.split(".")[-1]].relative_to(FOLDER.parent).with_suffix("")
        assert ".".join(path.parts) == full, f"{name}: {full} is not there"
    return {full.split(".")[-1] for full in found}


def libraries(name: str, *, top: bool = False) -> set[str]:
    roots = {i.partition(".")[0] for i in imports(name, top=top)}
    return roots - set(sys.stdlib_module_names) - {"zo_objectives"}


def test_every_module_has_its_place() -> None:
    assert set(WHERE) == set(TABLE)
    inside = {side: {p.stem for p in (FOLDER / side).glob("*.py")} - {"__init__"} for side in ("search", "language")}
    assert inside == {"search": set(SEARCH) - {"errors", "testing"}, "language": set(LANGUAGE)}


@pytest.mark.parametrize("name", TABLE)
def test_a_module_imports_what_the_table_says(name: str) -> None:
    assert ours(name) == TABLE[name]


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_module_uses_the_libraries_that_the_table_says(name: str) -> None:
    at_top, inside = (set(names.split()) for names in LIBRARIES[name])
    assert libraries(name, top=True) <= at_top
    assert libraries(name) <= at_top | inside


def test_the_two_sides_do_not_know_each_other() -> None:
    assert all(TABLE[name] <= set(SEARCH) for name in SEARCH)
    assert all(TABLE[name] <= set(LANGUAGE) | {"errors"} for name in LANGUAGE)


def test_no_module_needs_itself_to_be_read() -> None:
    assert list(TopologicalSorter({name: ours(name, top=True) for name in TABLE}).static_order())


def test_listing_commands_load_nothing_heavy() -> None:
    code = f"import sys; import {', '.join(CHEAP)}; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_name_is_there() -> None:
    assert all(getattr(zo_objectives, name) is not None for name in zo_objectives.__all__)

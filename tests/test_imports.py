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
WHERE["cli"] = FOLDER / "cli" / "__init__.py"  # the one folder with something in its __init__.py: the entry point
SEARCH = {
    "errors": "",
    "keys": "",
    "kernels": "",
    "noise": "kernels keys",
    "rounding": "kernels noise",
    "geometry": "errors keys noise",
    "shaping": "errors",
    "estimators": "errors keys shaping",
    "pace": "estimators shaping",
    "schedules": "errors",
    "rules": "errors schedules",
    "tuned": "errors geometry",
    "stores": "estimators geometry rounding tuned",
    "layers": "geometry",
    "weights": "errors estimators geometry layers rules stores tuned",
    "adaptive": "errors estimators keys layers weights",
    "journal": "adaptive errors estimators keys noise weights",
    "loop": "adaptive errors estimators journal keys weights",
    "overlay": "errors estimators tuned weights",
    "operators": "overlay",
    "members": "errors estimators operators overlay stores weights",
}
LANGUAGE = {
    "outputs": "",
    "metrics": "",
    "texts": "errors",
    "culprits": "outputs",
    "objective": "culprits errors outputs",
    "option_scores": "errors metrics objective outputs texts",
    "text_scores": "errors filters metrics objective option_scores outputs texts",
    "builtin": "errors filters metrics objective option_scores outputs text_scores texts",
    "awaiting": "",
    "context": "",
    "picking": "errors objective",
    "rewards": "awaiting context culprits errors objective outputs",
    "scikit": "errors objective option_scores outputs picking",
    "evaluating": "builtin errors objective option_scores outputs picking text_scores texts",
    "callables": "awaiting culprits errors evaluating objective outputs picking rewards scikit",
    "composite": "errors objective outputs",
    "expressions": "composite errors objective",
    "limits": "culprits objective outputs",
    "remembering": "culprits objective outputs",
    "workers": "context culprits errors limits objective outputs",
    "worker": "context objective outputs resolve",
    "isolation": "errors limits objective outputs remembering workers",
    "plugins": "errors",
    "resolve": "builtin callables composite errors evaluating expressions isolation objective plugins rewards scikit",
    "examine": "culprits errors objective outputs",
    "listing": "builtin callables errors objective plugins",
    "fingerprint": "objective",
    "objectives": "builtin callables composite context evaluating isolation objective option_scores resolve rewards scikit",
    "prompts": "errors",
    "prepare": "countdown errors",
    "countdown": "",
    "harness": "",
    "filters": "harness",
    "spec": "filters harness",
    "tasks": "errors filters harness plugins spec",
    "data": "errors outputs prepare prompts recut tasks",
    "recut": "errors prepare tasks",
    "sheet": "",
    "encoder": "errors",
    "hf": "encoder errors sheet",
    "anatomy": "errors",
    "sheets": "errors hf outputs sheet",
    "passes": "hf sheet",
    "generation": "hf passes sheet tasks",
}
BRIDGE = {
    "testing": "estimator_laws geometry_laws member_laws objective_laws rule_laws run_laws store_laws toy",
    "subsets": "adapters anatomy errors geometry hf",
    "states": "errors",
    "standings": "families sources",
    "sources": "errors families",
    "families": "methods",
    "draws": "errors generation objectives outputs",
    "failures": "errors estimators objectives results",
    "sweep": "compare config errors methods results run settings tasks workbench",
    "verdict": "",
    "judged": "config errors fingerprint objectives results",
    "crew": "config errors run workbench",
    "study": "crew errors results run study_file study_page study_plan study_runs study_tables",
    "study_file": "errors methods settings",
    "study_plan": "compare config config_files errors hf objectives outputs scoring settings study_file sweep tasks",
    "study_runs": "run selection sources study_file study_plan verdict",
    "study_tables": "results study_runs verdict",
    "study_page": "charts results study_runs study_tables verdict",
    "probing": "errors objectives outputs passes scoring sheet",
    "starts": "adapters anatomy config config_files encoder errors hf methods subsets",
    "features": "errors generation passes results scoring sheet starts subsets workbench",
    "handover": "adapters config errors features hf journal methods probing scoring starts subsets",
    "demonstrations": "data errors hf outputs sheets",
    "adapters": "errors hf",
    "norms": "",
    "trunk": "anatomy errors hf passes sheet states",
    "tail": "errors hf norms passes sheet states subsets trunk",
    "growing": "hf passes sheet trunk",
    "readout": "estimators generation growing passes sheet tail",
    "scoring": (
        "draws errors estimators generation hf objectives outputs passes readout sheet sheets subsets tail tasks "
        "trunk weights"
    ),
    "settings": "errors tasks",
    "methods": "errors settings",
    "config": "errors methods",
    "config_files": "config errors methods settings",
    "bench": "bench_language bench_search charts errors results timing",
    "building": (
        "adapters adaptive batched config config_files draws errors estimators features geometry hf journal keys layers "
        "losses noise pace results rules scoring shaping stores subsets weights workbench"
    ),
    "active_run": (
        "adapters building config errors examine objectives outputs predictions results scoring selection starts workbench"
    ),
    "searching": "active_run building errors estimators outputs results scoring selection starts",
    "climbing": (
        "active_run building estimators failures journal loop pace results scoring searching settling starts weights"
    ),
    "run": (
        "active_run adapters baselines climbing config config_files errors handover journal judged results selection "
        "starts workbench"
    ),
    "certainty": "culprits errors metrics objective objectives outputs",
    "selection": "certainty config errors methods objectives outputs results",
    "baselines": (
        "active_run anatomy best_of building errors estimators features grpo hf losses objectives outputs probing "
        "results scoring selection starts subsets"
    ),
    "grpo": (
        "active_run building config errors generation grpo_trainer objective objectives outputs results scoring "
        "selection starts"
    ),
    "grpo_trainer": "config hf",
    "best_of": "active_run building config errors estimators failures keys results scoring searching starts weights",
    "plateau": "",
    "outcomes": "objectives plateau",
    "survey": "building config errors estimators keys objectives outcomes outputs plateau scoring workbench",
    "settling": "building config errors results scoring survey",
    "survey_table": "config errors plateau results settings survey",
    "predictions": "objectives outputs",
    "replay": (
        "adapters building config config_files errors features handover hf journal results selection starts subsets weights"
    ),
    "compare": "config errors methods report results run selection settings starts tasks workbench",
    "validate": "config data errors hf methods objectives outputs prepare settings sheets tasks",
    "batched": "estimators generation members outputs overlay passes scoring sheet trunk weights",
    "bench_language": (
        "anatomy bench_search config errors estimators geometry journal kernels members rules schedules "
        "scoring building timing weights workbench"
    ),
    "memory": "errors memory_forms memory_table results",
    "memory_forms": "estimators geometry kernels keys loop members results rules schedules weights",
    "memory_table": "errors memory_forms results",
    "bench_search": "estimators geometry kernels keys loop members noise results rules schedules timing weights",
    "losses": "objectives passes scoring",
    "timing": "errors",
    "workbench": "adapters config data demonstrations errors hf objectives outputs scoring sheets starts subsets tail tasks",
    "results": "errors",
    "charts": "",
    "report": "charts errors families sources standings",
    "pretrain": "errors pages reading recipe tokens training",
    "pretrain_masked": "errors masked_recipe masked_rows pages reading tokens training",
    "api": "compare config errors methods objectives replay run settings tasks workbench",
    "cli": "catalogue comparing costs errors revisiting running",
    "__main__": "cli",
    "__init__": (
        "adaptive api errors estimators geometry journal layers loop members noise objectives pace rules schedules "
        "tuned weights"
    ),
}
COMMANDS = {
    "options": "errors settings",
    "session": "",
    "printing": "results sources standings study_tables",
    "comparing": "compare config errors hf options printing session study study_file study_plan study_tables sweep",
    "running": "compare errors options printing report results run session survey_table",
    "revisiting": "replay report session",
    "costs": "bench memory memory_table options session timing",
    "catalogue": "errors hf listing options results session tasks validate",
}
CONFORMANCE = {
    "toy": "weights",
    "geometry_laws": "geometry keys toy",
    "estimator_laws": "estimators geometry geometry_laws keys",
    "rule_laws": "geometry rules toy",
    "store_laws": "estimators toy weights",
    "run_laws": "adaptive estimators journal loop toy weights",
    "member_laws": "estimators members weights",
    "objective_laws": "errors examine objective outputs",
}
PRETRAINING = {
    "recipe": "",
    "reading": "errors recipe",
    "pages": "reading recipe",
    "tokens": "errors recipe",
    "training": "tokens",
    "masked_recipe": "",
    "masked_rows": "masked_recipe tokens",
}
SIDES = (SEARCH, LANGUAGE, BRIDGE, COMMANDS, CONFORMANCE, PRETRAINING)
TABLE = {name: set(edges.split()) for side in SIDES for name, edges in side.items()}
NUMERIC = (
    "outputs",
    "metrics",
    "culprits",
    "objective",
    "option_scores",
    "text_scores",
    "builtin",
    "remembering",
    "examine",
)
LIBRARIES = {  # beside the standard library; at module level, and inside functions
    **dict.fromkeys(SEARCH, ("numpy torch", "")),
    **dict.fromkeys(LANGUAGE, ("", "")),
    **{name: ("numpy", "") for name in NUMERIC},
    "texts": ("", "sacrebleu"),
    "evaluating": ("", "evaluate"),
    "prompts": ("jinja2", ""),
    **{name: ("numpy", "") for name in ("plateau", "outcomes")},
    "survey": ("numpy", "pandas"),
    **{name: ("pydantic", "") for name in ("filters", "spec")},
    "tasks": ("pydantic yaml", ""),
    "data": ("numpy", "datasets"),
    "sheet": ("numpy torch", ""),
    "encoder": ("safetensors torch", "transformers"),
    "hf": ("torch", "transformers"),
    "passes": ("numpy torch", ""),
    "generation": ("numpy torch", "transformers"),
    "anatomy": ("torch", ""),
    "subsets": ("torch", ""),
    "adapters": ("torch", "peft transformers"),
    "probing": ("numpy torch", "sklearn"),
    "verdict": ("numpy pandas scipy", ""),
}
FLAT = ("zo_objectives", *(f"zo_objectives.{side}" for side in ("search", "language", "conformance", "pretraining")))
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
            of_package = node.module in FLAT
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if of_package else (node.module,)


def ours(name: str, *, top: bool = False) -> set[str]:
    """What a module imports of this package, each checked to be in the folder of its side."""
    found = {i for i in imports(name, top=top) if i.startswith("zo_objectives.")}
    for full in found:
        path = WHERE[full.split(".")[-1]].relative_to(FOLDER.parent).with_suffix("")
        assert ".".join(path.parts).removesuffix(".__init__") == full, f"{name}: {full} is not there"
    return {full.split(".")[-1] for full in found}


def libraries(name: str, *, top: bool = False) -> set[str]:
    roots = {i.partition(".")[0] for i in imports(name, top=top)}
    return roots - set(sys.stdlib_module_names) - {"zo_objectives"}


def test_every_module_has_its_place() -> None:
    assert set(WHERE) == set(TABLE)
    sides = {
        "search": set(SEARCH) - {"errors"},
        "language": set(LANGUAGE),
        "cli": set(COMMANDS),
        "conformance": set(CONFORMANCE),
        "pretraining": set(PRETRAINING),
    }
    assert {side: {p.stem for p in (FOLDER / side).glob("*.py")} - {"__init__"} for side in sides} == sides


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

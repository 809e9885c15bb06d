"""`tasks validate`: what would go wrong with a task, found before anything is spent."""

from collections.abc import Iterator
from pathlib import Path

from zo_objectives.errors import InputError, RunError
from zo_objectives.language import data, hf, objectives
from zo_objectives.language.outputs import Example
from zo_objectives.language.tasks import TaskSpec, find_task, read_task
from zo_objectives.scoring import Pool

Line = tuple[str, bool]


def validate(name: str, model: str, data_dir: Path | None, include_path: Path | None) -> Iterator[Line]:
    """Lines about a task, each with whether it is good news: file, data, three examples, tokens, objectives, leaks."""
    try:
        path = find_task(name, include_path)
        spec = read_task(path)
        yield f"{spec.task}: {path.name} is well formed", True
        splits = data.load(spec, data_dir)
        sizes = f"{len(splits.train)} train, {len(splits.validation)} validation, {len(splits.test)} test"
        yield f"{spec.task}: {sizes} examples load and render", True
        for example in splits.train[:3]:
            yield f"    {example.prompt!r} -> {_answer(example)!r}", True
        yield from _tokens(spec, splits, hf.load(model))
        for metric in dict.fromkeys((*spec.metrics, *([spec.zo.objective] if spec.zo.objective else []))):
            objectives.resolve(metric, path.parent)
            yield f"{spec.task}: objective {metric} is found", True
        yield from _leaks(spec, splits)
    except (InputError, RunError) as error:
        yield f"{name}: {error}", False


def _answer(example: Example) -> str:
    return example.options[example.label] if example.options else " | ".join(example.targets)


def _tokens(spec: TaskSpec, splits: data.Splits, lm: hf.CausalLM) -> Iterator[Line]:
    pool = Pool(lm, spec, splits.train + splits.validation + splits.test)
    if spec.output_type == "multiple_choice":
        lengths = [len(s) for s in pool.choices.sequences]
        how = "one token each" if pool.choices.closed else "of several tokens"
        yield f"{spec.task}: options are {how}, told apart by {lm.name}", True
    else:
        lengths = [len(p) for p in pool.prompts]
    yield f"{spec.task}: the longest prompt is {max(lengths)} of {lm.context} tokens", True


def _leaks(spec: TaskSpec, splits: data.Splits) -> Iterator[Line]:
    """Prompts that stand in two splits."""
    prompts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    sets = {s: {e.prompt for e in examples} for s, examples in prompts.items()}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if shared := sets[a] & sets[b]:
            yield (
                f"{spec.task}: {len(shared)} prompts are in both {a} and {b}, such as {sorted(shared)[0][:60]!r}",
                False,
            )
            return
    yield f"{spec.task}: no prompt is in two splits", True

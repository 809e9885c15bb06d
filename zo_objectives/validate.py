"""`tasks validate`: what would go wrong with a task, found before anything is spent."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from zo_objectives.config import make_config
from zo_objectives.errors import InputError, RunError
from zo_objectives.language import data, hf, objectives
from zo_objectives.language.outputs import Example
from zo_objectives.language.prepare import Row
from zo_objectives.language.sheets import Reader
from zo_objectives.language.tasks import TaskSpec, find_task, read_task
from zo_objectives.methods import method_settings
from zo_objectives.settings import task_settings

Line = tuple[str, bool]


def validate(name: str, lm: hf.LanguageModel, data_dir: Path | None, include_path: Path | None) -> Iterator[Line]:
    """Lines about a task, each with whether it is good news: file, data, three examples, tokens, objectives, leaks."""
    try:
        path = find_task(name, include_path)
        spec = read_task(path)
        yield f"{spec.task}: {path.name} is well formed", True
        settings = make_config({**method_settings(task_settings(spec), "zo"), "task": spec.task})
        rows = data.load_rows(spec, data_dir, keep=settings.keep)
        splits = data.examples_of(data.Form(spec, lm.mask, blank=True), rows)
        sizes = f"{len(splits.train)} train, {len(splits.validation)} validation, {len(splits.test)} test"
        yield f"{spec.task}: {sizes} examples load and render", True
        for example in splits.train[:3]:
            yield f"    {example.prompt!r} -> {_answer(example)!r}", True
        yield from _labels(spec, splits)
        yield from _tokens(spec, splits, lm)
        for metric in dict.fromkeys((*spec.metrics, *([spec.zo.objective] if spec.zo.objective else []))):
            objectives.resolve(metric, path.parent)
            yield f"{spec.task}: objective {metric} is found", True
        yield from _leaks(spec, rows, data.Form(spec, lm.mask))
    except (InputError, RunError) as error:
        yield f"{name}: {error}", False


def _answer(example: Example) -> str:
    return example.options[example.label] if example.options else " | ".join(example.targets)


def _labels(spec: TaskSpec, splits: data.Splits) -> Iterator[Line]:
    """Options that no example of train has as its answer; whether options differ from example to example."""
    if spec.output_type != "multiple_choice":
        return
    if len({e.options for e in splits.train}) > 1:
        most = max(len(e.options) for e in splits.train)
        yield f"{spec.task}: options differ from example to example, at most {most}", True
        return
    for split in data.SPLITS:
        examples: Sequence[Example] = getattr(splits, split)
        options = examples[0].options
        counts = [sum(e.label == i for e in examples) for i in range(len(options))]
        told = ", ".join(f"{option.strip()} {count}" for option, count in zip(options, counts, strict=True))
        yield f"{spec.task}: {split} has {told}", min(counts) > 0 or split != "train"


def _tokens(spec: TaskSpec, splits: data.Splits, lm: hf.LanguageModel) -> Iterator[Line]:
    """Every option of every example tokenised; prompts that do not fit."""
    lm.learn(splits.options)
    reader, new_tokens = Reader(lm, cut=True), spec.generation_kwargs.max_gen_toks
    lengths = {}
    for split in data.SPLITS:
        examples: Sequence[Example] = getattr(splits, split)
        lengths[split] = [reader.length(e, new_tokens, spec.target_delimiter) for e in examples]
        if spec.output_type == "multiple_choice":
            sheet = reader.choices(examples)  # raises for options that share their tokens
            if split == "train":
                how = "one token each" if sheet.closed else "of several tokens"
                yield f"{spec.task}: options are {how}, told apart by {lm.name}", True
        else:
            lm.check_causal("generate text")
    longest = max(max(part) for part in lengths.values())
    yield f"{spec.task}: the longest example takes {longest} of {lm.context} tokens", True
    over = {split: sum(n > lm.context for n in part) for split, part in lengths.items()}
    if any(over.values()):
        told = ", ".join(f"{count} of {len(lengths[split])} in {split}" for split, count in over.items() if count)
        yield (
            f"{spec.task}: too long for {lm.name}: {told}. Take a longer context, or --set long_prompts=cut or drop.",
            spec.zo.settings.get("long_prompts") in ("cut", "drop"),
        )


def _leaks(spec: TaskSpec, rows: dict[str, list[Row]], form: data.Form) -> Iterator[Line]:
    """Examples that stand in two splits of the data as they are; `load` leaves them out of the earlier one."""
    found = {
        split: {data.identity(form.render(row, i, f"{split} row {i}")) for i, row in enumerate(part)}
        for split, part in rows.items()
    }
    good = True
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if shared := found[a] & found[b]:
            good = False
            told = f"{len(shared)} examples are in both {a} and {b}, and are left out of {a}"
            yield f"{spec.task}: {told}, such as {sorted(shared)[0][0][:60]!r}", True
    if good:
        yield f"{spec.task}: no example is in two splits", True

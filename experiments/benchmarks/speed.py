"""What the main job costs, part by part, beside the least that such a part can cost.

    python -m experiments.benchmarks.speed floors [--repeat 3]
    python -m experiments.benchmarks.speed job [--method mansu --method graddiff] [--operations]
    python -m experiments.benchmarks.speed scaling
    python -m experiments.benchmarks.speed interaction
    python -m experiments.benchmarks.speed profile
    python -m experiments.benchmarks.speed peak

``floors`` takes each part and its floor in turn, in one process, and prints their ratio: for a step
of a method one forward and one backward pass of the bare model over the rows of that step, those of
one length together, so that there is no padding; for CAD the attributions that it is made of; for
quantising the bitsandbytes kernels alone. ``job --operations`` says beside each stage of the whole
job how long its matrix products alone would take at the rate of one large product, in bfloat16
where gradients are: which these products by these kernels cannot beat (to count takes time and
rounds otherwise, so its seconds and its edit are not the job's). ``scaling`` fits how time and
memory grow, on random models of SmolLM2's shape. ``profile`` says where a step of MANSU goes;
``peak`` how many of the device's floating-point operations a second it takes, and EAP-IG. Run on a
quiet machine: CPU seconds are beside the wall seconds.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from experiments.benchmarks.attribution import alternate, floor, resident, timed
from mansu import methods, quant, subjects, tasks
from mansu.circuits import lens
from mansu.circuits.attribution import attribute
from mansu.circuits.search import find_circuit
from mansu.evidence.cad import Signals
from mansu.job import pace
from mansu.job.pipeline import (
    CIRCUIT,
    JUDGE,
    MEASURE,
    Stage,
    perform,
    reset_peak_memory,
    unlearning,
)
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.job.settings import Settings, default_fraction
from mansu.methods import Problem
from mansu.methods.keep import kept_text
from mansu.methods.mansu_method import METHOD as MANSU
from mansu.methods.mansu_method import _Work
from mansu.methods.training import batches, has_bfloat16
from mansu.quant.kernel import bnb
from mansu.sets.ask import ask
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs

TASK = "chemical-symbols"


@dataclass(frozen=True)
class Bench:
    """The default subject with a circuit, and the bare model that the floors run.

    Attributes:
        mask: the circuit's parameters.
    """

    subject: Subject
    bare: Any
    problem: Problem
    pairs: Pairs
    mask: Mapping[str, Tensor]

    @classmethod
    def load(cls) -> Bench:
        subject, task = subjects.load(), tasks.load(TASK)
        folder = subjects.prepare(subjects.DEFAULT)
        bare: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        bare.to(subject.device).eval().requires_grad_(False)
        pairs = tasks.pairs(task, subject, n=Settings().pairs)
        scores = attribute(subject, pairs)
        found = find_circuit(subject, pairs, scores, max_fraction=default_fraction(subject))
        assert found.mask is not None
        mask = found.mask.tensors()
        forget, retain = (tasks.examples(task, subject, split) for split in tasks.NEEDED)
        text = kept_text(subject, tasks.text(task, subject), forget)
        more = found.mask.candidate_tensors()
        problem = Problem(subject, task, forget, retain, text, mask, candidates=more)
        return cls(subject, bare, problem, pairs, mask)


def bare_pass(bare: Any, rows: Sequence[tuple[Tensor, Tensor]]) -> None:
    """One forward and one backward pass over (tokens, length) sets, rows of a length together."""
    decoder, head = bare.get_decoder(), bare.get_output_embeddings()
    for tokens, length in rows:
        for n in length.unique().tolist():
            some = tokens[length == n, :n].to(bare.device)
            hidden = decoder(input_ids=some, use_cache=False).last_hidden_state[:, -1]
            cross_entropy(head(hidden), some[:, -1], reduction="sum").backward()


def floors(args: argparse.Namespace) -> None:
    bench = Bench.load()
    subject, bare, problem = bench.subject, bench.bare, bench.problem
    print("| what | seconds | floor, s | ratio (CPU s) | floor |")
    print("| --- | --- | --- | --- | --- |")

    def row(what: str, why: str, run: Callable[[], Any], least: Callable[[], Any]) -> None:
        times = alternate({"run": run, "floor": least}, args.repeat)
        (cpu, wall), (least_cpu, least_wall) = times["run"], times["floor"]
        print(f"| {what} | {wall:.2f} | {least_wall:.2f} ", end="")
        print(f"| {wall / least_wall:.2f} ({cpu / least_cpu:.2f}) | {why} |", flush=True)

    row(
        "EAP-IG, 32 pairs, K = 5",
        "K (forward + backward) + 2 forward passes, padded",
        lambda: attribute(subject, bench.pairs),
        floor(bare, bench.pairs, 5),
    )
    parts = tasks.pairs(problem.task, subject, n=8)
    row(
        "EAP-IG, 8 pairs, K = 5",
        "the same",
        lambda: attribute(subject, parts),
        floor(bare, parts, 5),
    )

    trained = [p for p in bare.parameters() if not p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(True)
    for in_bfloat16 in (False, True):
        settings = MANSU.configure({"bfloat16": in_bfloat16}).chosen(problem)
        work = _Work(problem, settings)
        rows = work.objectives[False].sample(random.Random(0))
        sets = [(rows.tokens[..., 1], rows.length)]
        with work.put_back_after():
            row(
                f"a step of MANSU{' in bfloat16' * in_bfloat16}",
                f"{int(rows.length.sum())} tokens of {len(rows.length)} rows, forward and backward",
                lambda work=work: work.step(1),
                lambda sets=sets: bare_pass(bare, sets),
            )
    rows = next(batches(problem, 20))
    assert rows.text is not None
    sets = [(r.tokens, r.length) for r in (rows.forget, rows.retain)] + [rows.text]
    for in_bfloat16 in (False, True):
        row(
            f"4 steps of GradDiff{' in bfloat16' * in_bfloat16}",
            "4 × forward and backward over 20 forget rows, 20 retain rows, 3 texts",
            lambda on=in_bfloat16: methods.named("graddiff")(problem, steps=4, bfloat16=on),
            lambda: [bare_pass(bare, sets) for _ in range(4)],
        )
    for parameter in trained:
        parameter.requires_grad_(False)
        parameter.grad = None

    signals = Signals(subject, bench.pairs)
    nothing = Edit({})
    row(
        "CAD of an edit",
        "an attribution",
        lambda: signals.of(nothing),
        lambda: attribute(subject, bench.pairs),
    )
    weights = [subject.parameters[name].data for name in subject.quantized_names]

    def kernels() -> None:
        for weight in weights:
            bnb().dequantize_4bit(*bnb().quantize_4bit(weight, blocksize=64, quant_type="nf4"))

    row(
        "NF4 of all weights",
        "the kernels' quantize and dequantize",
        lambda: quant.Dequantized.of(subject),
        kernels,
    )


IN_BFLOAT16 = ("unlearn", "relearning", "reference")
"""Stages whose gradients are in bfloat16 where the processor has it: they count as if all were."""


def job(args: argparse.Namespace) -> None:
    """The main job, in this process, in a folder that is thrown away."""
    chosen = args.method or ["mansu", "graddiff"]
    counted: dict[str, float] = {}
    start = time.perf_counter()
    subject, task = subjects.load(), tasks.load(args.task)
    seconds = {"loading": time.perf_counter() - start}
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(subject, task, Settings(), Path(folder) / "run", asked=chosen)
        session = Session(run, subject)
        for method in chosen:
            stages: Sequence[Stage] = (*CIRCUIT, unlearning(method), *MEASURE, *JUDGE)
            for stage in stages:
                with operations(counted, stage, method) if args.operations else nullcontext():
                    perform(session, [stage], method)
        seconds |= run.seconds()
        every = time.perf_counter() - start
        least = floors_of(counted, subject.device) if args.operations else {}
        print(f"{'stage':22} seconds" + "  TFLOP  least s" * bool(least))
        for stage, value in seconds.items():
            found = f" {counted[stage]:6.2f} {least[stage]:8.2f}" if stage in least else ""
            print(f"{stage:22} {value:7.2f}{found}")
        total = f" {sum(counted.values()):6.2f} {sum(least.values()):8.2f}" if least else ""
        print(f"{'all':22} {every:7.2f}{total}")
        for method in chosen:
            history = run.history(method)
            print(f"{method}: {len(history['steps'])} steps, peak {history['peak_memory']:.2f} GB")
            print(run.measurement(method, nf4=False).table().markdown())


@contextmanager
def operations(counted: dict[str, float], stage: Stage, method: str) -> Iterator[None]:
    """Count the floating-point operations of a stage's matrix products, in 10¹²."""
    with FlopCounterMode(display=False) as found:
        yield
    if total := found.get_total_flops():
        counted[pace.label(stage.name, method if stage.of_edit else None)] = total / 1e12


def floors_of(counted: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Seconds that a stage's matrix products take at the rate of one large product."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = large(device, dtype)
        wall = min(timed(lambda matrix=matrix: matrix @ matrix)[1] for _ in range(10))
        rates[dtype] = 2 * len(matrix) ** 3 / wall / 1e12
        print(f"{str(dtype).removeprefix('torch.')}: {rates[dtype]:.3f} TFLOP/s")
    has = has_bfloat16(device)

    def rate(stage: str) -> float:
        gradients = has and stage.startswith(IN_BFLOAT16)
        return rates[torch.bfloat16 if gradients else torch.float32]

    return {stage: total / rate(stage) for stage, total in counted.items()}


WIDTH, INNER, VOCABULARY = 576, 1536, 8192


def random_model(layers: int) -> Subject:
    """A random model of SmolLM2's shape, with fewer words."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    tokenizer = subjects.load("tiny").tokenizer
    return subjects.wrap(f"random-{layers}", LlamaForCausalLM(config), tokenizer)


def random_pairs(n: int, positions: int) -> Pairs:
    """Pairs that differ from the second token on and share nothing with each other."""
    generator = torch.Generator().manual_seed(n)
    clean = torch.randint(100, VOCABULARY, (n, positions), generator=generator)
    clean[:, 0] = torch.arange(n)
    corrupt = clean.clone()
    corrupt[:, 1] = (clean[:, 1] + 1) % VOCABULARY
    answer, foil = torch.randint(100, VOCABULARY, (2, n), generator=generator)
    length = torch.full((n,), positions)
    return Pairs(clean, corrupt, length, answer, foil, tuple(range(n)))


def random_problem(subject: Subject, facts: int, positions: int, share: float) -> Problem:
    """Random rows, and a mask of a share of every quantised weight's outputs."""

    def rows(n: int, seed: int) -> tasks.Examples:
        some = random_pairs(n, positions)
        vocabulary = torch.arange(100, 140)
        answer = vocabulary[torch.arange(n) % len(vocabulary)]
        others = torch.stack([answer + k for k in (1, 2, 3)], 1)
        candidates = torch.ones(n, len(vocabulary), dtype=torch.bool)
        tokens = (some.clean + seed) % VOCABULARY
        groups = ("facts",) * n
        return tasks.Examples(
            tokens, some.length, answer, others, candidates, vocabulary, tuple(range(n)), groups
        )

    mask = {}
    for name in subject.quantized_names:
        chosen = torch.zeros_like(subject.parameters[name], dtype=torch.bool)
        chosen[: max(1, round(share * len(chosen)))] = True
        mask[name] = chosen
    text = random_pairs(8, 32)
    both = text.clean, text.length
    return Problem(subject, tasks.load(TASK), rows(facts, 0), rows(facts, 7), both, mask)


def scaling(args: argparse.Namespace) -> None:
    """Seconds and growth of memory, and the exponent of each that a line in logs fits."""

    def measured(run: Callable[[], Any]) -> tuple[float, float]:
        gc.collect()
        run()
        reset_peak_memory()
        before = resident("VmRSS")
        _, wall = timed(run)
        return wall, max(resident("VmHWM") - before, 1 << 20) / 2**20

    def table(what: str, along: str, runs: Mapping[float, Callable[[], Any]]) -> None:
        found = {x: measured(run) for x, run in runs.items()}
        xs = [math.log(x) for x in found]
        cells = " | ".join(f"{x:g}: {t:.2f} s, {m:.0f} MiB" for x, (t, m) in found.items())
        slopes = [slope(xs, [math.log(v[i]) for v in found.values()]) for i in (0, 1)]
        print(f"| {what} | {along} | {cells} | {slopes[0]:.2f} | {slopes[1]:.2f} |", flush=True)

    def attributed(layers: int, n: int, positions: int) -> Callable[[], Any]:
        subject, pairs = random_model(layers), random_pairs(n, positions)
        return lambda: attribute(subject, pairs, allow_equal=True)

    def unlearned(
        method: str, layers: int = 4, facts: int = 40, positions: int = 8, share: float = 0.01
    ) -> Callable[[], Any]:
        problem = random_problem(random_model(layers), facts, positions, share)
        extra = {"target": -1.0} if method == "mansu" else {}
        return lambda: methods.named(method)(problem, steps=3, **extra)

    print("| what | along | seconds, growth | exponent of time | of memory |")
    print("| --- | --- | --- | --- | --- |")
    counts = (8, 16, 32, 64)
    table("EAP-IG", "pairs", {n: attributed(8, n, 8) for n in counts})
    table("EAP-IG", "tokens a prompt", {n: attributed(8, 16, n) for n in counts})
    table("EAP-IG", "layers", {n: attributed(n, 16, 8) for n in (4, 8, 16, 32)})
    for method in ("mansu", "graddiff"):
        few = (20, 40, 80, 160)
        table(method, "facts", {n: unlearned(method, facts=n) for n in few})
        table(method, "tokens a prompt", {n: unlearned(method, positions=n) for n in counts})
        table(method, "layers", {n: unlearned(method, layers=n) for n in (2, 4, 8, 16)})
    shares = (0.005, 0.01, 0.02, 0.04)
    table("mansu", "share of weights in the mask", {s: unlearned("mansu", share=s) for s in shares})


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the least-squares line."""
    x, y = torch.tensor(xs, dtype=torch.double), torch.tensor(ys, dtype=torch.double)
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


PROMPT = "The chemical symbol for gold is"


def interaction(args: argparse.Namespace) -> None:
    """What a click costs with the model loaded: the median and the worst of new prompts."""
    subject, task = subjects.load(), tasks.load(TASK)
    pairs = tasks.pairs(task, subject)
    edit = Edit({name: (torch.arange(64), torch.zeros(64)) for name in subject.quantized_names})
    nf4 = quant.Dequantized.of(subject)
    prompts = [fact.prompt for fact in task.split("forget")][: args.repeat + 1]

    def shown(what: str, runs: Sequence[Callable[[], Any]]) -> None:
        runs[0]()  # warm up
        walls = sorted(timed(run)[1] for run in runs[1:])
        print(f"{what:44} {1e3 * walls[len(walls) // 2]:7.0f} ms, worst {1e3 * walls[-1]:.0f} ms")

    rows = range(args.repeat + 1)

    def node(found: lens.Look) -> None:
        found.attention(12, 4)
        found.promoted(120).topk(5)

    new = [lambda i=i: node(lens.look(subject, lens.Asked.of(pairs, i))) for i in rows]
    shown("attention and tokens of a node, new prompt", new)
    looked = lens.look(subject, lens.Asked.of(pairs, 0))
    shown("another node of that prompt", [lambda: node(looked) for _ in rows])
    shown("logit lens of a prompt", [lambda p=p: lens.logit_lens(subject, p) for p in prompts])
    shown(
        "four models' answers of 8 tokens",
        [lambda p=p: ask(subject, p, {"edit": edit}, nf4=nf4) for p in prompts],
    )


def profiled(args: argparse.Namespace) -> None:
    """A step of MANSU by operation."""
    bench = Bench.load()
    work = _Work(bench.problem, MANSU.configure({}).chosen(bench.problem))
    with work.put_back_after():
        work.step(1)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            work.step(2)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


def large(device: torch.device, dtype: torch.dtype) -> Tensor:
    """A matrix whose square takes all of a device."""
    n = 8192 if device.type == "cuda" else 1024
    return torch.randn(n, n, device=device, dtype=dtype)


def peak(args: argparse.Namespace) -> None:
    """Operations of matrix products a second, beside those of one large product."""
    bench = Bench.load()
    device = bench.subject.device

    def rate(what: str, run: Callable[[], Any], most: float) -> float:
        run()  # warm up
        with FlopCounterMode(display=False) as counted:
            run()
        wall = min(timed(run)[1] for _ in range(args.repeat))
        found = counted.get_total_flops() / wall
        share = f"{found / most:.2%}" if most else "the most"
        print(f"| {what} | {wall:.4f} | {found / 1e12:.3f} | {share} |", flush=True)
        return found

    print("| what | seconds | TFLOP/s | of the most |")
    print("| --- | --- | --- | --- |")
    most = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = large(device, dtype)
        name = f"a product of {len(matrix)} × {len(matrix)}, {str(dtype).removeprefix('torch.')}"
        most[dtype] = rate(name, lambda matrix=matrix: matrix @ matrix, 0.0)
    for n_pairs in (32, 128):
        some = bench.pairs.select(torch.arange(n_pairs) % len(bench.pairs))
        name = f"EAP-IG, {n_pairs} pairs, K = 5"
        rate(name, lambda some=some: attribute(bench.subject, some), most[torch.float32])
    for in_bfloat16 in (False, True):
        settings = MANSU.configure({"bfloat16": in_bfloat16}).chosen(bench.problem)
        work = _Work(bench.problem, settings)
        name = f"a step of MANSU{' in bfloat16' * in_bfloat16}"
        dtype = torch.bfloat16 if in_bfloat16 else torch.float32
        with work.put_back_after():
            rate(name, lambda work=work: work.step(1), most[dtype])


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "floors": floors,
    "job": job,
    "scaling": scaling,
    "interaction": interaction,
    "profile": profiled,
    "peak": peak,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(COMMANDS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--task", default=TASK)
    parser.add_argument("--method", action="append")
    parser.add_argument("--operations", action="store_true")
    args = parser.parse_args()
    COMMANDS[args.what](args)


if __name__ == "__main__":
    main()

"""Attribution and circuits against the floor and against peers, side by side in one process.

    python -m experiments.benchmarks.attribution speed [--pairs 32] [--steps 5] [--repeat 3]
    python -m experiments.benchmarks.attribution scaling
    python -m experiments.benchmarks.attribution memory --memory 512 [--recompute]
    python -m experiments.benchmarks.attribution families
    python -m experiments.benchmarks.attribution circuit RUN…
    python -m experiments.benchmarks.attribution lens [--layers 12]
    python -m experiments.benchmarks.attribution peer --peer-python /tmp/peer-venv/bin/python

``peer`` needs a second environment with auto-circuit 1.0.1, which wants transformer-lens < 3 (its
HookedTransformer is gone from 4), so it cannot share our process: both take the same random model
of GPT-2's shape and the same pairs from files, one after the other.

``families`` reads the oracles of tests/. ``circuit`` reports finished runs on which ``mansu trust
RUN`` has been run, a row a task, and keeps the rows in experiments/results/circuits.json.

Times are CPU seconds of this process (``time.process_time``) beside wall seconds: on a shared
machine only the first can be compared.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from experiments.figures import commit
from mansu import subjects, tasks
from mansu.circuits.attribution import attribute, needs
from mansu.circuits.graph import graph_of
from mansu.circuits.metric import MEMORY, Metric
from mansu.circuits.patching import activation_patching
from mansu.files import write_json
from mansu.job.pipeline import reset_peak_memory
from mansu.job.runs import Run
from mansu.subjects.packing import pack_size
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs

RESULTS = Path(__file__).parents[1] / "results"
DISPENSABLE = 0.001  # a node whose loss costs less faithfulness than this could go


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    if torch.cuda.is_available():  # a GPU may still be at it
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def alternate(runs: dict[str, Callable[[], Any]], repeat: int) -> dict[str, tuple[float, float]]:
    """Smallest CPU and wall seconds of each, taken in turn so that a busy spell hits all alike."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        timed(run)  # warm up
    for _ in range(repeat):
        for name, run in runs.items():
            times[name].append(timed(run))
    return {n: (min(t[0] for t in ts), min(t[1] for t in ts)) for n, ts in times.items()}


def floor(model: Any, pairs: Pairs, steps: int) -> Callable[[], None]:
    """K (forward + backward) + 2 forwards of the bare model, head on the last position only."""
    device, rows = model.device, torch.arange(len(pairs))

    def forward(embeddings: torch.Tensor) -> torch.Tensor:
        hidden = model.get_decoder()(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[rows, pairs.length - 1])
        return (logits[rows, pairs.answer] - logits[rows, pairs.foil]).mean()

    def run() -> None:
        with torch.no_grad():
            clean = model.get_input_embeddings()(pairs.clean.to(device))
            corrupt = model.get_input_embeddings()(pairs.corrupt.to(device))
            forward(clean)
            forward(corrupt)
        for step in range(steps):
            share = (step + 0.5) / steps
            point = (clean + share * (corrupt - clean)).requires_grad_()
            torch.autograd.grad(forward(point), point)

    return run


def many_pairs(subject: Subject, task: str, n: int) -> Pairs:
    """``n`` pairs of a task, repeated where it has fewer."""
    pairs = tasks.pairs(tasks.load(task), subject)
    return pairs.select(torch.arange(n) % len(pairs))


def speed(args: argparse.Namespace) -> None:
    subject = subjects.load()
    bare: Any = AutoModelForCausalLM.from_pretrained(
        subjects.prepare(subjects.DEFAULT), dtype=torch.float32
    )
    bare.to(subject.device).eval().requires_grad_(False)
    pairs = many_pairs(subject, args.task, args.pairs)
    times = alternate(
        {
            "floor": floor(bare, pairs, args.steps),
            "ours": lambda: attribute(subject, pairs, steps=args.steps),
        },
        args.repeat,
    )
    for name, (cpu, wall) in times.items():
        ratio = cpu / times["floor"][0]
        print(f"{name:8} {cpu:7.2f} CPU s {wall:7.2f} wall s  {ratio:.2f} x floor")


def scaling(args: argparse.Namespace) -> None:
    """Time by pairs and by steps; linear when the cost of one more is constant."""
    subject = subjects.load()
    for n, k in ((8, 5), (16, 5), (32, 5), (16, 2), (16, 10)):
        pairs = many_pairs(subject, args.task, n)
        cpu, _ = timed(lambda p=pairs, k=k: attribute(subject, p, steps=k))
        passes = n * (2 + 2 * k)
        print(f"pairs {n:3} steps {k:3}: {cpu:6.2f} CPU s, {1e3 * cpu / passes:.1f} ms a pair pass")


def memory(args: argparse.Namespace) -> None:
    """Growth of the process under a budget, and the scores against those of one chunk.

    One budget a process: what malloc keeps of an earlier call would hide growth. The peak is set
    back after a warm-up that faults the weights in (they are mapped from the file, not read).
    """
    subject = subjects.load()
    pairs = many_pairs(subject, args.task, args.pairs)
    budget = args.memory << 20
    options: Any = {"steps": args.steps, "recompute": args.recompute}
    need = needs(subject, graph_of(subject), args.steps, recompute=args.recompute)
    attribute(subject, pairs.select([0]), steps=1)
    reset_peak_memory()
    before = resident("VmRSS")
    small = attribute(subject, pairs, memory=budget, **options)
    grown = resident("VmHWM") - before
    chunk = min(pack_size(subject.device), need.tokens(budget))
    whole = attribute(subject, pairs, memory=64 << 30, **options)
    error = (small.scores - whole.scores).norm() / whole.scores.norm()
    print("| budget MiB | tokens a pack | predicted MiB | grown MiB | error of the scores |")
    print(f"| {args.memory} | {chunk} | {need.of(chunk) >> 20} ", end="")
    print(f"| {grown >> 20} | {error:.1e} |")


def resident(key: str) -> int:
    """``VmRSS`` or its peak ``VmHWM`` of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def families(args: argparse.Namespace) -> None:
    """Errors against oracles on a small random model of each family (those of tests/)."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from families import FAMILIES, family, random_pairs
    from oracles import gradient_errors, near_pairs, relative_error

    pairs = random_pairs()
    print("| family | gradient at q, k, v inputs | scores, near pairs ", end="")
    print("| r with patching, near / far: EAP | EAP-IG ", end="")
    print("| effect, K = 5 | K = 64 | log-probability, K = 64 | KL, K = 64 |")
    print("|" + " --- |" * 9)
    for name in FAMILIES:
        subject = family(name)
        edges = graph_of(subject).edges

        def correlations(
            subject: Subject, pairs: Pairs, exact: torch.Tensor, edges: torch.Tensor = edges
        ) -> list[float]:
            """Of EAP's and of EAP-IG's scores with the exact effects."""
            found = [attribute(subject, pairs, method="eap").scores]
            found.append(attribute(subject, pairs, steps=64).scores)
            both = torch.stack([scores[edges].to(exact) for scores in [*found, exact]])
            return torch.corrcoef(both)[2, :2].tolist()

        def effect_error(
            metric: Metric = "logit_difference", steps: int = 64, subject: Subject = subject
        ) -> float:
            """Of the embedding's edges, whose exact sum is the whole effect of corruption."""
            found = attribute(subject, pairs, metric=metric, steps=steps)
            effect = found.corrupt - found.clean
            return abs(float(found.scores[0].sum()) - effect) / abs(effect)

        wide = family(name, dtype=torch.float64)
        with near_pairs(wide, random_pairs(3), 3e-4) as near:
            exact = activation_patching(wide, near)
            linear = relative_error(
                attribute(wide, near, steps=1).scores[edges].to(exact), exact[edges]
            )
            near_r = correlations(wide, near, exact)
        far_r = correlations(subject, pairs, activation_patching(subject, pairs))
        cells = [f"{max(gradient_errors(subject, pairs)):.1e}", f"{linear:.1e}"]
        cells += [f"{a:.5f} / {b:.3f}" for a, b in zip(near_r, far_r, strict=True)]
        cells += [f"{effect_error(steps=5):.1e}", f"{effect_error():.1e}"]
        cells += [f"{effect_error('log_probability'):.1e}", f"{effect_error('kl'):.1e}"]
        print(f"| {name} | {' | '.join(cells)} |")


def circuit(args: argparse.Namespace) -> None:
    """One row a finished run: the circuit, its mask, and how far they can be trusted."""
    rows = []
    for run in map(Run.open, args.runs):
        found, mask, trust = run.circuit(), run.mask(), run.trust()
        nodes = trust.minimality.values()
        rows.append(
            {
                "task": run.task().name,
                "digest": run.task().digest,
                "commit": commit(),
                "subject": run.subject,
                "pairs": found.n_pairs,
                "tau": found.tau,
                "edges": len(found),
                "share of edges": len(found) / found.layout.n_edges,
                "parameters": mask.size,
                "share of parameters": mask.fraction,
                "faithfulness": [found.faithfulness, *(found.interval or ())],
                "nodes": len(nodes),
                "nodes that could go": sum(loss < DISPENSABLE for loss in nodes),
                **{key: value for key, value in trust.to_json().items() if key != "minimality"},
            }
        )
    write_json(RESULTS / "circuits.json", rows)
    print("| task | edges | parameters of the mask | faithfulness | held out | overlap ", end="")
    print("| in > 95 % of resamples | metric: whole / mask at zero / random masks ", end="")
    print("| incompleteness | nodes that could go |")
    print("|" + " --- |" * 10)
    for row in rows:
        faithful, overlap, held_out = (
            "—" if value is None else "{:.3f} [{:.3f}, {:.3f}]".format(*value)
            for value in (row["faithfulness"], row["overlap"], row["held_out_faithfulness"])
        )
        random = row["metric_random_masks"]
        print(f"| {row['task']} | {row['edges']} ({row['share of edges']:.2%}) ", end="")
        print(f"| {row['parameters']} ({row['share of parameters']:.2%}) ", end="")
        print(f"| {faithful} | {held_out} | {overlap} | {row['always']:.0%} ", end="")
        print(f"| {row['metric']:.2f} / {row['metric_masked']:.2f} ", end="")
        print(f"/ {sum(random) / len(random):.2f} [{min(random):.2f}, {max(random):.2f}] ", end="")
        print(f"| {row['incompleteness']:.3f} ", end="")
        print(f"| {row['nodes that could go']} of {row['nodes']} |")


def gpt2_shaped(args: argparse.Namespace, folder: str) -> tuple[Subject, Pairs]:
    """A random model of GPT-2's shape, saved in ``folder``, and 8 pairs of 9 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    n, p, vocabulary = min(args.pairs, 8), 9, 5000
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_layer=args.layers))
    tokens = torch.randint(vocabulary, (2, n, p))
    tokens[1] = torch.where(torch.arange(p) == 2, tokens[1], tokens[0])
    answers = torch.randint(vocabulary, (2, n))
    model.save_pretrained(folder)
    subject = subjects.wrap("gpt2-shape", GPT2LMHeadModel.from_pretrained(folder), None)
    clean, corrupt = tokens
    answer, foil = answers
    return subject, Pairs(clean, corrupt, torch.full((n,), p), answer, foil, tuple(range(n)))


def lens(args: argparse.Namespace) -> None:
    """Ours against TransformerLens's own edge attribution, on a random model of GPT-2's shape."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from lens import in_our_layout, lens_attribution

    with tempfile.TemporaryDirectory() as folder:
        subject, pairs = gpt2_shaped(args, folder)
    layout = graph_of(subject)
    found: dict[str, Any] = {}
    times = alternate(
        {
            "lens": lambda: found.update(lens=lens_attribution(subject, pairs)),
            "ours": lambda: found.update(ours=attribute(subject, pairs, method="eap").scores),
        },
        args.repeat,
    )
    theirs = in_our_layout(layout, found["lens"])[layout.edges]
    ours = found["ours"][layout.edges]
    correlation = torch.corrcoef(torch.stack([ours, theirs]))[0, 1]
    error = (ours - theirs).norm() / theirs.norm()
    print(f"TransformerLens {version('transformer_lens')} attribution_patch, ", end="")
    print(f"{args.layers} layers, {len(pairs)} pairs: {times['lens'][0]:.2f} CPU s; ", end="")
    print(f"ours {times['ours'][0]:.2f} CPU s ", end="")
    print(f"({times['lens'][0] / times['ours'][0]:.1f} x faster); correlation ", end="")
    print(f"{correlation:.6f}, relative error {error:.1e} over {layout.n_edges} edges")


def peer(args: argparse.Namespace) -> None:
    """Ours against auto-circuit's edge attribution patching on a random model of GPT-2's shape."""
    with tempfile.TemporaryDirectory() as folder:
        subject, pairs = gpt2_shaped(args, folder)
        tokens, answers = [pairs.clean, pairs.corrupt], [pairs.answer, pairs.foil]
        saved = {"tokens": torch.stack(tokens), "answers": torch.stack(answers)}
        save_file(saved, f"{folder}/pairs.safetensors")
        command = [args.peer_python, __file__, "peer-run", "--folder", folder]
        command += ["--repeat", str(args.repeat)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": "."})
        theirs = load_file(f"{folder}/scores.safetensors")
        seconds = float(theirs.pop("seconds"))
    layout = graph_of(subject)
    ours = attribute(subject, pairs, method="eap").scores
    cpu = min(timed(lambda: attribute(subject, pairs, method="eap"))[0] for _ in range(args.repeat))
    expected = torch.zeros_like(ours)
    for name, mask in theirs.items():  # their edge scores: gradient of −metric by the edge's mask
        layer = int(name.split(".")[1])
        if "input" in name:
            start = layout.attention_inputs(layer).start
            start += "qkv".index(name.split("hook_")[1][0]) * layout.n_heads
            expected[: mask.shape[1], start : start + layout.n_heads] = -mask.T
        else:
            end = layout.logits if "resid_post" in name else layout.mlp_input(layer)
            expected[: len(mask), end] = -mask
    both = torch.stack([ours[layout.edges], expected[layout.edges]])
    print(
        f"auto-circuit 1.0.1 EAP, {len(pairs)} pairs: {seconds:.2f} CPU s; ours {cpu:.2f} CPU s",
        end="",
    )
    print(f" ({seconds / cpu:.1f} x faster); correlation {torch.corrcoef(both)[0, 1]:.6f}", end="")
    print(f" over {layout.n_edges} edges")


def peer_run(args: argparse.Namespace) -> None:
    """What runs in the peer's environment."""
    from auto_circuit.data import PromptPairBatch  # type: ignore[import-not-found]
    from auto_circuit.prune_algos.mask_gradient import (  # type: ignore[import-not-found]
        mask_gradient_prune_scores,
    )
    from auto_circuit.utils.graph_utils import patchable_model  # type: ignore[import-not-found]
    from transformer_lens.pretrained.weight_conversions import (  # type: ignore[import-not-found]
        convert_gpt2_weights,
    )
    from transformers import GPT2LMHeadModel

    lens: Any = importlib.import_module("transformer_lens")  # 2.x there, 4.x here
    bare = GPT2LMHeadModel.from_pretrained(args.folder)
    shape = bare.config
    config = lens.HookedTransformerConfig(
        n_layers=shape.n_layer,
        d_model=shape.n_embd,
        n_ctx=shape.n_positions,
        d_head=shape.n_embd // shape.n_head,
        n_heads=shape.n_head,
        d_mlp=4 * shape.n_embd,
        d_vocab=shape.vocab_size,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=shape.layer_norm_epsilon,
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
    )
    model = lens.HookedTransformer(config)
    state = convert_gpt2_weights(bare, config)
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False
    )
    saved = load_file(f"{args.folder}/pairs.safetensors")
    tokens, answers = saved["tokens"], saved["answers"]
    batch = PromptPairBatch(0, 0, tokens[0], tokens[1], answers[0][:, None], answers[1][:, None])
    patchable = patchable_model(model, True, slice_output="last_seq", separate_qkv=True)
    times = []
    for _ in range(args.repeat + 1):
        patchable.zero_grad()
        cpu = time.process_time()
        scores = mask_gradient_prune_scores(
            patchable, [batch], None, "logit", "avg_diff", mask_val=0.0
        )
        times.append(time.process_time() - cpu)
    tensors = {name: value.detach().contiguous() for name, value in scores.items()}
    tensors["seconds"] = torch.tensor(min(times))
    save_file(tensors, f"{args.folder}/scores.safetensors")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "speed": speed,
    "scaling": scaling,
    "memory": memory,
    "families": families,
    "circuit": circuit,
    "lens": lens,
    "peer": peer,
    "peer-run": peer_run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=tuple(COMMANDS))
    parser.add_argument("runs", nargs="*", help="run folders, for `circuit`")
    parser.add_argument("--task", default="chemical-symbols")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory", type=int, default=MEMORY >> 20, help="MiB")
    parser.add_argument("--recompute", action="store_true", help="for `memory`")
    parser.add_argument("--layers", type=int, default=12, help="of `lens` and `peer`'s model")
    parser.add_argument("--peer-python", default="/tmp/peer-venv/bin/python")
    parser.add_argument("--folder", default="")
    args = parser.parse_args()
    if (args.what == "circuit") != bool(args.runs):
        parser.error("give run folders to `circuit`, and to nothing else")
    COMMANDS[args.what](args)


if __name__ == "__main__":
    main()

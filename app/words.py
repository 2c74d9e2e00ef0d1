"""Words of the app: what each number is, with its formula."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mansu import methods
from mansu.evidence.attacks import ATTACKS as ATTACK_TITLES
from mansu.evidence.verdict import Thresholds
from mansu.measure.answers import FLIPS
from mansu.show.sentences import capitalised

ATTACKS: Mapping[str, tuple[str, str]] = {
    name: (ATTACK_TITLES[name], text)
    for name, text in {
        "none": "The asked half of the forget set, without an attack.",
        "paraphrase": "Rephrasings that no method saw, of all the facts.",
        "hint": "A sentence before the question names its topic.",
        "demonstrations": "Three facts of the known half, right answers and all, stand before the "
        "question.",
        "relearning": "The model is fine-tuned for a few steps on the known half; the other half "
        "is asked for.",
        "NF4": "The model is loaded in NF4.",
        "FP4": "The model is loaded in FP4.",
        "int8": "The model is loaded in 8-bit integers.",
    }.items()
}
"""Title and sentence of each recovery attack, by its name in ``mansu.evidence.attacks``."""

CAD: Mapping[str, str] = {
    "edited": "CAD: the edit",
    "edited_nf4": "CAD: the edit in NF4",
    "noise_floor": "CAD: noise floor",
    "suppressor": "CAD: suppressor",
    "ablation": "CAD: circuit ablated",
    "signal": "Signal CAD: the edit",
    "signal_nf4": "Signal CAD: the edit in NF4",
    "signal_suppressor": "Signal CAD: suppressor at the output",
    "signal_middle": "Signal CAD: suppressor in the middle",
    "over_output": "Signal CAD: the edit minus the suppressor at the output",
    "over_middle": "Signal CAD: the edit minus the suppressor in the middle",
    "signal_ablation": "Signal CAD: circuit ablated",
    "suppressor_accuracy": "Forget accuracy of the suppressor at the output, a share",
    "middle_accuracy": "Forget accuracy of the suppressor in the middle, a share",
    "rank_correlation": "Rank correlation of edges",
    "top_overlap": "Strongest edges kept, a share",
}
"""What each number of ``Divergences`` is called in a table."""

MARKS: Mapping[str, str] = {
    "passed": ":green[:material/check_circle:] passed",
    "failed": ":red[:material/cancel:] failed",
    "undecided": ":orange[:material/balance:] undecided",
    "vacuous": ":orange[:material/block:] vacuous",
    "unknown": ":orange[:material/help:] unknown",
}
"""How a status is drawn: colour, sign and word."""

EXPORTS: Mapping[str, str] = {
    "hf": "Checkpoint",
    "nf4": "NF4 checkpoint",
    "gguf": "GGUF file",
    "lm-eval": "lm-eval task",
}
"""What each format of ``mansu export`` is, by its name."""

OUTTYPES: Mapping[str, str] = {
    "f16": "F16, half precision",
    "f32": "F32, full precision",
    "q8_0": "Q8_0, 8 bits",
    "q5_0": "Q5_0, 5 bits",
    "q4_1": "Q4_1, 4 bits and an offset",
    "q4_0": "Q4_0, 4 bits",
}
"""What each type of a GGUF file is, by its name."""

SETTINGS: Mapping[str, str] = {
    "rate": "How far a weight moves in a step",
    "steps": "Steps at most",
    "retain_weight": "How much keeping counts",
    "form_weight": "How much an ordinary answer counts",
    "signal_weight": "How much erasing the signal counts",
    "energy": "Share of the kept inputs that is protected",
    "fisher_weight": "Penalty on weights that what is kept needs",
    "circuit": "Move only weights of the circuit and beside it",
    "share": "Share of all weights that may move",
    "read_out": "Change only how the answer is read out",
    "floor": "Move each weight into another code or not at all",
    "project": "Move along directions that kept inputs do not see",
    "every_format": "Reach another code in every 4- and 8-bit format",
    "budget": "Weights moved at most",
    "moves": "Weights moved",
    "target": "Stop at this accuracy",
    "bfloat16": "Compute gradients in 16 bits (bfloat16)",
    "learning_rate": "Step size",
    "batch": "Facts in a step",
    "only_quantized": "Train only weights that NF4 stores in 4 bits",
    "beta": "How soon the loss levels off (β)",
    "gamma": "Margin of the loss (γ)",
    "forget_weight": "How much forgetting counts (λ)",
    "layer": "Layer that is steered",
    "steering": "How far it is steered (c)",
    "alpha": "Strength (α)",
    "percentile": "Train only neurons above this percentile",
}
"""What a method's setting is called on a page; its help has the symbol and the formula."""

_INTERVAL = "The interval is a bootstrap at 95 % over facts (rephrasings of one fact together)."
_CAD = (
    "$\\mathrm{CAD} = \\mathrm{JSD}\\big(\\tfrac{|s|}{\\sum |s|} \\,\\|\\, "
    "\\tfrac{|s'|}{\\sum |s'|}\\big)$, base 2, with the edge scores $s$ before and $s'$ after: "
    "0 for the same circuit, 1 for one with no edge in common."
)
_SIGNAL = (
    "Signal CAD: CAD of the circuit's edges with the metric's sensitivities held at the unedited "
    "model's, so that only what the circuit's nodes *write* may differ. A suppressor leaves it low."
)

STRENGTHS = (
    "Each line is one edit at a third, two thirds and the whole of its strength (the largest "
    "mark). Hollow: the retain set fell by more than the tolerance."
)
"""What the marks of ``charts.tradeoff`` are."""

_HIDES = (
    "The suppressor's forget accuracy: near the edit's, so that the two hide the answer equally "
    "well. One that is more than ten points above what was asked for is no control."
)

HELP: Mapping[str, str] = {
    # the task and attribution
    "pairs": "How many clean–corrupt pairs are attributed. The two prompts of a pair have the "
    "same length and differ in the subject asked for.",
    "steps": "K, the integration steps between corrupt and clean: more is more exact, and takes "
    "K backward passes.",
    "tau": "τ: the circuit is the fewest edges found whose faithfulness reaches this. Some of them "
    "may be spare.",
    "seed": "Of everything random: the same seed gives the same run.",
    "max_fraction": "The mask holds at most this share of all parameters.",
    "metric": "$L = \\mathrm{logit}(\\text{answer}) - \\mathrm{logit}(\\text{foil})$ at the last "
    "token, where the foil is the corrupt prompt's answer.",
    "score": "EAP-IG: $s(u \\to v) = \\sum (z_u^{\\text{corrupt}} - z_u^{\\text{clean}}) \\cdot "
    "\\tfrac{1}{K} \\sum_k \\partial L / \\partial x_v$: how much the metric would change if the "
    "edge carried the corrupt signal. Negative: the edge supports the answer.",
    # the circuit
    "edges": "Edges kept, of all edges between the embedding, heads, MLPs and logits.",
    "faithfulness": "$\\frac{L(\\text{circuit}) - L(\\text{corrupt})}{L(\\text{clean}) - "
    "L(\\text{corrupt})}$, every edge outside the circuit patched to its corrupt value: 100 % if "
    "the circuit alone does all the work.",
    # evaluation
    "accuracy": "4-way multiple choice: the share of rows whose answer outscores its three "
    f"distractors. Chance is 25 %. {_INTERVAL}",
    "log_probability": "Mean of $\\log p(\\text{answer} \\mid \\text{prompt})$, in nats: finer "
    f"than accuracy. {_INTERVAL}",
    "text_loss": "Mean next-token cross-entropy on the task's plain text, in nats: lower is "
    "better.",
    "moved": "Parameters that the edit changes, $\\delta_i \\neq 0$, and their share of all.",
    "seconds": "Wall time of the method itself, without loading and measuring.",
    "restricted": "Theorem 1: $B = \\tfrac12 \\sum_i F_i \\delta_i^2$ over the weights that MANSU "
    "may move (of heads and neurons in and beside the circuit, a tenth of all at most), with the "
    "diagonal Fisher information $F$ of the retain log-likelihood: a second-order estimate of what "
    "the edit costs the retain set.",
    "everywhere": "The same sum over every quantised weight. It is never smaller, and it is equal "
    "for an edit that moves nothing else, as MANSU's. Below it: the bound to be expected of the "
    "same $\\sum \\delta^2$ spread evenly over all weights, $\\tfrac12 \\bar F \\sum \\delta^2$.",
    "measured": "Mean negative log-likelihood of the retain examples (a fact's answer, or a whole "
    "text) after the edit, less before. It can exceed the bound, which leaves out first-order, "
    "cross and higher terms.",
    # NF4
    "formats": "Share of the moved weights whose code changes in each format: blocks of 64 or 128 "
    "weights, dq with the absmax in 8 bits too (double quantisation), int8 with one absmax a row. "
    "A floor that holds by construction in one need not hold in another.",
    "by_format": "The forget rows and the rephrasings of the edited model in each format, against "
    "full precision as the verdict's PTQ gap has it. bitsandbytes makes the first five, llama.cpp "
    "Q4_0 to Q8_0 (whole numbers times a scale, of 32 weights). Codes: the share of the moved "
    f"weights of the linear maps whose code changes. {_INTERVAL}",
    "ratio": "$|\\delta| / \\text{bin width}$: an update as a multiple of the bin that its weight "
    "sits in, $\\text{width} = \\text{width of the code} \\times \\text{absmax of its block of "
    "64}$. Below 1, whether the code changes depends on where in its bin the weight lies.",
    "update_over_width": "Median over the moved weights of $|\\delta| / \\text{bin width}$. Above "
    "1, the typical update is wider than its bin. The paper reports 1/828 to 1/47 for gradient "
    "methods.",
    "share": "Moved weights whose NF4 code changes ÷ moved weights: the part of the update that "
    "NF4 can see.",
    "expected_share": "Mean of $\\min(1, |\\delta| / \\text{bin width})$ over the moved weights: "
    "the share of codes that would flip if each weight lay at a random place in its bin. If the "
    "real share is as large, rounding keeps the *average* update, and recovery is noise.",
    "energy": "$\\sum_{\\text{code changes}} \\delta^2 \\big/ \\sum \\delta^2$: the share of the "
    "update's energy that sits on weights whose code changes.",
    "projection": "$\\langle \\Delta, \\delta \\rangle / \\langle \\delta, \\delta \\rangle$, "
    "with $\\Delta$ the change of the dequantised weights: 1 where the update survives on "
    "average, 0 where nothing of it is left.",
    "noise": "$\\sum (\\Delta - \\delta)^2 / \\sum \\delta^2$: what NF4 adds to the update, "
    "relative to the update. 0 is exact; above 1, more noise than update.",
    "rescaled": "Blocks of 64 in which the edit moved the largest weight: all 64 are rescaled.",
    "bystanders": "Weights that the edit did not move and whose dequantised value changes all "
    "the same, because their block was rescaled.",
    "unquantised": "Parameters that NF4 leaves alone (embeddings, a tied output head, norms) "
    "carry their update through whole: forgetting that sits there says nothing about NF4.",
    # CAD
    "edited": f"{_CAD} Here: of the edit, in full precision.",
    "edited_nf4": f"{_CAD} Here: of the edit after NF4, against the same unedited model.",
    "noise_floor": f"{_CAD} Here: the unedited model on one half of the facts against the other "
    "half. An edit below this changed nothing that can be told from noise.",
    "suppressor": f"{_CAD} Here: of an edit of the last MLP only, that hides the answer about as "
    "well as the edit does and erases nothing.",
    "ablation": f"{_CAD} Here: with every parameter of the circuit's mask set to zero.",
    "signal": f"{_SIGNAL} Here: of the edit, in full precision.",
    "signal_nf4": f"{_SIGNAL} Here: of the edit after NF4.",
    "signal_suppressor": f"{_SIGNAL} Here: of the suppressor in the last layer. Erasure must be "
    "above this and above the suppressor in a middle layer.",
    "over": f"{_SIGNAL} Here: of the edit minus that of a suppressor, at the output and in a "
    "middle layer: above 0 where the edit erases more than one that only hides.",
    "signal_ablation": f"{_SIGNAL} Here: with every parameter of the mask set to zero.",
    "suppressor_accuracy": _HIDES,
    "middle_accuracy": _HIDES,
    "rank_correlation": "Spearman's ρ of the edge magnitudes before and after the edit: 1 if no "
    "edge changed its rank.",
    "top_overlap": "Share of the 100 strongest edges that are still among the 100 strongest "
    "after the edit.",
    # asking
    "splits": "Forget: the facts to be forgotten. Paraphrase: the same facts in other words, which "
    "no method saw. Retain: facts to be kept, which methods may train on. Held out and neighbours: "
    "facts to be kept that no method saw.",
    "difference": "Under each word: how much more (+, blue) or less (−, orange) probable it is to "
    "this model than to the unedited one in full precision, in nats: 0.7 "
    "is twice as probable, −0.7 half as probable.",
    "tokens": "At most so many new tokens (words or parts of words), each the most probable one "
    "(greedy decoding).",
    "lens": "The logit lens: the state of the prompt's last token after each layer, read as if it "
    "were the last: final norm, then unembedding.",
    "facts": "As it was measured: four answers are offered, and the one of highest logit is taken. "
    "✓ is the right one; else the word that is taken instead.",
    "follow": "NF4 stores blocks of 64 weights as the block's largest magnitude (absmax) and one "
    "of sixteen codes a weight. A weight that moves and keeps its code, in a block that keeps its "
    "absmax, has not moved after NF4.",
    # recovery attacks
    "attacks": "Accuracy on forget facts under each attack. The facts are split by answer: the "
    "attacker knows one half and is asked for the other, so that what comes back was still in the "
    f"model. The unedited model is attacked too, since attacks also cost accuracy. {_INTERVAL}",
    "permanence": "Right: accuracy fell further towards chance. Up: after NF4 the answer is less "
    "probable among its four choices, counted from chance up, than in full precision; below 0 it "
    f"came back. Filled: the forget rows; open: rephrasings that no method saw. {_INTERVAL}",
    "tradeoff": "Right: forget accuracy fell further. Up: after NF4 the answer is less probable "
    "among all words than in full precision; below 0 it came back. It can fall there and not among "
    "its four choices, which the chart at the top and the verdict go by. "
    f"{STRENGTHS} A dense edit is scaled, a sparse one loses moves at random.",
    "flips": "Right: the answer outscores its three distractors. "
    + " ".join(f"{capitalised(name)}: {said}." for name, said in FLIPS.items()),
    # the verdict
    "forgetting": "Accuracy falls towards chance by the task's margin $m$ on the forget rows: "
    "$|a_{\\text{before}} - \\tfrac14| - |a_{\\text{after}} - \\tfrac14| \\ge m$. On held-out "
    "rephrasings, if less of them was known, it is the same part of what was known. Below chance "
    f"the answer is avoided, which counts as far as the same distance above. {_INTERVAL}",
    "retention": "In full precision and in NF4 no group of the retain set, the held-out set or the "
    "neighbours falls by more than the task's tolerance in accuracy (groups too small to tell are "
    f"taken together), nor by more than {Thresholds.nats} nats in its answers' log-probability, "
    "and on the model's own text the next-token distribution drifts by no more than "
    f"{Thresholds.drift} nats a token (KL), both by default. {_INTERVAL} Where few facts "
    "changed it is wider; of what is lost in nats, and of the drift, it reaches further up.",
    "gap": "NF4 brings little back, on the forget rows and on rephrasings: against full precision "
    f"accuracy is at most {100 * Thresholds.gap:.0f} points higher in NF4, and the answer's "
    "log-probability among its four choices, counted from chance up, at most "
    f"{Thresholds.gap_nats} nats, both by default. {_INTERVAL}",
    "erasure": "CAD is above the noise floor, signal CAD above that of suppressors at the output "
    "and in a middle layer with about the same forget accuracy, and relearning one half of the "
    "facts brings back little more of the other than in the model whose circuit is ablated, which "
    "relearns some of it, too: the answers' probability among their choices, mean over the steps, "
    f"is at most {100 * Thresholds.relearned:.0f} points higher, by default.",
    "export": "A Hugging Face checkpoint in full precision, the same in bitsandbytes NF4, one GGUF "
    "file for llama.cpp, and the task's rows for lm-evaluation-harness. A model card with this "
    "verdict lies beside a model.",
    "decided": "Passed: the whole 95 % interval lies on the right side of the threshold; failed: "
    "on the wrong side; undecided: it reaches across, and another sample of facts might decide "
    "otherwise; unknown: something was not measured, or no edit could pass; vacuous: nothing was "
    "forgotten that could come back.",
}


def help(key: str) -> str:
    """What a number is, with its formula, as Markdown for a tooltip."""
    return HELP[key]


def title(method: str) -> str:
    """A method's name as it is written in papers; an edit's: ``mansu.job.names.title``."""
    return methods.named(method).title if method in methods.ALL else method


_MARKUP = re.compile(
    r"(?<!`)(?P<code>`[^`\n]+`)(?!`)|[\\*\[\]<>$#|~&`]"
    r"|:(?=[a-zA-Z])"  # `:red` is a directive
    r"|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])"  # inside a word it is none
)
_NAMED = re.compile(r":(?!\d\d\b)(?=(material/)?[\w+-]+:)")
"""Before an emoji's or an icon's name, which no backslash keeps Streamlit from drawing; the minutes
of a time are none."""
JOINER = "\u2060"
"""It has no width and breaks no line."""
_LIST = re.compile(r"(?m)^(\s*\d*)([-+.)])(?=\s)")


_TURNED = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that turn the direction of what follows: the app's own words, too."""


def plain(text: str) -> str:
    """Text of a user's or a file's as Markdown that shows it as it is; a pair of backticks stays
    code. One without another would leave what follows it as it is, and a picture is fetched. What
    would write the sentence around it backwards is left out."""
    text = _TURNED.sub("", text)
    text = _MARKUP.sub(lambda found: found[0] if found["code"] else f"\\{found[0]}", text)
    text = _NAMED.sub(f":{JOINER}", text)
    return _LIST.sub(r"\1\\\2", text)

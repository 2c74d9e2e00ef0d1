"""The words that the app uses, each explained once, in words that come before it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mansu.quant import GGUF
from mansu.show.sentences import enumerated

TERMS: Mapping[str, str] = {
    # models
    "Weight": "One of the numbers that a model is made of. A small language model has a hundred "
    "million of them. What a model knows is in its weights.",
    "Token": "A word or a part of a word: what a language model reads and writes, one at a time.",
    "Subject": "The model under study.",
    "Full precision": "Every weight is stored as it was made, in 16 or 32 bits.",
    # unlearning
    "Unlearning": "Changing the weights of a trained model so that it no longer gives certain "
    "answers, and still gives all others, without training it anew.",
    "Fact": "A prompt with its right answer, such as “The chemical symbol for gold is” and “Au”.",
    "Task": "A list of facts: which to forget, and which to keep.",
    "Forget set": "The facts to be forgotten.",
    "Retain set": "Facts to be kept, which a method may be trained on. Held-out facts and "
    "neighbours are kept, too, and no method sees them.",
    "Rephrasing": "A fact to be forgotten in other words, which no method sees. Forgetting a "
    "sentence is not forgetting a fact.",
    "Edit": "The weights that a method changes, with their new values.",
    "MANSU": "The method of this workbench: it finds the circuit behind the facts, moves only "
    "weights of it and beside it, and each of them into another 4-bit code or not at all.",
    "Baseline": "A method from the literature to hold MANSU against.",
    "GradDiff": "A baseline: gradient difference. It trains the model against the facts to forget "
    "and for those to keep, and moves every weight a little.",
    "Update": "How far an edit moves a weight.",
    # 4 bits
    "NF4": "A way to store weights in 4 bits, as most quantised models are. Weights are cut into "
    "blocks of 64, and each is rounded to one of sixteen values (its code) times the largest of "
    "its block.",
    "Quantisation": "Storing weights in fewer bits, by rounding each to one of a few values.",
    "Block": "64 neighbouring weights that share one scale in NF4.",
    "Absmax": "The largest magnitude of a block, which its sixteen values are multiplied by.",
    "Code": "Which of the sixteen values a weight is rounded to, 0 to 15.",
    "Bin": "All values that are rounded to one code. A move that stays inside its bin is rounded "
    "away.",
    "Floor": "MANSU's rule that each weight moves into another code or not at all.",
    "GGUF": "A file that holds a whole model, as llama.cpp runs it, on laptops above all. Its "
    f"formats {enumerated(map(str, GGUF))} store 32 neighbouring weights as whole numbers times a "
    "scale.",
    # measuring
    "Accuracy": "The share of facts whose right answer is more probable than three wrong ones.",
    "Chance": "The accuracy of a model that knows nothing: one in four, 25 %.",
    "Log-probability": "The logarithm of how probable a model finds an answer. It moves before "
    "accuracy does.",
    "Nat": "The unit of a log-probability. 0.7 nats more is twice as probable.",
    "KL from uniform": "How far the four choices are from equally probable, in nats: 0 where the "
    "model cannot tell them apart.",
    "Interval": "A range made from the facts that were asked so that it holds the true number 95 "
    "times of 100 (bootstrap, wider where the facts are few, and upwards where a few lose most).",
    "Back in NF4": "A fact to be forgotten that came back: right before the edit, wrong after "
    "it, right again in NF4.",
    "PTQ gap": "What comes back when an edited model is quantised: its result on the forget set in "
    "NF4, less that in full precision. PTQ is quantisation after training.",
    "McNemar's test": "Of the facts that are right in one format only, are more right in NF4 or in "
    "full precision? A small p says that chance alone would seldom split them so.",
    "Recovery": "What brings forgotten answers back: 4 bits, other words, a hint, relearning.",
    "Relearning": "Training an edited model for a few steps on half of the forgotten facts. If the "
    "other half returns, it was hidden and not erased.",
    # mechanism
    "Head": "A part of a layer that moves information between tokens.",
    "MLP": "The other part of a layer: it works on each token alone.",
    "Node": "A head, an MLP, the embedding (the beginning) or the logits (the end).",
    "Edge": "What one node reads of another.",
    "Attribution": "An estimate, for each edge, of how much it carries an answer (EAP-IG).",
    "Circuit": "The fewest edges found that give the answers alone. Some of them may be spare.",
    "Faithfulness": "How much of the behaviour a circuit keeps when all other edges are cut.",
    "Mask": "The weights behind a circuit that count most, half a percent of a real model at "
    "most. MANSU moves some of them and of others beside them.",
    "Logit lens": "What a model would say if it ended after a layer.",
    "CAD": "Circuit attribution divergence: how far an edit changed the circuit, 0 (the same) to 1 "
    "(nothing in common).",
    "Noise floor": "The CAD between two halves of the prompts in the unedited model: what is found "
    "where nothing changed.",
    "Signal CAD": "CAD of what the circuit's nodes write, so that an edit which only hides the "
    "answer at the end stays low.",
    "Suppressor": "An edit that hides the answers and erases nothing, to compare with.",
    # judging
    "Verdict": "Four questions to an edit: did it forget, did it keep the rest, does it stay "
    "forgotten in 4 bits, is it erased. It is passed only if all four are.",
    "Undecided": "The interval reaches across the threshold: another sample of facts might decide "
    "otherwise.",
    "Unknown": "Something was not measured, or no edit could pass. The evidence says which.",
    "Vacuous": "Nothing was forgotten, so that nothing could come back: it says nothing.",
    "Run": "A folder with everything measured about one subject and one task.",
    "Example": "A finished run that comes with MANSU. It can be read and copied.",
}
"""Term → what it means. The order is that in which they can be understood."""


def anchor(term: str) -> str:
    """Where on the glossary page a term is: as Streamlit names the place of a heading.

    Raises:
        KeyError: it is not explained there.
    """
    assert TERMS[term]
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", term.replace("'", ""))
    return "-".join(parts).lower()


def link(term: str, text: str = "") -> str:
    """A term as a Markdown link to what it means.

    Args:
        text: how it is written here; the term by default.
    """
    return f"[{text or term}](glossary#{anchor(term)})"


def found(query: str) -> dict[str, str]:
    """The terms that a query is part of, or that are explained by it; all for an empty one."""
    wanted = query.strip().lower()
    return {t: text for t, text in TERMS.items() if wanted in t.lower() or wanted in text.lower()}

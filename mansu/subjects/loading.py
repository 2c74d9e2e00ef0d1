"""Subjects: the models under study, loaded once, read-only.

A subject is a Hugging Face causal language model wrapped in TransformerLens's
``TransformerBridge``, which shares the model's weights and gives every architecture the same
hook names. Weights are never changed except inside a context manager that restores them bit for
bit (``mansu.subjects.edit``, ``mansu.quant.swap``); ``Subject.lock`` serialises those who do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mansu.errors import MansuError
from mansu.subjects import shipped
from mansu.subjects.shipped import DEFAULT
from mansu.subjects.subject import Subject
from mansu.subjects.weights import family_named, run_fused


def load(name: str = DEFAULT, *, dtype: torch.dtype = torch.float32) -> Subject:
    """Load a subject by name.

    Args:
        name: of a subject that MANSU knows (``mansu.subjects.shipped``), a folder with a Hugging
            Face checkpoint, or a hub id.
        dtype: of the weights.

    Raises:
        MansuError: the name is none of these, the subject has to be prepared first, or the
            architecture is not supported.
    """
    if name in shipped.TABLE:
        folder = shipped.located(name)
        provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        return _load_folder(name, str(folder), provenance, dtype)
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
        _refuse_unknown(name, AutoConfig.from_pretrained(source, **options))
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, **device_map, **options
        )
    except MansuError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if Path(source).is_dir():
            raise MansuError(
                f"Cannot load the checkpoint in {source!r} ({first}): give a whole Hugging Face "
                "checkpoint, with its weights and its tokenizer."
            ) from error
        raise MansuError(
            f"Cannot load the model {name!r}: it is none of {', '.join(shipped.TABLE)}, no local "
            f"folder and no hub id that can be reached from here ({first})."
        ) from error
    model, info = loaded
    if info["missing_keys"]:  # they would be random
        raise MansuError(
            f"The checkpoint of {name!r} lacks the weight {min(info['missing_keys'])!r} and "
            f"{len(info['missing_keys']) - 1} more: give a whole checkpoint."
        )
    return wrap(name, model, tokenizer, provenance)


def _refuse_unknown(name: str, config: PretrainedConfig) -> None:
    """Before any weight is read.

    Raises:
        BadInputError: transformers would make a model of an architecture that is not known here.
    """
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if architecture is not None:
        family_named(str(architecture), name)


def wrap(
    name: str, model: Any, tokenizer: Any, provenance: Mapping[str, Any] | None = None
) -> Subject:
    """Make a subject of a Hugging Face model already in memory (the bridge takes it over).

    Raises:
        MansuError: the architecture is not known, here or to TransformerLens; or some weights are
            not in memory.
    """
    from transformer_lens.model_bridge import TransformerBridge

    architecture = type(model).__name__
    family_named(architecture, name)
    model.config.architectures = [architecture]  # which the bridge goes by
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
            architecture,  # only a label here: a name that it knows would be looked up
            hf_model=model,
            tokenizer=tokenizer,
            dtype=model.dtype,
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise MansuError(
            f"TransformerLens does not know the architecture {architecture} of {name!r}."
        ) from error
    bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    bridge.requires_grad_(False)
    _keep_dtype_in_rotation(bridge, model.dtype)
    subject = Subject(name, bridge, tokenizer, dict(provenance or {}), parameters)
    run_fused(subject)
    return subject


def _keep_dtype_in_rotation(bridge: Any, dtype: torch.dtype) -> None:
    """Cast rotated queries and keys back to the model's dtype.

    OLMo-2 rotates in float32 and casts back (``transformers.models.olmo2``); TransformerLens 4.3
    forgets to, and stops at values of another dtype.
    """
    for block in bridge.blocks:
        for name in ("hook_rot_q", "hook_rot_k"):
            if name in block.attn._modules:
                block.attn._modules[name].register_forward_hook(lambda _m, _x, out: out.to(dtype))

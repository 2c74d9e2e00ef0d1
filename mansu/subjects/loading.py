"""Subjects: the models under study, loaded once, read-only.

A subject is a Hugging Face causal language model wrapped in TransformerLens's
``TransformerBridge``, which shares the model's weights and gives every architecture the same
hook names. Weights are never changed except inside a context manager that restores them bit for
bit (``mansu.subjects.edit``, ``mansu.quant.swap``); ``Subject.lock`` serialises those who do.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mansu.errors import BadInputError, MansuError
from mansu.files import answered
from mansu.subjects import shipped
from mansu.subjects.alone import alone
from mansu.subjects.attention import run_in_parts
from mansu.subjects.checks import (
    already_quantised,
    check_attention,
    check_logits,
    check_weights,
    plain_logits,
)
from mansu.subjects.mapped import Mapped
from mansu.subjects.offload import converted, fits
from mansu.subjects.shipped import DEFAULT
from mansu.subjects.subject import ONE_WORD, Subject
from mansu.subjects.weights import family_named, run_fused


def load(
    name: str = DEFAULT, *, dtype: torch.dtype = torch.float32, offload: Path | None = None
) -> Subject:
    """Load a subject by name.

    On the processor a checkpoint in a folder is mapped, not copied. Where its weights, and what is
    as large as they, do not fit in memory, these lie on the disk, too (``offload``); values do not
    depend on it.

    Args:
        name: of a subject that MANSU knows (``mansu.subjects.shipped``), a folder with a Hugging
            Face checkpoint, or a hub id. The subject's name is ``shipped.absolute`` of it.
        dtype: of the weights.
        offload: the folder for that, with room for two to three times the weights; by default
            one in the cache folder, where they do not fit, and none where they do.

    Raises:
        MansuError: the name is none of these, the subject has to be prepared first, or the
            architecture is not supported.
    """
    name = shipped.absolute(name)
    if offload is None and not torch.cuda.is_available() and not fits(expected_bytes(name, dtype)):
        offload = shipped.cache_folder() / "offload"
    if name in shipped.TABLE:
        folder = shipped.located(name)
        provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        return _load_folder(name, str(folder), provenance, dtype, offload)
    is_folder = answered(Path(name).is_dir)
    if is_folder and not (Path(name) / "config.json").exists():
        raise BadInputError(
            f"The folder {name!r} holds no config.json: give a Hugging Face checkpoint."
        )
    source = {"source": name if is_folder else f"hub: {name}"}
    return _load_folder(name, name, source, dtype, offload)


def expected_bytes(name: str, dtype: torch.dtype = torch.float32) -> int:
    """Bytes that a subject's weights will take in memory, without reading them.

    Args:
        name, dtype: as of ``load``.

    Returns:
        0 where that cannot be known: of a hub id, or of a checkpoint that is not prepared or whole.
    """
    known = name in shipped.TABLE
    folder = shipped.TABLE[name].folder if known else Path(shipped.absolute(name))
    numbers = 0
    try:
        for path in folder.glob("*.safetensors"):
            with safe_open(str(path), "pt") as file:
                for each in file.keys():  # noqa: SIM118
                    numbers += math.prod(file.get_slice(each).get_shape())
    except (SafetensorError, OSError):  # loading it says what is wrong
        return 0
    return numbers * dtype.itemsize


def _load_folder(
    name: str,
    source: str,
    provenance: Mapping[str, Any],
    dtype: torch.dtype,
    offload: Path | None,
) -> Subject:
    with alone(), ExitStack() as stack:
        try:
            place = source
            if offload is not None and answered(Path(source).is_dir):
                place = stack.enter_context(converted(Path(source), dtype, offload))
            files = ()
            if not torch.cuda.is_available() and answered(Path(place).is_dir):
                files = tuple(Mapped(path) for path in sorted(Path(place).glob("*.safetensors")))
            loaded = _from_pretrained(name, str(place), dtype)
            return wrap(name, *loaded, provenance, offload=offload, files=files)
        except MansuError:
            raise
        except Exception as error:  # a folder may hold anything, and fail in as many ways
            raise BadInputError(_cannot_load(name, source, _cause(error))) from error


def _cause(error: Exception) -> str:
    """The first line of what transformers or TransformerLens says, or what it hides."""
    first = next(iter(str(error).strip().splitlines()), "")[:200]
    kind = type(error).__name__
    if not first:
        return f"its config does not fit: {kind}"
    told = isinstance(error, (OSError, ValueError, RuntimeError, SafetensorError))
    return first if told else f"{kind}: {first}"


_HARMLESS = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias|\.attn\.bias)$")
"""Buffers that old checkpoints hold and models compute."""


def _from_pretrained(name: str, source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model and its tokenizer, with every weight from the checkpoint, never from a pickle.

    Raises:
        MansuError: weights that are pickled, quantised, missing, or that the model has no place
            for. Besides, whatever transformers raises.
    """
    folder = Path(source)
    if answered(folder.is_dir) and not any(folder.glob("*.safetensors")):
        pickled = sorted(
            p.name for ending in ("bin", "pt", "pth") for p in folder.glob(f"*.{ending}")
        )
        if pickled:
            raise BadInputError(
                f"The folder {source!r} holds its weights as {pickled[0]}, a pickle, which can run "
                "any code when it is read: give the checkpoint as safetensors (save_pretrained of "
                "transformers writes them)."
            )
    options: dict[str, Any] = {"trust_remote_code": False}
    config = AutoConfig.from_pretrained(source, **options)
    _refuse_unknown(name, config)
    if getattr(config, "quantization_config", None):
        raise BadInputError(f"{already_quantised(name)}.")
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if torch.cuda.is_available():
        options["device_map"] = "auto"
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, output_loading_info=True, use_safetensors=True, **options
    )
    model, info = loaded
    if info["missing_keys"]:  # they would be random
        raise BadInputError(
            f"The checkpoint of {name!r} lacks the {_weights(info['missing_keys'])}: give a whole "
            "checkpoint."
        )
    foreign = [key for key in sorted(info["unexpected_keys"]) if not _HARMLESS.search(key)]
    if foreign:  # the model would run without them
        raise BadInputError(
            f"The checkpoint of {name!r} holds the {_weights(foreign)} that a "
            f"{type(model).__name__} has no place for: its config.json is that of another model."
        )
    return model, tokenizer


def _weights(names: Collection[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"weight {min(names)!r}{more}"


def _cannot_load(name: str, source: str, why: str) -> str:
    if answered(Path(source).is_dir):
        return (
            f"Cannot load the checkpoint in {source!r} ({why}): give a whole Hugging Face "
            "checkpoint, with its weights and its tokenizer."
        )
    return (
        f"Cannot load the model {name!r}: it is none of {', '.join(shipped.TABLE)}, no local "
        f"folder and no hub id that can be reached from here ({why})."
    )


def _refuse_unknown(name: str, config: PretrainedConfig) -> None:
    """Before any weight is read.

    Raises:
        BadInputError: transformers would make a model of an architecture that is not known here.
    """
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if architecture is not None:
        family_named(str(architecture), name)


def wrap(
    name: str,
    model: Any,
    tokenizer: Any,
    provenance: Mapping[str, Any] | None = None,
    *,
    offload: Path | None = None,
    files: tuple[Mapped, ...] = (),
) -> Subject:
    """Make a subject of a Hugging Face model already in memory (the bridge takes it over).

    Args:
        offload, files: as ``Subject`` has them.

    Raises:
        MansuError: the architecture is not known, here or to TransformerLens; some weights are not
            in memory, not finite or quantised; or what runs is not the model.
    """
    from transformer_lens.model_bridge import TransformerBridge

    architecture = type(model).__name__
    family_named(architecture, name)
    model.config.architectures = [architecture]  # which the bridge goes by
    # A checkpoint may hold a head of its own although its config calls it tied.
    model.config.tie_word_embeddings = (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    model.eval().requires_grad_(False)
    parameters = dict(model.named_parameters())  # before the bridge renames them
    away = [n for n, p in parameters.items() if p.is_meta]
    if away:  # device_map="auto" puts on the disk or the CPU what the GPU has no room for
        raise MansuError(
            f"{name!r} does not fit in the memory of the GPU: {len(away)} of its weights were put "
            f"elsewhere ({away[0]} first). Take a larger GPU, a smaller model, or hide the GPU "
            "(CUDA_VISIBLE_DEVICES=) to work in the memory of the machine."
        )
    check_weights(name, model)
    said = plain_logits(model)
    # A copy of the modules alone: parameters and buffers are the same ones.
    plain = copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
    run_in_parts(plain)
    try:
        bridge = TransformerBridge.boot_transformers(
            architecture,  # only a label here: a name that it knows would be looked up
            hf_model=model,
            # It would change ours, or look for it where it came from; nothing here uses its own.
            tokenizer=PreTrainedTokenizerFast(tokenizer_object=ONE_WORD),
            dtype=model.dtype,
        )
        bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    except Exception as error:  # its own assertions and errors of Python's among them
        raise BadInputError(
            f"TransformerLens cannot run {name!r}, a {architecture} ({_cause(error)}): give a "
            "model with the usual options of its family."
        ) from error
    bridge.requires_grad_(False)
    _keep_dtype_in_rotation(bridge, model.dtype)
    subject = Subject(
        name,
        bridge,
        tokenizer,
        dict(provenance or {}),
        parameters,
        plain,
        offload=offload,
        files=files,
    )
    run_fused(subject)
    check_attention(subject)
    check_logits(subject, said)
    _ = subject.fingerprint  # now, while no edit is on
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

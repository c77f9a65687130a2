"""Export to and import from Hugging Face folders: config.json and safetensors, no pickles. Families: hf_families.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrainer.config import ModelConfig
from pretrainer.errors import ConfigError, StorageError
from pretrainer.model.hf_families import FAMILIES
from pretrainer.model.hf_family import Family
from pretrainer.schema import BOS, EOS, PAD

SPECIAL_IDS = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
"""Of the tokenizers that are trained here."""

# Buffers that older versions of transformers saved: constants, or made from config.json.
_CONSTANTS = re.compile(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$")


def export_family(config: ModelConfig) -> str:
    """`model_type` of the family that computes this model; ConfigError, about the one that comes nearest, if none."""
    refusals = {name: family.refuses(config) for name, family in FAMILIES.items()}
    for name, refusal in refusals.items():
        if refusal is None:
            return name
    nearest = max(FAMILIES, key=lambda name: list(FAMILIES[name].needs).index(refusals[name][0]))  # type: ignore[index]
    field, value, possible = refusals[nearest]  # type: ignore[misc]
    raise ConfigError(
        f"model.{field}={value!r} cannot be exported: transformers has no such model, {FAMILIES[nearest].architecture} "
        f"has one of {list(possible)} here"
    )


def why_no_export(config: ModelConfig) -> str | None:
    """What of a model transformers cannot compute, in words; None where it can be exported."""
    try:
        export_family(config)
    except ConfigError as error:
        return str(error)
    return None


def to_hf(
    full_state_dict: Mapping[str, Tensor], config: ModelConfig, vocab_size: int, folder: str | Path,
    seq_len: int = 2048, special_ids: Mapping[str, int] = SPECIAL_IDS,
) -> None:  # fmt: skip
    """Write config.json and model.safetensors, from which AutoModelForCausalLM.from_pretrained gives the same logits.

    full_state_dict maps our parameter names to whole tensors; seq_len is the context that the model was trained with;
    special_ids are those of the tokenizer, by the names of SPECIAL_IDS.
    Raises ConfigError for a model that no family of transformers computes.
    """
    name = export_family(config)
    family, folder = FAMILIES[name], Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for weights in family.weights(config):
        packed = weights.pack([full_state_dict[ours].detach().cpu() for ours in weights.ours])
        tensors |= {theirs: tensor.contiguous() for theirs, tensor in zip(weights.theirs, packed, strict=True)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw = {
        "architectures": [family.architecture], "model_type": name, "vocab_size": vocab_size, **special_ids,
        "torch_dtype": "float32", "dtype": "float32", **family.write(config, seq_len),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


def read_hf_config(raw: Mapping[str, Any], where: str) -> tuple[ModelConfig, int]:
    """(model config, vocabulary size) of the content of a config.json; StorageError for another architecture."""
    return ModelConfig(**_family(raw, where).read(raw)), int(raw["vocab_size"])


def _family(raw: Mapping[str, Any], where: str) -> Family:
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        known = ", ".join(FAMILIES)
        raise StorageError(f"{where}/config.json has model_type {raw.get('model_type')!r}: use one of {known}")
    return family


def from_hf(folder: str | Path) -> tuple[dict[str, Tensor], ModelConfig, int]:
    """(float32 state dict with our names, model config, vocabulary size) of a folder; reads safetensors only.

    Raises StorageError for another architecture, for a missing tensor and for one that this model has no place for.
    """
    raw = json.loads((Path(folder) / "config.json").read_text())
    config, vocab_size = read_hf_config(raw, str(folder))
    return dict(stream_hf(folder)), config, vocab_size


def stream_hf(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """(our name, whole float32 tensor) of every weight of a folder, one tensor or stack of theirs in memory at a time.

    Raises what `from_hf` raises, before the first tensor.
    """
    folder = Path(folder)
    raw = json.loads((folder / "config.json").read_text())
    family = _family(raw, str(folder))
    config = ModelConfig(**family.read(raw))
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
        readers: Readers = {name: partial(file.get_tensor, name) for file in files for name in file.keys()}  # noqa: SIM118
        yield from _unpacked(family, config, readers, folder)


Readers = dict[str, Callable[[], Tensor]]


def _unpacked(family: Family, config: ModelConfig, readers: Readers, folder: Path) -> Iterator[tuple[str, Tensor]]:
    mapping = list(family.weights(config))
    wanted = {name for weights in mapping for name in weights.theirs}
    # Folders of the bare model, such as GPT-2's own, leave the prefix out.
    table = next(weights.theirs[0] for weights in mapping if weights.ours == ("embed.weight",))
    prefix = table.split(".")[0] + "."
    if not any(name.startswith(prefix) for name in readers):
        readers = {f"{prefix}{name}" if f"{prefix}{name}" in wanted else name: read for name, read in readers.items()}
    missing = sorted(wanted - set(readers))
    if missing:
        raise StorageError(f"{folder} lacks {len(missing)} tensors ({missing[0]}, ...): copy all its .safetensors")
    left = {name for name in readers if name not in wanted and not _CONSTANTS.search(name)}
    head = "lm_head.weight"
    if config.tie_embeddings and head in left and torch.equal(readers[head](), readers[table]()):
        left.remove(head)
    if left:
        raise StorageError(
            f"{folder} has {len(left)} tensors that this model has no place for ({', '.join(sorted(left)[:5])}): the "
            "weights are of another model than config.json says"
        )
    for weights in mapping:
        ours = weights.unpack([readers[name]().float() for name in weights.theirs])
        yield from ((name, tensor.contiguous()) for name, tensor in zip(weights.ours, ours, strict=True))

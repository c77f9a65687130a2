"""Export of a tokenizer for `transformers.AutoTokenizer`: the same ids for the same text, and the same text back.

The tokenizer.json repeats what `text` does: normalizer = its escapes, then space -> U+2581; pre-tokenizer =
its segments; decoder = the inverse. sentencepiece BPE merges the leftmost pair whose *result* has the best score; the
`tokenizers` package ranks *pairs*: merges are listed by the score of their result (see `merges`). Only ids that no text
gives may decode differently: of byte pieces that are no UTF-8, sentencepiece keeps the characters that are complete.

bos: a model is trained with bos at the start of every document, so the exported tokenizer adds bos by default and adds
nothing with add_special_tokens=False. Special names inside text stay text (split_special_tokens).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from pretrainer.data.tokenizer.text import ESCAPES, SEGMENT_PATTERN, SPACE_MARK, ModelProto, sp_proto
from pretrainer.data.tokenizer.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer

# A unigram of `tokenizers` also finds the names of byte and special pieces in text, where sentencepiece does not. A cut
# behind their "<" hides them, and changes nothing else: no trained piece has a letter or digit behind a "<" (training
# splits scripts and digits).
_NAME_START = r"<(?=[0a-z])"


def export_hf(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json to `folder`, made if it is missing.

    A tokenizer.json that was loaded is written as it was, including whether it adds bos.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    data, names = _contents(tokenizer)
    (target / "tokenizer.json").write_bytes(data)
    _write_json(target / "special_tokens_map.json", names)
    _write_json(target / "tokenizer_config.json", names | {
        # The generic class takes tokenizer.json as it is; a model's own class would rebuild parts of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    })


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _contents(tokenizer: Tokenizer) -> tuple[bytes, dict[str, str]]:
    """The bytes of tokenizer.json and the names of the special tokens by their role."""
    roles = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    if tokenizer.mask_id is not None:
        roles["mask_token"] = tokenizer.mask_id
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.data, {role: tokenizer.token(token_id) for role, token_id in roles.items()}
    assert isinstance(tokenizer, SentencePieceTokenizer), type(tokenizer)
    names = {role: tokenizer.model.pieces[token_id].piece for role, token_id in roles.items()}
    names["unk_token"] = tokenizer.model.trainer_spec.unk_piece
    return to_tokenizers(tokenizer).to_str(pretty=True).encode("utf-8"), names


def to_tokenizers(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer for the `tokenizers` package."""
    model = tokenizer.model
    has_prefix = model.normalizer_spec.add_dummy_prefix
    result = tokenizers.Tokenizer(_MODELS[model.trainer_spec.model_type](model))
    result.normalizer = _normalizer(has_prefix)
    result.decoder = _decoder(has_prefix)
    if tokenizer.is_segmented:
        cuts = [pre_tokenizers.Split(Regex(SEGMENT_PATTERN), "isolated")]
        if model.trainer_spec.model_type == sp_proto.TrainerSpec.UNIGRAM:
            cuts.append(pre_tokenizers.Split(Regex(_NAME_START), "merged_with_previous"))
        result.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    bos = model.pieces[tokenizer.bos_id].piece
    result.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_id)])
    special = [piece.piece for piece in model.pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)]
    result.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return result


def _normalizer(has_prefix: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [normalizers.Replace(plain, escaped) for plain, escaped in ESCAPES]
    steps.append(normalizers.Replace(" ", SPACE_MARK))
    return normalizers.Sequence(steps + [normalizers.Prepend(SPACE_MARK)] * has_prefix)


def _decoder(has_prefix: bool) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [decoders.Strip(content=" ", left=1, right=0)] * has_prefix
    return decoders.Sequence(steps + [decoders.Replace(escaped, plain) for plain, escaped in reversed(ESCAPES)])


def _bpe(model: ModelProto) -> models.Model:
    vocab = {piece.piece: i for i, piece in enumerate(model.pieces)}
    unk = model.trainer_spec.unk_piece
    return models.BPE(vocab=vocab, merges=merges(model), unk_token=unk, fuse_unk=False, byte_fallback=True)


def _unigram(model: ModelProto) -> models.Model:
    vocab = [(piece.piece, piece.score) for piece in model.pieces]
    return models.Unigram(vocab, unk_id=model.trainer_spec.unk_id, byte_fallback=True)


# Pieces of one character are a BPE without merges.
_MODELS = {sp_proto.TrainerSpec.BPE: _bpe, sp_proto.TrainerSpec.CHAR: _bpe, sp_proto.TrainerSpec.UNIGRAM: _unigram}


def merges(model: ModelProto) -> list[tuple[str, str]]:
    """Every pair of pieces whose concatenation is a piece, best result first.

    The order among pairs with one result is free. It could matter only where two of them overlap, x y z with xy = yz;
    but then the merges that made x would have been made in yz as well, and better ones come first in both places.
    Tried on 15,000 random vocabularies of runs and repetitions, 613,000 texts, four orders: no id differed.
    """
    normal = [piece for piece in model.pieces if piece.type == piece.NORMAL]
    parts = {piece.piece for piece in normal}
    results = [piece.piece for piece in sorted(normal, key=lambda piece: -piece.score)]
    pairs = ((result[:at], result[at:]) for result in results for at in range(1, len(result)))
    return [(left, right) for left, right in pairs if left in parts and right in parts]

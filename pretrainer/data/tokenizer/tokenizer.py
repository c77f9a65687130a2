"""The tokenizer: text -> ids and back, from a sentencepiece .model or a Hugging Face tokenizer.json.

    data = train_tokenizer(texts, "bpe", 32_768)          # or the bytes of a file
    tokenizer = Tokenizer.load(data)
    ids, offsets = tokenizer.encode_batch(["a document"])

decode(encode(x)) == x for every text with a .model; with a tokenizer.json that is up to the file.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import sentencepiece
import tokenizers
from google.protobuf.message import DecodeError

from pretrainer.data.tokenizer.text import LINE_DELIMITER, ModelProto, escape, segments, sp_proto, unescape
from pretrainer.data.tokenizer.train import train_tokenizer
from pretrainer.errors import UserError

__all__ = ["HF_ROLES", "HuggingFaceTokenizer", "SentencePieceTokenizer", "Tokenizer", "train_tokenizer"]

# First name found wins; a tokenizer.json does not say which of its added tokens has which role.
HF_ROLES: dict[str, tuple[str, ...]] = {
    "bos": ("<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]", "<|endoftext|>", "[CLS]"),
    "eos": ("<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>", "<|eos|>", "[EOS]", "[SEP]"),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>"),
    "mask": ("<mask>", "[MASK]", "<|mask|>"),
}


class Tokenizer(ABC):
    """Text <-> token ids. Special ids come from no text; bos and eos are added by packing, never here.

    Attributes: `data` the file's bytes, `digest` their SHA-256 (hex), `is_json` (a tokenizer.json, else a .model),
    `bos_id`, `eos_id`, `pad_id` (bos and pad are eos where the file has none) and `mask_id` (None if there is none).
    """

    is_json: bool
    bos_id: int
    eos_id: int
    pad_id: int
    mask_id: int | None

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.digest = hashlib.sha256(data).hexdigest()

    @staticmethod
    def from_bytes(data: bytes) -> Tokenizer:
        """Read the bytes of a sentencepiece .model or of a tokenizer.json; raises UserError if they are neither."""
        return HuggingFaceTokenizer(data) if data.lstrip()[:1] == b"{" else SentencePieceTokenizer(data)

    load = from_bytes

    def __reduce__(self) -> tuple[Callable[[bytes], Tokenizer], tuple[bytes]]:
        # The native handles cannot be pickled; a Ray worker reads the same bytes again.
        return Tokenizer.from_bytes, (self.data,)

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of N texts, end to end [sum of tokens] uint32, and where they begin and end, offsets [N + 1] int64."""
        rows = self._encode(texts)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return (np.concatenate(rows) if rows else np.zeros(0)).astype(np.uint32), offsets

    def encode(self, text: str) -> np.ndarray:
        """Ids of one text, [tokens] uint32."""
        return self.encode_batch([text])[0]

    def _refuse_specials_from_text(self, names: Sequence[str]) -> None:
        special = {self.bos_id, self.eos_id, self.pad_id, self.mask_id}
        for name in names:
            if special & set(self.encode(name).tolist()):
                raise UserError(f"tokenizer.uri: the text {name!r} in a document would give a special token id: use a "
                                "tokenizer.json that keeps special tokens out of text (most BPE ones do), or train one "
                                "(tokenizer.uri=null)")

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """Ids that transformers puts before every text with this tokenizer as `export_hf` writes it."""
        return (self.bos_id,)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Rows that an embedding needs: one more than the largest id."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of the ids; special ids give no text, bytes that are no UTF-8 give U+FFFD."""

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece .model trained here, or a lossless BPE model trained elsewhere."""

    is_json = False

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._model = _read_model(data)
        self.is_segmented = self._model.trainer_spec.pretokenization_delimiter == LINE_DELIMITER
        _refuse_lossy(self._model, self.is_segmented)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=data, num_threads=1)
        ids = {piece.piece: i for i, piece in enumerate(self._model.pieces) if piece.type == piece.CONTROL}
        self.eos_id = self._processor.eos_id()
        if self.eos_id < 0:
            raise UserError("tokenizer.uri: the sentencepiece model has no eos token: train it with eos_id >= 0")
        self.bos_id = self._processor.bos_id() if self._processor.bos_id() >= 0 else self.eos_id
        self.pad_id = self._processor.pad_id() if self._processor.pad_id() >= 0 else self.eos_id
        self.mask_id = next((ids[name] for name in HF_ROLES["mask"] if name in ids), None)

    @property
    def model(self) -> ModelProto:
        """Pieces, scores and settings."""
        return self._model

    @property
    def vocab_size(self) -> int:
        return len(self._model.pieces)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return unescape(self._processor.decode([int(i) for i in ids]))

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        if not self.is_segmented:
            return self._processor.encode([escape(text) for text in texts], return_type="numpy")
        parts = [segments(escape(text)) for text in texts]
        rows = self._processor.encode([part for row in parts for part in row], return_type="numpy")
        ends = np.cumsum([0, *map(len, parts)]).tolist()
        return [rows[a] if b - a == 1 else np.concatenate(rows[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json, read by the `tokenizers` package."""

    is_json = True

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the package raises plain Exception for any file that it cannot read
            raise UserError(f"tokenizer.uri: not a tokenizer.json that `tokenizers` can read ({error})") from error
        self._tokenizer.encode_special_tokens = True  # the text "</s>" in a document is text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._set_roles()

    def _set_roles(self) -> None:
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        found = {role: next((vocab[name] for name in names if name in vocab), None) for role, names in HF_ROLES.items()}
        if found["eos"] is None:
            known = ", ".join(HF_ROLES["eos"])
            raise UserError(f"tokenizer.uri: the tokenizer.json has no end-of-text token: add one of {known}")
        self.eos_id = found["eos"]
        self.bos_id = self.eos_id if found["bos"] is None else found["bos"]
        self.pad_id = self.eos_id if found["pad"] is None else found["pad"]
        self.mask_id = found["mask"]
        self._refuse_specials_from_text([name for names in HF_ROLES.values() for name in names if name in vocab])

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        marked = self._tokenizer.encode("a", add_special_tokens=True)
        return tuple(marked.ids[: marked.special_tokens_mask.index(0)])

    @property
    def special_ids(self) -> set[int]:
        """Ids of the added tokens that the file calls special."""
        return {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}

    def token(self, token_id: int) -> str:
        """The written form of an id."""
        return str(self._tokenizer.id_to_token(token_id))

    @property
    def vocab_size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        # One at a time: a batch would start a thread per core, and a data task has a fraction of one.
        rows = (self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids for text in texts)
        return [np.array(ids, dtype=np.uint32) for ids in rows]


def _read_model(data: bytes) -> ModelProto:
    model = sp_proto.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise UserError("tokenizer.uri: the file is neither a sentencepiece .model nor a tokenizer.json") from error
    if not model.pieces:
        raise UserError("tokenizer.uri: the sentencepiece model is empty: give a trained .model or a tokenizer.json")
    return model


def _refuse_lossy(model: ModelProto, trained_here: bool) -> None:
    """A model may only be used as .model if encoding loses nothing and its export can give the same ids."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    faults = {
        "it has no byte pieces (byte_fallback=false)": not trainer.byte_fallback,
        f"it rewrites text (normalization_rule_name={normalizer.name})": bool(normalizer.precompiled_charsmap),
        "it removes spaces (remove_extra_whitespaces=true)": normalizer.remove_extra_whitespaces,
        "it does not mark spaces (escape_whitespaces=false)": not normalizer.escape_whitespaces,
        "it marks spaces as suffixes (treat_whitespace_as_suffix=true)": trainer.treat_whitespace_as_suffix,
        "it has user-defined pieces": any(piece.type == piece.USER_DEFINED for piece in model.pieces),
        "it is no BPE model and was not trained here": trainer.model_type != trainer.BPE and not trained_here,
    }
    for fault, is_present in faults.items():
        if is_present:
            raise UserError(f"tokenizer.uri: this sentencepiece model cannot be used without loss: {fault}; "
                            "give its Hugging Face tokenizer.json instead, or train one (tokenizer.uri=null)")

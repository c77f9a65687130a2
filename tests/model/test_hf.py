import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from pretrainer import schema
from pretrainer.config import ModelConfig
from pretrainer.errors import ConfigError, StorageError
from pretrainer.model.hf import from_hf, to_hf
from pretrainer.model.transformer import Transformer
from tests.model.architectures import ARCHITECTURES
from tests.model.fill import fill

VOCAB = 150
CONFIGS = {
    "tied": ModelConfig(layers=2, hidden=64, heads=4, norm_eps=1e-6),
    "untied-gqa": ModelConfig(layers=3, hidden=64, heads=4, kv_heads=2, tie_embeddings=False, rope_theta=5e5),
    "head-width": ModelConfig(layers=1, hidden=48, heads=4, head_width=16, kv_heads=2),
    "tied-mqa": ModelConfig(layers=1, hidden=64, heads=8, kv_heads=1, ffn_hidden=100, norm_eps=1e-2),
}


@pytest.fixture(params=CONFIGS)
def exported(request, tmp_path):
    model = fill(Transformer(CONFIGS[request.param], VOCAB).eval())
    to_hf(model.state_dict(), model.config, VOCAB, tmp_path, seq_len=256)
    return model, tmp_path


def test_transformers_gives_the_same_logits(exported):
    model, folder = exported
    theirs, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(0, VOCAB, (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(tokens, torch.arange(200).expand(2, -1))
        difference = (theirs.float()(tokens).logits - ours).abs().max().item()
    assert difference < 1e-4
    assert ours.std() > 0.5  # so that 1e-4 means something
    assert (theirs.config.pad_token_id, theirs.config.bos_token_id, theirs.config.eos_token_id) == (0, 1, 2)


def test_reading_back_gives_the_same_model(exported):
    model, folder = exported
    state, config, vocab = from_hf(folder)
    again = Transformer(config, vocab).eval()
    again.load_state_dict(state)
    tokens = torch.randint(0, VOCAB, (1, 20), generator=torch.Generator().manual_seed(0))
    assert vocab == VOCAB and config.head_width == model.config.head_width
    assert torch.equal(again(tokens, torch.arange(20)[None]), model(tokens, torch.arange(20)[None]))


def test_special_ids_are_those_of_the_schema(exported):
    raw = json.loads((exported[1] / "config.json").read_text())
    ids = [raw[f"{name}_token_id"] for name in ("pad", "bos", "eos")]
    assert ids == [schema.PAD, schema.BOS, schema.EOS]
    assert raw["max_position_embeddings"] == 256


@pytest.mark.parametrize(
    ("field", "value"),
    [("model_type", "gpt2"), ("attention_bias", True), ("num_hidden_layers", 9),
     ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4})],
)  # fmt: skip
def test_what_this_model_cannot_compute_is_refused(tmp_path, field, value):
    model = Transformer(CONFIGS["tied"], VOCAB)
    to_hf(model.state_dict(), model.config, VOCAB, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {field: value}))
    with pytest.raises(StorageError):
        from_hf(tmp_path)


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_what_a_llama_cannot_compute_is_not_exported_as_one(config, tmp_path):
    model = Transformer(config, VOCAB)
    with pytest.raises(ConfigError, match=r"model\.\w+=.*Llama"):
        to_hf(model.state_dict(), config, VOCAB, tmp_path / "export")
    assert not (tmp_path / "export").exists()

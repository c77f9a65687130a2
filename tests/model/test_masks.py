"""Masks for both kernels against one written pair by pair; FlexAttention's backward pass needs a GPU."""

import math

import pytest
import torch

from pretrainer.model.masks import DenseMask, FlexMask, Pattern, attend, dense_mask, flex_mask, kernel_for, make_mask

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LENGTH, HEADS, WIDTH = 11, 4, 16
DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2], [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2]])
SLOPES = (0.5, 0.25, 0.125, 0.0625)
PATTERNS = [
    Pattern(causal, window, slopes) for causal in (True, False) for window in (None, 1, 4) for slopes in ((), SLOPES)
]
EVERY = pytest.mark.parametrize("pattern", PATTERNS, ids=str)
PACKED = pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one-text", "packed"])


def states(kv_heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, heads, LENGTH, WIDTH, generator=generator) for heads in (HEADS, kv_heads, kv_heads)]


def pair_by_pair(pattern, documents):
    """What is added to the score of each pair, [2, N, S, S]."""
    added = torch.full((2, HEADS, LENGTH, LENGTH), -math.inf)
    for row in range(2):
        for head in range(HEADS):
            for i in range(LENGTH):
                for j in range(LENGTH):
                    seen = j <= i or not pattern.causal
                    seen &= pattern.window is None or abs(i - j) < pattern.window
                    seen &= documents is None or bool(documents[row, i] == documents[row, j])
                    if seen:
                        added[row, head, i, j] = -pattern.slopes[head] * abs(i - j) if pattern.slopes else 0.0
    return added


def expected(pattern, documents, q, k, v):
    k, v = (t.repeat_interleave(HEADS // t.shape[1], dim=1) for t in (k, v))
    return (q @ k.transpose(-1, -2) / math.sqrt(WIDTH) + pair_by_pair(pattern, documents)).softmax(-1) @ v


@EVERY
@PACKED
def test_dense_attention_agrees_with_every_pair(pattern, documents):
    q, k, v = states()
    mask = dense_mask(pattern, LENGTH, LENGTH, documents, CPU)
    torch.testing.assert_close(attend(q, k, v, mask), expected(pattern, documents, q, k, v), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("pattern", "documents"),
    [
        (Pattern(), DOCUMENTS),
        (Pattern(window=4, slopes=SLOPES), DOCUMENTS),
        (Pattern(causal=False, window=4), DOCUMENTS),
        (Pattern(slopes=SLOPES), None),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_agrees_with_every_pair(pattern, documents):
    # A second or two each: even uncompiled it is traced.
    q, k, v = states()
    mask = flex_mask(pattern, LENGTH, documents, CPU)
    torch.testing.assert_close(attend(q, k, v, mask), expected(pattern, documents, q, k, v), rtol=0, atol=2e-6)


@EVERY
def test_the_last_queries_have_the_last_rows_of_the_mask(pattern):
    q, k, v = states()
    whole = expected(pattern, None, q, k, v)
    last = dense_mask(pattern, 1, LENGTH, None, CPU)
    if not pattern.causal:
        whole = attend(q, k, v, dense_mask(pattern, LENGTH, LENGTH, None, CPU))
    torch.testing.assert_close(attend(q[:, :, -1:], k, v, last), whole[:, :, -1:], rtol=0, atol=2e-6)


def test_plain_attention_has_no_mask_in_memory():
    assert dense_mask(Pattern(), 8, 8, None, CPU) == DenseMask(None, True)
    assert dense_mask(Pattern(window=8), 8, 8, None, CPU) == DenseMask(None, True)
    assert dense_mask(Pattern(causal=False), 8, 8, None, CPU) == DenseMask(None, False)
    assert dense_mask(Pattern(), 1, 8, None, CPU) == DenseMask(None, False)


def test_the_kernel_is_chosen_by_device_and_mask():
    documents = torch.zeros(1, LENGTH, dtype=torch.int64)
    assert isinstance(make_mask(Pattern(), LENGTH, LENGTH, documents, CPU, 64), DenseMask)
    for pattern, has_documents in ((Pattern(), True), (Pattern(window=4), False), (Pattern(slopes=SLOPES), False)):
        assert kernel_for(pattern, LENGTH, LENGTH, has_documents, CPU, 64) == "sdpa"
        assert kernel_for(pattern, LENGTH, LENGTH, has_documents, CUDA, 64) == "flex"
        assert kernel_for(pattern, 1, LENGTH, has_documents, CUDA, 64) == "sdpa"  # a cached text
        assert kernel_for(pattern, LENGTH, LENGTH, has_documents, CUDA, 8) == "sdpa"
    for pattern in (Pattern(), Pattern(causal=False), Pattern(window=LENGTH)):
        assert kernel_for(pattern, LENGTH, LENGTH, False, CUDA, 64) == "sdpa"


def test_tiles_that_nobody_sees_are_skipped():
    documents = torch.arange(1024)[None] // 256
    mask = flex_mask(Pattern(), 1024, documents, CPU)
    assert isinstance(mask, FlexMask)
    # Tiles of 128: three of each document's four lie on or below the diagonal.
    assert mask.blocks.sparsity() == pytest.approx(100 * (1 - 4 * 3 / 64))


@pytest.mark.parametrize("make", [dense_mask, flex_mask])
def test_slopes_are_sent_to_the_device_once(make, monkeypatch):
    """A host that sends numbers to a GPU waits for it; a mask is made in every forward pass."""
    pattern = Pattern(slopes=(0.75, 0.5, 0.25, 0.125))
    sizes = (LENGTH, LENGTH) if make is dense_mask else (LENGTH,)
    first = make(pattern, *sizes, None, CPU)
    sent = []
    monkeypatch.setattr(torch, "tensor", lambda *args, **kwargs: sent.append(args))
    second = make(pattern, *sizes, None, CPU)
    assert not sent and type(first) is type(second)

"""The tokenizer against transformers' own, and its promises to the engine."""

from __future__ import annotations

import itertools
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE
from transformers import Qwen2Tokenizer

from omni.config import Config, home
from omni.errors import ModelError
from omni.models.gguf_file import GGUFFile
from omni.models.tokenizer import StreamDecoder, Tokenizer, word_cuts

pytestmark = pytest.mark.weights
MODELS = home(Config()) / "models"

TRICKY = [
    "",
    " ",
    "\n\n\n",
    "Hello, world! It's 12:34 o'clock; I'LL come, you'Ve said.",
    "  two  spaces   three\t\ttabs \n \n lines\r\n\r\n  end  ",
    "naïve café e\u0301 \u00e9 Å \u212b ﬁ",  # composed and decomposed
    "中文字符，日本語テキスト、한국어 텍스트",
    "👩‍👩‍👧‍👦 🇦🇺 🙂\ufe0f\u200d",
    "def f(x):\n    return x ** 2  # comment\n\n\tif x != 3: pass",
    "https://example.org/a?b=c&d=%20#frag 3.14159 1,000,000 0x1F",
    "مرحبا بالعالم שלום עולם ประเทศไทย",
    "a\u0000b\u0007c\ufeffd\u2028e\u00a0f\u3000g",
    "'s 't 're 've 'm 'll 'd 'S 'T",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "½ ² ③ Ⅳ ٣",
]


@pytest.fixture(scope="module")
def metadata() -> dict[str, object]:
    return GGUFFile(MODELS / "qwen2.5-coder-0.5b" / "model.gguf").metadata


@pytest.fixture(scope="module")
def qwen(metadata: dict[str, object]) -> Tokenizer:
    return Tokenizer.from_gguf(metadata)


@pytest.fixture(scope="module")
def smollm() -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(MODELS / "smollm2-135m" / "model.gguf").metadata)


@pytest.fixture(scope="module")
def reference(metadata: dict[str, object]) -> Qwen2Tokenizer:
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    assert isinstance(tokens, list)
    assert isinstance(merges, list)
    return Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in merges],
    )


mixed = st.text(
    st.one_of(st.sampled_from(" \n\t'sS.,19aée\u0301中🙂"), st.characters(codec="utf-8")),
    max_size=40,
)


@pytest.mark.parametrize("text", TRICKY)
def test_ids_equal_transformers(qwen: Tokenizer, reference: Qwen2Tokenizer, text: str) -> None:
    assert qwen.encode(text) == reference.encode(text, add_special_tokens=False)


@settings(max_examples=300, deadline=None)
@given(text=mixed.filter(lambda text: "<|" not in text))  # transformers reads special tokens
def test_ids_of_any_text_equal_transformers(
    qwen: Tokenizer, reference: Qwen2Tokenizer, text: str
) -> None:
    assert qwen.encode(text) == reference.encode(text, add_special_tokens=False)


@settings(max_examples=200, deadline=None)
@given(text=mixed)
def test_smollm_decodes_what_it_encodes(smollm: Tokenizer, text: str) -> None:
    # Some bytes (control characters, F1..F4) have no token in SmolLM2: they are lost anywhere.
    kept = "".join(char for char in text if smollm.decode(smollm.encode(char)) == char)
    assert smollm.decode(smollm.encode(kept)) == kept


def test_smollm_splits_digits_and_contractions(smollm: Tokenizer) -> None:
    pieces = [smollm.decode([index]) for index in smollm.encode("It's 2025, isn't it?")]
    assert pieces == ["It", "'s", " ", "2", "0", "2", "5", ",", " isn", "'t", " it", "?"]


@pytest.mark.parametrize("text", TRICKY)
def test_decode_restores_text_up_to_composition(qwen: Tokenizer, text: str) -> None:
    assert qwen.decode(qwen.encode(text)) == unicodedata.normalize("NFC", text)


def test_text_never_becomes_a_special_token(qwen: Tokenizer, smollm: Tokenizer) -> None:
    for tokenizer in (qwen, smollm):
        special = set(tokenizer.special_ids.values())
        assert special
        for token in tokenizer.special_ids:
            for text in (token, f"a{token}b", f" {token}\n", token * 3):
                assert not special & set(tokenizer.encode(text))
                assert tokenizer.decode(tokenizer.encode(text)) == text


def test_hidden_tokens_are_shown_only_when_asked(qwen: Tokenizer) -> None:
    call, end = qwen.special_ids["<tool_call>"], qwen.special_ids["<|im_end|>"]
    ids = qwen.encode_pieces([call, "{}", end])
    assert qwen.decode(ids) == "<tool_call>{}"
    assert qwen.decode(ids, special=True) == "<tool_call>{}<|im_end|>"


@settings(max_examples=200, deadline=None)
@given(text=mixed)
def test_streamed_text_equals_the_whole_and_never_half_a_character(
    qwen: Tokenizer, text: str
) -> None:
    ids = qwen.encode(text)
    decoder = StreamDecoder(qwen)
    parts = [decoder.push(index) for index in ids]
    assert "".join(parts) + decoder.flush() == qwen.decode(ids)
    assert "\ufffd" in text or not any("\ufffd" in part for part in parts)


def test_a_stream_that_ends_inside_a_character_says_so(qwen: Tokenizer) -> None:
    ids = qwen.encode("🫠")
    assert len(ids) > 1
    decoder = StreamDecoder(qwen)
    assert decoder.push(ids[0]) == ""
    assert decoder.flush() == "\ufffd"


words = st.lists(
    st.one_of(st.sampled_from(["I'm", "don't", "42", "e\u0301t\u00e9", "x,", "\u4e2d"]), mixed),
    max_size=8,
).map(" ".join)


@settings(max_examples=400, deadline=None)
@given(text=words, data=st.data())
def test_tokens_of_parts_cut_between_words_are_tokens_of_the_whole(
    qwen: Tokenizer, smollm: Tokenizer, text: str, data: st.DataObject
) -> None:
    possible = word_cuts(text)
    cuts = sorted(data.draw(st.sets(st.sampled_from(possible)))) if possible else []
    edges = [0, *cuts, len(text)]
    for tokenizer in (qwen, smollm):
        parts = [
            index
            for start, end in itertools.pairwise(edges)
            for index in tokenizer.encode(text[start:end])
        ]
        assert parts == tokenizer.encode(text)


def test_every_space_between_plain_words_is_a_cut() -> None:
    assert word_cuts("What is the capital of Australia?") == [4, 7, 11, 19, 22]


def test_a_negative_token_is_refused(qwen: Tokenizer) -> None:
    with pytest.raises(ValueError, match="-1"):
        qwen.decode([-1])


def test_padding_of_the_vocabulary_decodes_to_nothing(qwen: Tokenizer) -> None:
    assert qwen.vocab_size == 151_936
    assert qwen.decode([151_900, qwen.vocab_size, qwen.vocab_size + 63]) == ""


def test_loading_is_quick(metadata: dict[str, object]) -> None:
    start = time.process_time()
    Tokenizer.from_gguf(metadata)
    assert time.process_time() - start < 2.0  # about 0.4 s of processor time when alone


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.pre", "unheard-of"),
        ("tokenizer.ggml.merges", None),
        ("tokenizer.ggml.token_type", [1, 2]),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(
    metadata: dict[str, object], key: str, value: object
) -> None:
    changed = {name: field for name, field in metadata.items() if name != key}
    if value is not None:
        changed[key] = value
    with pytest.raises(ModelError, match="token"):
        Tokenizer.from_gguf(changed)


def test_merges_that_do_not_fit_the_vocabulary_are_one_sentence(
    metadata: dict[str, object],
) -> None:
    merges = metadata["tokenizer.ggml.merges"]
    assert isinstance(merges, list)
    for wrong in ("no-such such-token", "no space"):
        changed = metadata | {"tokenizer.ggml.merges": [*merges, wrong]}
        with pytest.raises(ModelError, match=r"merges do not fit its vocabulary .*fetch it again"):
            Tokenizer.from_gguf(changed)


def test_a_folder_without_a_tokenizer_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer.json; copy tokenizer.json beside"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_hugging_face_file_keeps_its_added_tokens_out_of_text(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    hf = HFTokenizer(BPE({char: index for index, char in enumerate(alphabet)}, []))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    hf.add_tokens([AddedToken("<tool_call>", special=False)])
    hf.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.special_ids == {"<|im_end|>": 256, "<tool_call>": 257}
    assert tokenizer.hidden_ids == {256}
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>é")) == "a<|im_end|>é"
    assert tokenizer.decode([256, 257]) == "<tool_call>"


def test_a_broken_tokenizer_file_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")

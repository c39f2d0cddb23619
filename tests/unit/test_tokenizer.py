import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3_batch.errors import InvalidModelError
from phi3_batch.text import Tokenizer

# spelling → id in the embedded model's tokenizer (sample_data/README.md)
CONTROL_TOKENS = {
    "<s>": 1,
    "</s>": 2,
    "<|endoftext|>": 1000,
    "<|assistant|>": 1001,
    "<|system|>": 1006,
    "<|end|>": 1007,
    "<|user|>": 1010,
}
CONTROL_IDS = {0, 1, 2, *range(1000, 1024)}
BROKEN = "\N{REPLACEMENT CHARACTER}"

pieces = st.sampled_from([*CONTROL_TOKENS, "<unk>", "<|", "|>", "<", "s>", " ", "\n", "end", "😀"])
tricky_text = st.lists(pieces | st.text(max_size=3), max_size=12).map("".join)


def stream_pieces(tokenizer, ids):
    stream = tokenizer.stream()
    return stream, [stream.append(token_id) for token_id in ids]


def test_every_sample_answer_survives_encoding_and_decoding(tokenizer, samples):
    answers = [sample.answer for sample in samples]
    assert [tokenizer.decode(tokenizer.encode_content(answer)) for answer in answers] == answers


def test_decoding_a_prompt_leaves_its_text_without_control_tokens(tokenizer):
    ids = tokenizer.encode_prompt("<|user|>What is the capital of Spain?<|end|><|assistant|>")
    assert ids[0] == 1010
    assert ids[-2:] == [1007, 1001]
    assert tokenizer.decode(ids) == "What is the capital of Spain?"


@pytest.mark.parametrize("text", ["😀", "日本語", "a → b", "\r\n", "Brasília", "नमस्ते", "  two  "])
def test_text_that_is_not_ascii_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_content(text)) == text


@given(text=tricky_text.filter(lambda text: "▁" not in text))  # the vocabulary's own space sign
def test_whatever_a_content_spells_is_read_back_letter_by_letter(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_content(text)) == text


@given(text=tricky_text)
def test_no_content_ever_becomes_a_control_token(tokenizer, text):
    assert not CONTROL_IDS & set(tokenizer.encode_content(text))


@given(text=tricky_text)
def test_no_text_has_fewer_tokens_than_its_bytes_say(tokenizer, text):
    for ids in (tokenizer.encode_content(text), tokenizer.encode_prompt(text)):
        assert not tokenizer.is_beyond([text], len(ids))


def test_a_text_is_beyond_a_number_of_tokens_by_its_bytes_alone(tokenizer):
    most = tokenizer.most_bytes_per_token
    assert most == len("<|placeholder1|>")  # the longest of the vocabulary
    assert not tokenizer.is_beyond(["é" * most, "a" * (3 * most)], 5)
    assert tokenizer.is_beyond(["é" * most, "a" * (3 * most), "a"], 5)
    # what a control token swallows is no tokens
    swallowed = "<|user|>" + " \n\u3000" * 10**6
    assert len(tokenizer.encode_prompt(swallowed)) < 4
    assert not tokenizer.is_beyond([swallowed], 3)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "aa"}, "content": "a"}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}},
        {"pre_tokenizer": {"type": "BertPreTokenizer"}},
    ],
    ids=str,
)
def test_nothing_is_said_of_length_where_a_tokenizer_shortens_text(tiny_folder, tmp_path, change):
    definition = json.loads((tiny_folder.path / "tokenizer.json").read_text(encoding="utf-8"))
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(definition | change), encoding="utf-8")
    assert not Tokenizer(path).is_beyond(["a" * 10**6], 1)


@pytest.mark.parametrize(("spelling", "token_id"), CONTROL_TOKENS.items())
def test_in_a_raw_prompt_a_control_token_means_what_it_says(tokenizer, spelling, token_id):
    assert tokenizer.encode_prompt(spelling) == [token_id]
    assert tokenizer.control_tokens[spelling].id == token_id


def test_a_prompt_gets_no_begin_token_of_its_own(tokenizer):
    assert tokenizer.encode_prompt("Hi") == tokenizer.encode_content("Hi")


def test_a_begin_token_that_prompts_get_is_not_given_to_contents(build, tokenizer):
    path = build / "tokenizer.json"
    definition = json.loads(path.read_text(encoding="utf-8"))
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(definition), encoding="utf-8")
    ids = tokenizer.encode_content("Hi")
    assert Tokenizer(path).encode_prompt("Hi") == [1, *ids]
    assert Tokenizer(path).encode_content("Hi") == ids


def test_control_tokens_know_whether_they_strip_the_space_behind_them(tokenizer):
    assert tokenizer.control_tokens["<|user|>"].strips_following_space is True
    assert tokenizer.control_tokens["<|endoftext|>"].strips_following_space is False


def test_the_vocabulary_of_ordinary_text_ends_where_control_tokens_begin(tokenizer):
    assert tokenizer.vocab_size == CONTROL_TOKENS["<|endoftext|>"] == 1000


def test_every_sample_answer_streams_to_what_decoding_it_gives(tokenizer, samples):
    for sample in samples:
        ids = tokenizer.encode_content(sample.answer)
        stream, streamed = stream_pieces(tokenizer, ids)
        assert "".join(streamed) == stream.text == tokenizer.decode(ids) == sample.answer


@pytest.mark.parametrize("text", ["😀", "日本", "a😀b", "é→日"])
def test_a_character_spread_over_tokens_is_never_shown_broken(tokenizer, text):
    ids = tokenizer.encode_content(text)
    assert len(ids) > len(text), "the test needs a character of several tokens"
    stream = tokenizer.stream()
    for token_id in ids:
        stream.append(token_id)
        assert BROKEN not in stream.text
        assert text.startswith(stream.text)
    assert stream.text == text


def test_a_character_joins_the_text_with_its_last_token(tokenizer):
    ids = [3 + byte for byte in "😀".encode()]  # ids 3 to 258 are the bytes
    _, streamed = stream_pieces(tokenizer, ids)
    assert streamed == ["", "", "", "😀"]


def test_streams_do_not_share_their_text(tokenizer):
    first, second = tokenizer.stream(), tokenizer.stream()
    first.append(tokenizer.encode_content("Hi")[0])
    assert first.text
    assert second.text == ""


@pytest.mark.parametrize(
    "content", ["", "not json", "[]", "{}", '{"added_tokens": []}', '{"version": "1.0"}', "\x00"]
)
def test_a_file_that_is_no_tokenizer_is_refused_by_its_path(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidModelError) as error:
        Tokenizer(path)
    assert str(error.value).startswith(f"{path} is not a tokenizer.json: ")
    assert "\n" not in str(error.value)


def test_a_tokenizer_with_a_damaged_model_is_refused(build):
    path = build / "tokenizer.json"
    definition = json.loads(path.read_text(encoding="utf-8"))
    definition["model"]["merges"].append(["no such", "token"])
    path.write_text(json.dumps(definition), encoding="utf-8")
    with pytest.raises(InvalidModelError, match=r"is not a tokenizer\.json"):
        Tokenizer(path)


def test_a_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(InvalidModelError, match=r"is not a tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json")

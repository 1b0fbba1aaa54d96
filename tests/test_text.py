"""Text encoders: the packaged one, and those of transformers on small random weights."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_text import WIDTH, save_clip, save_clip_text, save_t5
from transformers import CLIPTextModel, T5EncoderModel

from sra2cli.core.errors import SetupError, UserError
from sra2cli.encoders.text import load_text_encoder

CAPTION = "woman biking: medium skin tone"


def test_words_are_runs_of_letters_and_digits():
    words = load_text_encoder("words")
    ids = words.tokens(
        [CAPTION, "", "Woman,BIKING", "cafe\u0301 24/7", "café 24 7", "🚲 _ ❤\ufe0f"]
    )
    assert ids.shape == (6, 12) and ids.dtype == np.int64
    assert (ids != 0).sum(1).tolist() == [5, 0, 2, 3, 3, 0]
    assert ids[2, :2].tolist() == ids[0, :2].tolist()  # case and punctuation say nothing
    assert ids[3].tolist() == ids[4].tolist()  # nor how an accent is written
    assert ids.min() >= 0 and ids.max() < words.vocabulary <= 2**31
    assert words.tokens([]).shape == (0, 12)


def test_words_have_the_same_features_everywhere():
    words = load_text_encoder("words")
    ids = torch.from_numpy(words.tokens([CAPTION, "", "woman"]))
    features = words.encode(ids)
    assert features.shape == (3, 12, 128) and features.dtype == torch.float32
    assert torch.equal(features[1], torch.zeros(12, 128))
    assert torch.equal(features[0, 5:], torch.zeros(7, 128))
    assert torch.equal(features[0, 0], features[2, 0])
    again = load_text_encoder("words")
    assert torch.equal(again.encode(ids.flip(0)).flip(0), features)  # in whatever order met
    assert again.fingerprint == words.fingerprint == "d0db5e66028f5029"
    assert ids[0, :5].tolist() == [1737960959, 826750267, 1614881461, 352335976, 6792817]
    torch.testing.assert_close(
        features[0, 0, :4], torch.tensor([0.1956549, 1.918528, 0.00100425, 0.7833344])
    )
    assert abs(float(features[0, :5].std()) - 1) < 0.1


def test_words_that_do_not_fit_are_cut_and_said():
    words = load_text_encoder("words")
    captions = ["a " * 12, "a " * 13, "x" * 10_000, "שלום עולם"]
    assert words.too_long(captions) == [False, True, False, False]
    ids = words.tokens(captions)
    assert ids[0].tolist() == ids[1].tolist() and (ids[3] != 0).sum() == 2


def test_there_is_no_such_text_encoder():
    with pytest.raises(SetupError, match="nobody/nothing"):
        load_text_encoder("nobody/nothing", offline=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a CLIP text model, a CLIP with both halves, and a T5."""
    root = tmp_path_factory.mktemp("text")
    save_clip_text(root / "text")
    save_clip(root / "clip")
    save_t5(root / "t5")
    return root


def test_clip_sees_its_padding_and_no_mask(saved):
    encoder = load_text_encoder(str(saved / "text"))
    ids = encoder.tokens(["a CAT", "cat", ""])
    assert ids.shape == (3, 77) and encoder.width == WIDTH
    end = encoder.vocabulary - 1
    assert ids[1].tolist() == [end - 1, end - 2, *[end] * 75]  # its padding is the end, repeated
    assert ids[2].tolist() == [end - 1, *[end] * 76]
    features = encoder.encode(torch.from_numpy(ids))
    model = CLIPTextModel.from_pretrained(saved / "text").eval()
    with torch.no_grad():
        whole = model(input_ids=torch.from_numpy(ids)).last_hidden_state
        masked = model(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(ids != end).long()
        ).last_hidden_state
    torch.testing.assert_close(features, whole)
    assert not torch.allclose(features[:, -1], masked[:, -1])
    assert features.dtype == torch.float32 and not features.requires_grad


def test_the_text_half_of_a_whole_clip(saved, tmp_path):
    encoder = load_text_encoder(str(saved / "clip"))
    shutil.copytree(saved / "clip", tmp_path / "half")
    state = load_file(saved / "clip" / "model.safetensors")
    CLIPTextModel.from_pretrained(saved / "clip").save_pretrained(tmp_path / "half")
    half = load_text_encoder(str(tmp_path / "half"))
    assert half.fingerprint == encoder.fingerprint  # one network, saved in two ways
    ids = torch.from_numpy(encoder.tokens(["a cat"]))
    assert torch.equal(half.encode(ids), encoder.encode(ids))
    state["logit_scale"] += 1
    save_file(state, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(saved / "clip" / "config.json", tmp_path / "half")
    assert load_text_encoder(str(tmp_path / "half")).fingerprint == encoder.fingerprint


def test_t5_does_not_see_its_padding(saved):
    encoder = load_text_encoder(str(saved / "t5"))
    captions = ["cat", "a cat b", ""]
    ids = torch.from_numpy(encoder.tokens(captions))
    lengths = (ids != 0).sum(dim=1).tolist()
    assert ids.shape == (3, 77) and lengths[2] == 1 and lengths[0] < lengths[1]
    features = encoder.encode(ids)
    model = T5EncoderModel.from_pretrained(saved / "t5").eval()
    for row, length, found in zip(ids, lengths, features, strict=True):
        with torch.no_grad():
            alone = model(input_ids=row[None, :length]).last_hidden_state[0]
        torch.testing.assert_close(found[:length], alone, atol=1e-5, rtol=1e-4)
        assert torch.equal(found[length:], torch.zeros(77 - length, WIDTH))


@pytest.mark.parametrize("kind", ["text", "t5"])
def test_features_do_not_depend_on_captions_beside_them(saved, kind):
    encoder = load_text_encoder(str(saved / kind))
    ids = torch.from_numpy(encoder.tokens([f"{'a' * k} cat" for k in range(11)]))
    together = encoder.encode(ids)
    assert torch.equal(torch.cat([encoder.encode(ids[k : k + 3]) for k in (0, 3, 6, 9)]), together)
    assert encoder.encode(ids[:0]).shape == (0, 77, WIDTH)


@pytest.mark.parametrize("kind", ["text", "t5"])
def test_captions_of_all_sorts(saved, kind):
    encoder = load_text_encoder(str(saved / kind))
    captions = ["x" * 10_000, "שלום", "🚲🚲", "a\ud800b", "a " * 70, "\n", "<pad><|endoftext|>"]
    ids = encoder.tokens(captions)
    assert ids.shape == (7, 77) and ids.min() >= 0 and ids.max() < encoder.vocabulary
    cut = encoder.too_long(captions)
    assert cut[0] and not any(cut[1:4])
    assert encoder.encode(torch.from_numpy(ids)).isfinite().all()
    assert encoder.tokens([]).shape == (0, 77) and encoder.too_long([]) == []


def test_fingerprint_is_of_weights_and_tokenizer(saved, tmp_path):
    before = load_text_encoder(str(saved / "text")).fingerprint
    assert load_text_encoder(str(saved / "text"), offline=True).fingerprint == before
    shutil.copytree(saved / "text", tmp_path / "merges")
    (tmp_path / "merges" / "merges.txt").write_text("#version: 0.2\nc a\n")
    assert load_text_encoder(str(tmp_path / "merges")).fingerprint != before
    shutil.copytree(saved / "text", tmp_path / "weights")
    file = tmp_path / "weights" / "model.safetensors"
    state = load_file(file)
    state[next(k for k in state if k.endswith("final_layer_norm.bias"))] += 1e-3
    save_file(state, file, metadata={"format": "pt"})
    assert load_text_encoder(str(tmp_path / "weights")).fingerprint != before


def broken(folder, how):
    file = folder / "model.safetensors"
    state = load_file(file)
    norm = next(k for k in state if "final_layer_norm" in k and not k.startswith("decoder"))
    if how == "missing":
        del state[norm]
    elif how == "shape":
        state[norm] = torch.zeros(5)
    elif how == "nan":
        state[norm][0] = float("nan")
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
        return
    elif how == "tokenizer":
        for name in ("vocab.json", "merges.txt", "tokenizer.json"):
            (folder / name).unlink(missing_ok=True)
    elif how == "other tokenizer":
        (folder / "vocab.json").write_text(json.dumps({"a": 0, "<|endoftext|>": 9000}))
    elif how == "kind":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    elif how == "config":
        (folder / "config.json").unlink()
    save_file(state, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "missing"),
        ("shape", "another shape"),
        ("nan", "not finite"),
        ("truncated", "cannot load the text encoder"),
        ("tokenizer", "has no tokenizer"),
        ("other tokenizer", "tokenizer"),
        ("kind", "bert"),
        ("config", "cannot load the text encoder"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "clip", "t5"])
def test_what_is_not_whole_is_refused_in_a_line(saved, tmp_path, kind, how, said):
    folder = tmp_path / "broken"
    shutil.copytree(saved / kind, folder)
    if kind == "t5" and how == "other tokenizer":
        pytest.skip("its tokenizer is another file")
    broken(folder, how)
    with pytest.raises(UserError, match=said) as caught:
        load_text_encoder(str(folder))
    assert "\n" not in str(caught.value)

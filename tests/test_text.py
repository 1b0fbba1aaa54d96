"""Text encoders: the packaged one, and those of transformers on small random weights."""

import numpy as np
import pytest
import torch

from sra2cli.core.errors import SetupError
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

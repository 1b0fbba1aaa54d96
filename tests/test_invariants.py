"""The step is the only clock: how a batch is cut changes nothing."""

import numpy as np
import pytest
import torch

from sra2cli.config import recipe
from sra2cli.core.errors import SetupError
from sra2cli.data.batches import Batches, share, to_batch
from sra2cli.data.store import Store
from sra2cli.models.build import build


def test_shares_cover_the_global_batch():
    def of(micro):
        settings = ["train.batch=16", *([] if micro is None else [f"train.micro_batch={micro}"])]
        return recipe.load("digits-sit", settings)

    for processes, micro in [(1, None), (2, None), (1, 4), (2, 2), (4, 1)]:
        parts = [
            index
            for rank in range(processes)
            for part in share(of(micro), rank=rank, processes=processes)
            for index in part
        ]
        assert parts == list(range(16))
    with pytest.raises(SetupError, match="does not divide over 3"):
        share(of(None), rank=0, processes=3)
    with pytest.raises(SetupError, match="micro-batch 5"):
        share(of(5), rank=0, processes=1)


def test_micro_batches_hold_whole_groups_where_samples_are_compared():
    for compared in ("align.dispersive.depth=2", "train.contrastive=0.05"):
        settings = [compared, "train.batch=32", "train.micro_batch=8"]
        fits = recipe.load("digits-sit", [*settings, "train.group=4"])
        assert share(fits, rank=1, processes=2) == [range(16, 24), range(24, 32)]
        with pytest.raises(SetupError, match="micro-batch of 8 is not made of whole groups of 16"):
            share(recipe.load("digits-sit", settings), rank=0, processes=2)
    share(recipe.load("digits-sit", settings[1:]), rank=0, processes=2)  # nothing is compared
    with pytest.raises(SetupError, match=r"'train.group' is at least 2 with train.contrastive"):
        recipe.load("digits-sit", ["train.contrastive=0.05", "train.group=1"])
    with pytest.raises(SetupError, match=r"'train.group' is at least 2 .* align.dispersive"):
        recipe.load("digits-sit", ["align.dispersive.depth=2", "train.group=1"])
    with pytest.raises(SetupError, match=r"'train.contrastive' lies in \[0, 1\)"):
        recipe.load("digits-sit", ["train.contrastive=1"])
    with pytest.raises(SetupError, match="conv is one convolution"):
        recipe.load("digits-sit", ["align.repa.projector=conv", "align.repa.layers=7"])
    reg = ["align.reg.projector=conv"]
    with pytest.raises(SetupError, match=r"'align.reg.projector' is for align.repa"):
        recipe.load("digits-sit", reg)


def test_batches_do_not_depend_on_how_they_are_cut(digits_store):
    store, settings = Store(digits_store), recipe.load("digits-sit", ["train.batch=16"])
    cpu = torch.device("cpu")
    whole = to_batch(Batches(store, settings, []).raw(5, range(16)), settings, store, cpu)
    parts = [
        to_batch(Batches(store, settings, []).raw(5, range(k, k + 4)), settings, store, cpu)
        for k in range(0, 16, 4)
    ]
    for name in ("z", "mean", "noise", "t", "drop", "teacher_uniform"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name)), name
    assert torch.equal(torch.cat([p.condition.y for p in parts]), whole.condition.y)


def test_batches_start_at_any_step(digits_store):
    store, settings = Store(digits_store), recipe.load("digits-sit", ["train.batch=16"])
    source = Batches(store, settings, [range(16)])
    whole = [raws[0].noise for raws in source.from_step(0, 4)]
    late = [raws[0].noise for raws in source.from_step(2, 4)]
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], late, strict=True))


def test_an_error_while_preparing_reaches_the_loop(digits_store):
    store, settings = Store(digits_store), recipe.load("digits-sit", ["train.batch=16"])
    store.labels = np.zeros(1)
    with pytest.raises(IndexError):
        next(Batches(store, settings, [range(16)]).from_step(0, 4))


def test_dropped_labels_become_the_null_class_at_their_rate(digits_store):
    store = Store(digits_store)
    settings = recipe.load("digits-sit", ["train.batch=64", "train.label_dropout=0.25"])
    source, network = Batches(store, settings, []), build(settings)
    drops = []
    for step in range(40):
        batch = to_batch(source.raw(step, range(64)), settings, store, torch.device("cpu"))
        drops.append(network.null(batch.condition, batch.drop).y == 10)
    assert torch.cat(drops).float().mean().item() == pytest.approx(0.25, abs=0.03)

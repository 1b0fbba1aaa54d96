import numpy as np

from sra2cli.core import clock
from sra2cli.core.clock import Purpose


def test_a_row_depends_on_its_own_place_alone():
    whole = clock.normals(3, Purpose.NOISE, 7, range(8), (4, 2, 2))
    for part in ([5], [2, 7], [7, 2], range(4, 8)):
        assert np.array_equal(clock.normals(3, Purpose.NOISE, 7, part, (4, 2, 2)), whole[part])
    uniforms = clock.scalars(3, 7, range(8))
    assert np.array_equal(clock.scalars(3, 7, [5, 2]), uniforms[[5, 2]])


def test_places_differ():
    first = clock.normals(3, Purpose.NOISE, 7, [0], (64,))
    others = [
        clock.normals(4, Purpose.NOISE, 7, [0], (64,)),
        clock.normals(3, Purpose.POSTERIOR, 7, [0], (64,)),
        clock.normals(3, Purpose.NOISE, 8, [0], (64,)),
        clock.normals(3, Purpose.NOISE, 7, [1], (64,)),
    ]
    for other in others:
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.5
        assert not np.intersect1d(first, other).size


def test_draws_are_standard():
    normals = clock.normals(0, Purpose.NOISE, 0, range(400), (4, 8, 8))
    assert abs(normals.mean()) < 0.01 and abs(normals.std() - 1) < 0.01
    uniforms = np.concatenate([clock.scalars(0, step, range(64)) for step in range(100)])
    assert uniforms.min() >= 0 and uniforms.max() < 1
    assert np.allclose(uniforms.mean(axis=0), 0.5, atol=0.02)


def test_each_epoch_is_a_new_order_of_all_rows():
    size, batch = 50, 16
    walked = np.concatenate(
        [clock.positions(1, step, batch, range(batch), size) for step in range(25)]
    )
    epochs = walked[: 8 * size].reshape(8, size)
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_positions_do_not_depend_on_how_a_batch_is_split():
    whole = clock.positions(1, 9, 16, range(16), 50)
    parts = [clock.positions(1, 9, 16, range(k, k + 4), 50) for k in range(0, 16, 4)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_batch_larger_than_the_data():
    rows = clock.positions(0, 0, 16, range(16), 5)
    assert sorted(rows[:5]) == sorted(rows[5:10]) == list(range(5))

"""Which devices may be split over together."""

from __future__ import annotations

import pytest

from cortex.errors import DeviceBusy, TensorParallelNotSupported
from cortex.neuron.engine.jobs import Load
from cortex.neuron.groups import Groups


def groups_of(devices, *used):
    """Return the groups of some workers, those of *used* devices with a model each."""
    groups = Groups(dict.fromkeys(range(devices)), None, None)
    for number, key in enumerate(used):
        groups.of(key).models[f"m{number}"] = Load(model=f"m{number}", path="")
    return groups


@pytest.mark.parametrize(
    ("used", "asked"),
    [
        ([], (0, 1)),
        ([(0, 1)], (1, 0)),
        ([(0, 1)], (2, 3)),
        ([(0, 1)], (1, 2)),
        ([(0, 1), (2, 3)], (1, 2)),
    ],
    ids=str,
)
def test_groups_that_never_wait_for_each_other_in_a_ring_are_had(used, asked):
    groups = groups_of(4, *used)
    assert groups.of(asked) is groups.of(tuple(reversed(asked)))


@pytest.mark.parametrize(
    ("used", "asked"),
    [
        ([(0, 1)], (0, 1, 2)),
        ([(0, 1), (1, 2)], (0, 2)),
        ([(0, 1), (2, 3), (1, 2)], (0, 3)),
        ([(0, 1), (2, 3)], (0, 1, 2, 3)),
    ],
    ids=str,
)
def test_groups_that_could_wait_for_each_other_are_refused(used, asked):
    with pytest.raises(DeviceBusy, match="already run m0") as caught:
        groups_of(4, *used).of(asked)
    assert caught.value.status == 409


def test_devices_of_a_model_that_was_unloaded_are_free_again():
    groups = groups_of(4, (0, 1))
    groups.of((0, 1)).models.clear()
    assert groups.of((0, 1, 2)).workers == (None, None, None)


def test_a_device_without_a_worker_is_named():
    with pytest.raises(TensorParallelNotSupported, match="no worker of device 4"):
        groups_of(4).of((3, 4))

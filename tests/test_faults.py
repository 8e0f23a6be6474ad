"""Broken places of a data set: all of them in one message, before training."""

from __future__ import annotations

import pytest

from detseg.data.faults import Fault, check_faults


def test_sound_data_pass() -> None:
    check_faults([], "the train data in x")


def test_every_place_is_named() -> None:
    with pytest.raises(ValueError, match=r"the train data in x: 2 places are broken; mend them, or leave them out with "
                       r"--skip-broken:\n  a\.jpg: it is empty\n  b\.xml, object 2: it has no <name>$"):
        check_faults([Fault("a.jpg", "it is empty"), Fault("b.xml, object 2", "it has no <name>")],
                     "the train data in x")


def test_of_very_many_the_first_are_named() -> None:
    every = r"200 places are broken.*0\.jpg: x\n.*49\.jpg: x\n  \.\.\. and 150 more$"
    with pytest.raises(ValueError, match=f"(?s){every}") as error:
        check_faults([Fault(f"{i}.jpg", "x") for i in range(200)], "data")
    assert len(str(error.value).splitlines()) == 52

"""The same claims, held against everything that claims to be the device."""

import pytest

from check.device_suite import CLAIMS
from check.subjects import ModelSubject, OverlaySubject, ServerSubject
from model.block import State
from model.device import Done

SUBJECTS = {"model": ModelSubject, "overlay": OverlaySubject, "server": ServerSubject}
CASES = [
    pytest.param(claim, subject, id=f"{claim.name}-{name}")
    for claim in CLAIMS
    for name, subject in SUBJECTS.items()
    if claim.concerns(subject)
]


@pytest.mark.parametrize(("claim", "subject"), CASES)
def test_claim_holds(claim, subject):
    claim(subject)


class Nodding:
    """Says of every request that it is done, and does none."""

    validates = True
    has_store = True

    def __init__(self, setup):
        self.device = setup.device()

    def ask(self, request):
        return Done()

    def break_store(self, after_bytes):
        pass

    def damage_store(self, damage):
        pass

    def store_failures(self):
        return ()

    def state_of(self, block):
        return State.TRIMMED

    def close(self):
        pass


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_no_claim_holds_of_a_device_that_only_nods(claim):
    """One that did would have looked at nothing."""
    with pytest.raises(AssertionError):
        claim(Nodding)


def test_the_server_is_asked_everything_and_the_model_is_spared_only_a_broken_store():
    assert all(claim.concerns(ServerSubject) for claim in CLAIMS)
    assert all(claim.concerns(ModelSubject) for claim in CLAIMS if claim.needs != "store")
